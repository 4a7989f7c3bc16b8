#include "support/disk_gate.h"

#include "store/file.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <stdexcept>
#include <vector>

// The child installs a filter that lets each call of the table below wait for an answer, gives its parent the
// descriptor that the notifications come from (the parent fetches it with pidfd_getfd), and works. The parent reads the
// names that the call is about from the child's memory and /proc, asks the judge, and answers. A killed child never
// gets one.
//
// Opening a file counts only when it may create or shorten it, a mapping only when it may write to a file.

namespace lamina::test {

namespace {

using store::UniqueFd;

/// Where the file's name stands among a call's arguments.
enum class Names {
    fd,          ///< A descriptor in the first.
    path,        ///< A path in the first.
    at_path,     ///< A folder and a path in the first two.
    second,      ///< A path in the second (rename, link).
    at_fourth,   ///< A folder and a path in the third and fourth (renameat2, linkat).
    at_third,    ///< A folder and a path in the second and third (symlinkat).
    mapping,     ///< A descriptor in the fifth.
    third_is_fd  ///< A descriptor in the third (copy_file_range).
};

struct Row {
    int number;
    std::string_view name;
    Names names;
    int flags_argument = -1;  ///< When not -1: the call counts only if this argument has one of `flags`.
    std::uint32_t flags = 0;
};

#define LAMINA_CALL(name) SYS_##name, #name
const auto kRows = std::to_array<Row>({
    {LAMINA_CALL(write), Names::fd},
    {LAMINA_CALL(pwrite64), Names::fd},
    {LAMINA_CALL(writev), Names::fd},
    {LAMINA_CALL(pwritev), Names::fd},
    {LAMINA_CALL(pwritev2), Names::fd},
    {LAMINA_CALL(fsync), Names::fd},
    {LAMINA_CALL(fdatasync), Names::fd},
    {LAMINA_CALL(sync_file_range), Names::fd},
    {LAMINA_CALL(syncfs), Names::fd},
    {LAMINA_CALL(ftruncate), Names::fd},
    {LAMINA_CALL(fallocate), Names::fd},
    {LAMINA_CALL(fchmod), Names::fd},
    {LAMINA_CALL(fchown), Names::fd},
    {LAMINA_CALL(fsetxattr), Names::fd},
    {LAMINA_CALL(fremovexattr), Names::fd},
    {LAMINA_CALL(ioctl), Names::fd, 1, 0},
    {LAMINA_CALL(sendfile), Names::fd},
    {LAMINA_CALL(copy_file_range), Names::third_is_fd},
    {LAMINA_CALL(splice), Names::third_is_fd},
    {LAMINA_CALL(truncate), Names::path},
    {LAMINA_CALL(setxattr), Names::path},
    {LAMINA_CALL(lsetxattr), Names::path},
    {LAMINA_CALL(openat), Names::at_path, 2, O_CREAT | O_TRUNC},
    {LAMINA_CALL(openat2), Names::at_path},
    {LAMINA_CALL(mkdirat), Names::at_path},
    {LAMINA_CALL(mknodat), Names::at_path},
    {LAMINA_CALL(unlinkat), Names::at_path},
    {LAMINA_CALL(fchmodat), Names::at_path},
    {LAMINA_CALL(fchownat), Names::at_path},
    {LAMINA_CALL(utimensat), Names::at_path},
    {LAMINA_CALL(renameat2), Names::at_fourth},
    {LAMINA_CALL(linkat), Names::at_fourth},
    {LAMINA_CALL(symlinkat), Names::at_third},
    {LAMINA_CALL(mmap), Names::mapping, 2, PROT_WRITE},
    {LAMINA_CALL(io_uring_setup), Names::fd},
#ifdef SYS_open  // The calls of before, where there are any.
    {LAMINA_CALL(open), Names::path, 1, O_CREAT | O_TRUNC},
    {LAMINA_CALL(creat), Names::path},
    {LAMINA_CALL(mkdir), Names::path},
    {LAMINA_CALL(mknod), Names::path},
    {LAMINA_CALL(rmdir), Names::path},
    {LAMINA_CALL(unlink), Names::path},
    {LAMINA_CALL(chmod), Names::path},
    {LAMINA_CALL(chown), Names::path},
    {LAMINA_CALL(lchown), Names::path},
    {LAMINA_CALL(utime), Names::path},
    {LAMINA_CALL(utimes), Names::path},
    {LAMINA_CALL(rename), Names::second},
    {LAMINA_CALL(renameat), Names::at_fourth},
    {LAMINA_CALL(link), Names::second},
    {LAMINA_CALL(symlink), Names::second},
#endif
});
#undef LAMINA_CALL

const Row* row_of(int number) {
    const auto* const found = std::ranges::find(kRows, number, &Row::number);
    return found == kRows.end() ? nullptr : found;
}

sock_filter statement(std::uint16_t code, std::uint32_t value) {
    return {code, 0, 0, value};
}

/// Ask about the calls of the table, let all others go.
std::vector<sock_filter> filter_program() {
    constexpr std::uint16_t kLoad = BPF_LD | BPF_W | BPF_ABS;
    constexpr std::uint16_t kEquals = BPF_JMP | BPF_JEQ | BPF_K;
    constexpr std::uint16_t kReturn = BPF_RET | BPF_K;
    std::vector<sock_filter> program;
    for (const Row& row : kRows) {
        const bool has_flags = row.flags_argument >= 0 && row.flags != 0;
        const auto next = static_cast<std::uint8_t>(has_flags ? 4 : 1);
        program.push_back(statement(kLoad, offsetof(seccomp_data, nr)));
        program.push_back({kEquals, 0, next, static_cast<std::uint32_t>(row.number)});
        if (has_flags) {  // The low half of the argument, on a little-endian machine.
            const auto argument = static_cast<std::uint32_t>(offsetof(seccomp_data, args) + 8u * row.flags_argument);
            program.push_back(statement(kLoad, argument));
            program.push_back({BPF_JMP | BPF_JSET | BPF_K, 1, 0, row.flags});
            program.push_back(statement(kReturn, SECCOMP_RET_ALLOW));
        }
        program.push_back(statement(kReturn, SECCOMP_RET_USER_NOTIF));
    }
    program.push_back(statement(kReturn, SECCOMP_RET_ALLOW));
    return program;
}

int install_filter() {
    std::vector<sock_filter> program = filter_program();
    const sock_fprog code{static_cast<unsigned short>(program.size()), program.data()};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
    return static_cast<int>(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &code));
}

/// What parent and child share.
struct Shared {
    std::atomic<bool> is_open{false};
    std::atomic<int> listener{-1};  ///< In the child.
};
Shared* g_shared = nullptr;

class SharedPage {
public:
    SharedPage() {
        void* const room = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (room == MAP_FAILED) throw std::runtime_error("no memory to share");
        g_shared = new (room) Shared;
    }
    ~SharedPage() {
        ::munmap(g_shared, sizeof(Shared));
        g_shared = nullptr;
    }
    SharedPage(const SharedPage&) = delete;
    SharedPage& operator=(const SharedPage&) = delete;
};

std::string text_at(int process, std::uint64_t address) {
    std::string text;
    std::array<char, 256> piece;
    while (text.size() < PATH_MAX) {  // Up to the end of a page: the next may not be there.
        const std::size_t size = std::min<std::size_t>(piece.size(), 4096 - (address + text.size()) % 4096);
        const iovec local{piece.data(), size};
        const iovec remote{reinterpret_cast<void*>(address + text.size()), size};
        const ssize_t got = ::process_vm_readv(process, &local, 1, &remote, 1, 0);
        if (got <= 0) break;
        const char* const end = std::find(piece.data(), piece.data() + got, '\0');
        text.append(piece.data(), static_cast<std::size_t>(end - piece.data()));
        if (end != piece.data() + got) break;
    }
    return text;
}

std::string path_of_descriptor(int process, int fd) {
    std::array<char, PATH_MAX> room;
    const std::string link =
        "/proc/" + std::to_string(process) + (fd == AT_FDCWD ? "/cwd" : "/fd/" + std::to_string(fd));
    const ssize_t size = ::readlink(link.c_str(), room.data(), room.size());
    std::string path(room.data(), size > 0 ? static_cast<std::size_t>(size) : 0);
    constexpr std::string_view kGone = " (deleted)";
    if (path.ends_with(kGone)) path.resize(path.size() - kGone.size());
    return path;
}

std::string path_at(int process, int folder, std::uint64_t address) {
    const std::string path = text_at(process, address);
    return path.starts_with('/') ? path : path_of_descriptor(process, folder) + "/" + path;
}

std::string path_of(const seccomp_notif& asked, Names names) {
    const auto process = static_cast<int>(asked.pid);
    const auto& arguments = asked.data.args;
    const auto number = [&](int i) { return static_cast<int>(arguments[i]); };
    switch (names) {
        case Names::fd:
            return path_of_descriptor(process, number(0));
        case Names::third_is_fd:
            return path_of_descriptor(process, number(2));
        case Names::mapping:
            return number(4) < 0 || (number(3) & MAP_SHARED) == 0 ? "" : path_of_descriptor(process, number(4));
        case Names::path:
            return path_at(process, AT_FDCWD, arguments[0]);
        case Names::second:
            return path_at(process, AT_FDCWD, arguments[1]);
        case Names::at_path:
            return path_at(process, number(0), arguments[1]);
        case Names::at_third:
            return path_at(process, number(1), arguments[2]);
        case Names::at_fourth:
            return path_at(process, number(2), arguments[3]);
    }
    return "";
}

bool changes_files(const seccomp_notif& asked, const Row& row) {
    if (row.number != SYS_ioctl) return true;
    const auto request = static_cast<std::uint32_t>(asked.data.args[1]);
    return request == FICLONE || request == FICLONERANGE;
}

class Gate {
public:
    Gate(const std::string& folder, const Judge& judge, pid_t child, UniqueFd process)
        : folder_(folder + "/"), judge_(judge), child_(child), process_(std::move(process)) {}

    /// Until the child ends. `words`: where its last ones come from.
    std::string serve(int words) {
        std::string text;
        while (true) {
            if (!listener_) fetch_listener();
            std::array<pollfd, 3> ready{pollfd{words, POLLIN, 0}, pollfd{process_.get(), POLLIN, 0},
                                        pollfd{listener_.get(), POLLIN, 0}};
            if (::poll(ready.data(), ready.size(), listener_ ? -1 : 1) < 0) continue;
            if (ready[2].revents & POLLIN) answer();
            if (ready[0].revents & POLLIN) read_words(words, text);
            if (ready[1].revents & POLLIN) break;
        }
        while (read_words(words, text)) {
        }
        return text;
    }

private:
    static bool read_words(int words, std::string& text) {
        std::array<char, 4096> piece;
        const ssize_t got = ::read(words, piece.data(), piece.size());
        if (got > 0) text.append(piece.data(), static_cast<std::size_t>(got));
        return got > 0;
    }

    void fetch_listener() {
        const int theirs = g_shared->listener.load();
        if (theirs >= 0) listener_ = UniqueFd(fetch(theirs));
    }
    int fetch(int theirs) const { return static_cast<int>(::syscall(SYS_pidfd_getfd, process_.get(), theirs, 0)); }

    void answer() {
        seccomp_notif asked{};
        if (::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_RECV, &asked) != 0) return;  // Killed meanwhile.
        seccomp_notif_resp reply{};
        reply.id = asked.id;
        reply.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        const Row* const row = row_of(asked.data.nr);
        if (row && !g_shared->is_open.load() && changes_files(asked, *row)) {
            const std::string path = path_of(asked, row->names);
            const bool is_asked = path.starts_with(folder_) || row->number == SYS_io_uring_setup;
            if (is_asked && !obey(judge_(call_of(*row, path)), asked, reply)) return;
        }
        ::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_SEND, &reply);
    }
    DiskCall call_of(const Row& row, const std::string& path) const {
        return {std::string(row.name), path.starts_with(folder_) ? path.substr(folder_.size()) : path};
    }

    /// False: no answer, because the child is dead.
    bool obey(const Verdict& verdict, const seccomp_notif& asked, seccomp_notif_resp& reply) {
        switch (verdict.kind) {
            case Verdict::Kind::go:
                return true;
            case Verdict::Kind::tear:
                static_cast<void>(write_half(asked));
                [[fallthrough]];
            case Verdict::Kind::kill:
                ::kill(child_, SIGKILL);
                return false;
            case Verdict::Kind::fail:
                reply.flags = 0;
                reply.error = -verdict.error_number;
                return true;
            case Verdict::Kind::write_less:
                if (const auto written = write_half(asked)) {
                    reply.flags = 0;
                    reply.val = *written;
                }
                return true;
        }
        return true;
    }

    /// How many bytes; nullopt: the call writes none.
    std::optional<std::int64_t> write_half(const seccomp_notif& asked) const {
        const bool is_placed = asked.data.nr == SYS_pwrite64;
        if (!is_placed && asked.data.nr != SYS_write) return std::nullopt;
        const UniqueFd file(fetch(static_cast<int>(asked.data.args[0])));
        std::vector<char> data(asked.data.args[2] / 2);
        const iovec local{data.data(), data.size()};
        const iovec remote{reinterpret_cast<void*>(asked.data.args[1]), data.size()};
        if (!file || data.empty()) return std::nullopt;
        if (::process_vm_readv(static_cast<int>(asked.pid), &local, 1, &remote, 1, 0) != ssize_t(data.size())) {
            return std::nullopt;
        }
        const auto offset = static_cast<off_t>(asked.data.args[3]);
        const ssize_t written = is_placed ? ::pwrite(file.get(), data.data(), data.size(), offset)
                                          : ::write(file.get(), data.data(), data.size());
        return written == ssize_t(data.size()) ? std::optional<std::int64_t>(written) : std::nullopt;
    }

    const std::string folder_;
    const Judge& judge_;
    const pid_t child_;
    const UniqueFd process_;
    UniqueFd listener_;
};

[[noreturn]] void be_child(int words, const std::function<std::string()>& work) {
    const auto say = [&](std::string_view text) {
        if (::write(words, text.data(), text.size()) != ssize_t(text.size())) ::_exit(3);
    };
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // Without its parent it would wait for ever.
    const int listener = install_filter();
    if (listener < 0) {  // The parent would wait for ever.
        say("no filter: " + std::string(std::strerror(errno)));
        ::_exit(3);
    }
    g_shared->listener = listener;
    try {
        say(work());
        ::_exit(0);
    } catch (const std::exception& error) {  // No destructor of the test may run here, and the parent must know.
        say(std::string("threw ") + error.what());
        ::_exit(2);
    }
}

bool is_hexadecimal(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

}  // namespace

std::string DiskCall::label() const {
    std::string out = call + " ";
    for (std::size_t at = 0; at < path.size();) {
        std::size_t end = at;
        while (end < path.size() && is_hexadecimal(path[end])) ++end;
        const bool has_digit = std::any_of(path.begin() + ssize_t(at), path.begin() + ssize_t(end),
                                           [](char c) { return c >= '0' && c <= '9'; });
        const bool is_number = has_digit && (end - at >= 16 || path.find_first_of("abcdef", at) >= end);
        if (end == at) end = at + 1;
        out += is_number ? "#" : path.substr(at, end - at);
        at = end;
    }
    return out;
}

std::string why_no_gate() {
    const std::string text = run_gated(
                                 "/nowhere", [](const DiskCall&) { return Verdict{}; }, [] { return "works"; })
                                 .text;
    return text == "works" ? "" : text;
}

GateResult run_gated(const std::string& folder, const Judge& judge, const std::function<std::string()>& work) {
    const SharedPage shared;
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe");
    const UniqueFd words(ends[0]);
    UniqueFd child_words(ends[1]);
    const pid_t child = ::fork();
    if (child < 0) throw std::runtime_error("fork");
    if (child == 0) be_child(child_words.get(), work);
    child_words = UniqueFd();
    UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
    GateResult result;
    result.text = Gate(folder, judge, child, std::move(process)).serve(words.get());
    int status = 0;
    if (::waitpid(child, &status, 0) != child) throw std::runtime_error("waitpid");
    result.was_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    if (WIFSIGNALED(status) && !result.was_killed) {
        result.text += "ended by signal " + std::to_string(WTERMSIG(status));
    }
    return result;
}

void open_gate() {
    g_shared->is_open = true;
}

}  // namespace lamina::test
