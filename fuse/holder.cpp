// One process for each mount that does nothing but keep descriptors and start servers. A server is made by fork alone:
// what the holder has in memory is a program that has read its options, and that is where each server begins; so a
// restart needs no loading and linking. A server of another program (an upgrade) is executed instead; should that not
// be able to go on in the arena, the next one is the holder's own program again.
//
// The holder must not fail where memory is short: from its first server on it allocates nothing, and makes system calls
// only. It learns of a server's end by a pidfd, and from the session page whether that end was meant.
#include "fuse/holder.h"

#include "fuse/arena_format.h"
#include "fuse/holder_watch.h"
#include "store/error.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace lamina::unionfs {
namespace {

constexpr std::size_t kMaxHeld = 1000;
constexpr std::size_t kFdsPerMessage = 200;  // The kernel takes 253.
constexpr int kFirstHanded = 3;
constexpr std::size_t kMaxArguments = 1000;
constexpr unsigned kFailuresLimit = 5;  // Servers in a row that end by themselves before they serve.
constexpr unsigned kIdleDeathsLimit = 10;
constexpr unsigned kKillsLimit = 300;  // Servers in a row that are killed from outside before they answered anything.
constexpr unsigned kKillsWithoutPause = 16;
constexpr unsigned kMaxPauseShift = 10;

struct Message {
    enum class Kind : std::uint32_t { hand_over, upgrade };
    Kind kind = Kind::hand_over;
    std::uint32_t total_count = 0;  ///< Of descriptors that are handed over, in all messages.
};
using ControlRoom = std::array<std::byte, CMSG_SPACE(kFdsPerMessage * sizeof(int))>;

void send_fds(int socket, const Message& message, std::span<const int> fds) {
    alignas(cmsghdr) ControlRoom room{};
    Message copy = message;
    iovec part{.iov_base = &copy, .iov_len = sizeof copy};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = room.data();
    header.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
    if (::sendmsg(socket, &header, MSG_NOSIGNAL) < 0) store::throw_errno(errno, "the mount's holder");
}

class Holder {
public:
    void begin(const HolderOptions& options);
    /// Returns in a server only.
    void run();
    HolderLink link();

private:
    bool start_server();
    [[noreturn]] void become_program();
    void watch_server();
    void take_signal();
    void take_message();
    void take_handed(const Message& message, std::span<const int> fds);
    void use_program(int program);
    void reap();
    void note_death(int status);
    bool may_start_again(int status);
    void pause_before_start() const;
    void let_go_of_standard_files() const;
    void say(const char* format, ...) const __attribute__((format(printf, 2, 3)));
    [[noreturn]] void end(int exit_code) const { ::_exit(exit_code); }

    HolderOptions options_;
    int signals_ = -1;
    int socket_ = -1;
    int pidfd_ = -1;
    pid_t server_ = 0;
    std::array<int, kMaxHeld> held_{};
    std::size_t held_count_ = 0;
    bool is_handed_over_ = false;
    SessionPage* page_ = nullptr;
    int program_ = -1;  // Of an upgrade; else servers are copies of this process.
    bool is_alive_ = false;
    bool wants_upgrade_ = false;  // The server's end is our doing.
    ServerWatch watch_;
    std::uint64_t progress_at_start_ = 0;
    std::uint64_t oom_kills_ = 0;
    unsigned failures_ = 0;     // In a row: ended before it served.
    unsigned idle_deaths_ = 0;  // In a row: crashed before it answered anything.
    unsigned idle_kills_ = 0;   // In a row: killed before it answered anything.
};

void Holder::begin(const HolderOptions& options) {
    options_ = options;
    sigset_t ours;
    ::sigemptyset(&ours);
    for (const int number : {SIGTERM, SIGINT}) ::sigaddset(&ours, number);
    ::sigprocmask(SIG_BLOCK, &ours, nullptr);  // In servers too: what comes before one is ready waits for it.
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGHUP, SIG_IGN);
    signals_ = ::signalfd(-1, &ours, SFD_CLOEXEC);
    if (signals_ < 0) store::throw_errno(errno, "signalfd");
}

void Holder::say(const char* format, ...) const {
    if (held_count_ <= HolderLink::kLog) return;
    std::array<char, 256> line{};
    va_list arguments;
    va_start(arguments, format);
    const int size = std::vsnprintf(line.data(), line.size() - 1, format, arguments);
    va_end(arguments);
    const std::size_t used = std::min(static_cast<std::size_t>(std::max(size, 0)), line.size() - 2);
    line[used] = '\n';
    if (::write(held_[HolderLink::kLog], line.data(), used + 1) < 0) {
        // A line that nobody can be told.
    }
}

bool Holder::start_server() {
    std::array<int, 2> ends{-1, -1};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) return false;
    if (page_) {
        page_->state = static_cast<std::uint64_t>(SessionPage::State::starting);
        progress_at_start_ = page_->progress;
    }
    oom_kills_ = out_of_memory_kills();
    server_ = ::fork();
    if (server_ == 0) {
        ::close(ends[0]);
        ::close(signals_);
        socket_ = ends[1];
        ::setsid();
        if (program_ >= 0) become_program();
        return true;
    }
    ::close(ends[1]);
    if (server_ < 0) {
        ::close(ends[0]);
        server_ = 0;
        return false;
    }
    socket_ = ends[0];
    pidfd_ = static_cast<int>(::syscall(SYS_pidfd_open, server_, 0));
    is_alive_ = true;
    watch_.start(options_.watchdog_ms);
    if (page_ && page_->wants_end != 0) ::kill(server_, SIGTERM);
    return false;
}

/// The descriptors go to 3, 4 ... in their order. First out of the way of each other.
void Holder::become_program() {
    std::array<int, kMaxHeld + 1> all{};
    const std::size_t count = held_count_ + 1;
    all[0] = socket_;
    std::copy_n(held_.begin(), held_count_, all.begin() + 1);
    const int above = kFirstHanded + static_cast<int>(count);
    const int program = ::fcntl(program_, F_DUPFD_CLOEXEC, above);
    for (std::size_t at = 0; at < count; ++at) all[at] = ::fcntl(all[at], F_DUPFD_CLOEXEC, above);
    for (std::size_t at = 0; at < count; ++at)
        if (::dup2(all[at], kFirstHanded + static_cast<int>(at)) < 0) ::_exit(kCannotResumeExit);
    std::array<char, 64> word{};
    std::snprintf(word.data(), word.size(), "%s%zu", kHandedOverOption, count);
    std::array<const char*, kMaxArguments + 5> arguments{options_.arguments[0], word.data(), options_.mount_folder,
                                                         options_.mountpoint};
    std::size_t words = 4;
    for (std::size_t at = 1; options_.arguments[at] != nullptr && words < kMaxArguments; ++at)
        arguments[words++] = options_.arguments[at];
    ::syscall(SYS_execveat, program, "", arguments.data(), environ, AT_EMPTY_PATH);
    ::_exit(kCannotResumeExit);
}

void Holder::run() {
    while (true) {
        if (start_server()) return;
        if (is_alive_) {
            while (is_alive_) watch_server();
        } else if (!may_start_again(0)) {
            end(1);
        }
        pause_before_start();
    }
}

void Holder::watch_server() {
    std::array<pollfd, 3> waiting = {pollfd{.fd = pidfd_, .events = POLLIN, .revents = 0},
                                     pollfd{.fd = signals_, .events = POLLIN, .revents = 0},
                                     pollfd{.fd = socket_, .events = POLLIN, .revents = 0}};
    const int ready = ::poll(waiting.data(), waiting.size(), watch_.tick_ms());
    if (ready < 0) return;
    if (waiting[1].revents != 0) take_signal();
    if ((waiting[2].revents & POLLIN) != 0) take_message();
    if (waiting[0].revents != 0) {
        reap();
    } else if ((waiting[2].revents & POLLHUP) != 0) {  // The server goes: its end comes next.
        ::close(socket_);
        socket_ = -1;
    }
    if (ready != 0 || !page_ || !is_alive_) return;
    if (!watch_.is_stuck(*page_, held_[HolderLink::kFuse], server_)) return;
    say("the server (process %d) answers nothing while requests wait: it is replaced", static_cast<int>(server_));
    ::kill(server_, SIGKILL);
}

void Holder::take_signal() {
    signalfd_siginfo taken{};
    if (::read(signals_, &taken, sizeof taken) < 0) return;
    if (page_) page_->wants_end = 1;
    ::kill(server_, SIGTERM);
}

void Holder::take_message() {
    alignas(cmsghdr) static ControlRoom room;
    Message message;
    iovec part{.iov_base = &message, .iov_len = sizeof message};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = room.data();
    header.msg_controllen = room.size();
    if (::recvmsg(socket_, &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != sizeof message) return;
    std::array<int, kFdsPerMessage> fds{};
    std::size_t count = 0;
    for (cmsghdr* at = CMSG_FIRSTHDR(&header); at != nullptr; at = CMSG_NXTHDR(&header, at)) {
        if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) continue;
        count = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        std::memcpy(fds.data(), CMSG_DATA(at), count * sizeof(int));
    }
    if (message.kind == Message::Kind::upgrade) {
        if (count == 1) use_program(fds[0]);
    } else {
        take_handed(message, std::span(fds).first(count));
    }
}

void Holder::take_handed(const Message& message, std::span<const int> fds) {
    if (held_count_ + fds.size() > kMaxHeld) return;  // The server waits for an answer that does not come, and ends.
    std::ranges::copy(fds, held_.begin() + static_cast<std::ptrdiff_t>(held_count_));
    held_count_ += fds.size();
    if (held_count_ != message.total_count || held_count_ <= HolderLink::kLog) return;
    void* const page = ::mmap(nullptr, arena_format::kSessionBytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                              held_[HolderLink::kArena], static_cast<off_t>(arena_format::kSessionOffset));
    if (page == MAP_FAILED) return;
    page_ = static_cast<SessionPage*>(page);
    page_->holder = static_cast<std::uint64_t>(::getpid());
    is_handed_over_ = true;
    if (!options_.stays_in_foreground) let_go_of_standard_files();
    if (::chdir("/") != 0) return;
    const char done = 1;
    if (::send(socket_, &done, 1, MSG_NOSIGNAL) != 1) {
        // The server is gone; that is noticed next.
    }
}

void Holder::let_go_of_standard_files() const {
    const int nothing = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    if (nothing < 0) return;
    for (const int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(nothing, standard);
    if (nothing > STDERR_FILENO) ::close(nothing);
}

void Holder::use_program(int program) {
    if (program_ >= 0) ::close(program_);
    program_ = program;
    wants_upgrade_ = true;
    ::kill(server_, SIGKILL);
}

/// What has become of the server, and what is to be done about it.
void Holder::reap() {
    int status = 0;
    while (::waitpid(server_, &status, 0) < 0 && errno == EINTR) {
    }
    ::close(pidfd_);
    if (socket_ >= 0) ::close(socket_);
    pidfd_ = socket_ = -1;
    is_alive_ = false;
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    if (!is_handed_over_) {  // It has said why on standard error, unless it could not.
        if (WIFSIGNALED(status))
            std::fprintf(stderr, "lamina-fuse: the server died before it served (signal %d)\n", WTERMSIG(status));
        end(code);
    }
    if (page_->state == static_cast<std::uint64_t>(SessionPage::State::ended)) end(code);
    if (!may_start_again(status)) end(1);
    note_death(status);
}

/// Counts servers that came to nothing. False: there is no use in another one.
bool Holder::may_start_again(int status) {
    if (!page_) return false;
    if (page_->can_resend == 0) {
        say("the server has died, and this kernel cannot hand its requests on: the mount ends");
        return false;
    }
    const bool came_to_serve = page_->state == static_cast<std::uint64_t>(SessionPage::State::serving);
    const bool has_answered = page_->progress != progress_at_start_;
    const bool is_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && !watch_.has_found_stuck();
    if (has_answered) failures_ = idle_deaths_ = idle_kills_ = 0;
    if (std::exchange(wants_upgrade_, false)) return true;
    if (program_ >= 0 && !came_to_serve && !is_killed) {
        say("the new program cannot go on with this mount (status %d): back to the old one", status);
        ::close(program_);
        program_ = -1;
        return true;
    }
    if (is_killed && !has_answered) {
        if (++idle_kills_ < kKillsLimit) return true;
    } else if (came_to_serve) {
        if (has_answered || ++idle_deaths_ < kIdleDeathsLimit) return true;
    } else if (++failures_ < kFailuresLimit) {
        return true;
    }
    say("no server can be started (status %d): the mount ends", status);
    return false;
}

void Holder::note_death(int status) {
    using Death = SessionPage::Death;
    const bool is_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    Death death = is_killed ? Death::killed : Death::crashed;
    if (is_killed && out_of_memory_kills() != oom_kills_) death = Death::crashed;
    if (watch_.has_found_stuck()) death = Death::stuck;
    if (!is_killed)
        say("the server has died by itself (%s %d): another one goes on",
            WIFSIGNALED(status) ? "signal" : "exit status",
            WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    page_->died_at_ns = monotonic_ns();
    page_->death = static_cast<std::uint64_t>(death);
    page_->restarts = page_->restarts + 1;
}

void Holder::pause_before_start() const {
    const unsigned kills = idle_kills_ > kKillsWithoutPause ? idle_kills_ - kKillsWithoutPause : 0;
    const unsigned steps = std::max({failures_, idle_deaths_, kills});
    if (steps < 2) return;
    ::poll(nullptr, 0, 1 << std::min(steps, kMaxPauseShift));
}

HolderLink Holder::link() {
    std::vector<store::UniqueFd> held;
    for (std::size_t at = 0; at < held_count_; ++at) held.emplace_back(held_[at]);
    return {store::UniqueFd(socket_), std::move(held)};
}

}  // namespace

void HolderLink::hand_over(std::span<const int> fds) const {
    if (!socket_) return;
    const Message message{.kind = Message::Kind::hand_over, .total_count = static_cast<std::uint32_t>(fds.size())};
    for (std::size_t at = 0; at < fds.size(); at += kFdsPerMessage)
        send_fds(socket_.get(), message, fds.subspan(at, std::min(kFdsPerMessage, fds.size() - at)));
    char done = 0;
    ssize_t got = 0;
    while ((got = ::recv(socket_.get(), &done, 1, 0)) < 0 && errno == EINTR) {
    }
    if (got != 1) throw store::Error(store::Errc::unavailable, "the mount's holder is gone");
}

void HolderLink::ask_for_upgrade(int program) const {
    send_fds(socket_.get(), {.kind = Message::Kind::upgrade}, std::span(&program, 1));
}

HolderLink hold(const HolderOptions& options) {
    static Holder holder;
    holder.begin(options);
    holder.run();
    return holder.link();
}

HolderLink handed_over(std::size_t count) {
    std::vector<store::UniqueFd> held;
    store::UniqueFd socket(kFirstHanded);
    for (std::size_t at = 0; at < count; ++at) {
        const int fd = kFirstHanded + static_cast<int>(at);
        ::fcntl(fd, F_SETFD, FD_CLOEXEC);
        if (at != 0) held.emplace_back(fd);
    }
    return {std::move(socket), std::move(held)};
}

}  // namespace lamina::unionfs
