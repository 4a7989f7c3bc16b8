// How it ends: whatever the reason, the kernel is unmounted while the reading threads still serve (what it writes back
// then has to be answered), the threads see the end of /dev/fuse, and the main thread goes on. Only a SIGTERM while
// files are open goes another way: the mount is taken out of the tree, and what holds files open gets errors once the
// server is gone.
#include "fuse/union_server.h"

#include "fuse/unmount.h"
#include "store/error.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <ctime>

namespace lamina::unionfs {
namespace {

constexpr unsigned kWorkerLimit = 4;

store::UniqueFd new_event() {
    store::UniqueFd fd(::eventfd(0, EFD_CLOEXEC));
    if (!fd) store::throw_errno(errno, "eventfd");
    return fd;
}

void set_event(int fd) {
    const std::uint64_t one = 1;
    if (::write(fd, &one, sizeof one) < 0) {
        // It is set already.
    }
}

}  // namespace

EndSignals::EndSignals() {
    sigset_t signals;
    ::sigemptyset(&signals);
    for (const int number : {SIGTERM, SIGINT}) ::sigaddset(&signals, number);
    ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    fd_ = store::UniqueFd(::signalfd(-1, &signals, SFD_CLOEXEC));
    if (!fd_) store::throw_errno(errno, "signalfd");
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGHUP, SIG_IGN);
}

void EndSignals::take() {
    signalfd_siginfo taken{};
    if (::read(fd_.get(), &taken, sizeof taken) < 0) {
        // Nothing waits; the caller polled.
    }
}

UnionServer::UnionServer(EndSignals& signals, const Parts& parts, std::function<void()> on_ready)
    : signals_(signals),
      parts_(parts),
      log_(parts.log),
      on_ready_(std::move(on_ready)),
      ended_(new_event()),
      workers_(kWorkerLimit),
      context_{.fs = &parts.fs,
               .workers = &workers_,
               .log = &parts.log,
               .transport = &transport_,
               .owners = parts.owners,
               .has_no_xattrs = parts.has_no_xattrs},
      transport_({.operations = operations(), .raw = handle_raw, .done_before = answer_done_before}, parts.arena,
                 context_),
      readers_(transport_, parts.quiet_reader) {
    transport_.on_serving([this] { begin_first(); });
}

/// In the thread that has answered INIT. Without a holder the mount lives as long as this server.
void UnionServer::begin_first() {
    SessionPage& page = transport_.page();
    page.since = static_cast<std::uint64_t>(std::time(nullptr));
    page.server = static_cast<std::uint64_t>(::getpid());
    page.state = static_cast<std::uint64_t>(SessionPage::State::serving);
    page.version = SessionPage::kVersion;
    std::vector<int> handed = {transport_.fd(), parts_.arena.fd()};
    handed.insert(handed.end(), handed_.begin(), handed_.end());
    try {
        parts_.holder.hand_over(handed);
    } catch (const std::exception& error) {  // The mount can do without.
        log_.line(error.what());
    }
    if (on_ready_) on_ready_();
}

void UnionServer::begin_next(const MountSpec& spec) {
    SessionPage& page = transport_.page();
    if (page.version != SessionPage::kVersion)
        throw store::Error(store::Errc::unsupported, "the session page of the mount is of another version");
    transport_.take_over(parts_.holder.take(HolderLink::kFuse), spec);
    page.server = static_cast<std::uint64_t>(::getpid());
    page.state = static_cast<std::uint64_t>(SessionPage::State::serving);
}

void UnionServer::ended() noexcept {
    transport_.page().state = static_cast<std::uint64_t>(SessionPage::State::ended);
}

void UnionServer::run(const MountSpec& spec, std::vector<int> handed) {
    handed_ = std::move(handed);
    if (parts_.holder.is_first())
        transport_.mount(spec);
    else
        begin_next(spec);
    readers_.start();
    joiner_ = std::jthread([this] {
        readers_.join();
        set_event(ended_.get());
    });
    wait_until_ended();
    joiner_ = {};
    workers_.finish();
}

void UnionServer::wait_until_ended() {
    std::array<pollfd, 3> waiting = {pollfd{.fd = ended_.get(), .events = POLLIN, .revents = 0},
                                     pollfd{.fd = signals_.fd(), .events = POLLIN, .revents = 0},
                                     pollfd{.fd = parts_.holder.fd(), .events = 0, .revents = 0}};
    while (true) {
        if (::poll(waiting.data(), waiting.size(), -1) < 0 && errno != EINTR) store::throw_errno(errno, "poll");
        if (waiting[0].revents != 0) return;
        if (waiting[1].revents != 0) {
            signals_.take();
            end_by_signal();
        }
        if (waiting[2].revents != 0) {
            log_.line("the holder of the mount is gone: this server goes on alone");
            waiting[2].fd = -1;
        }
    }
}

// The mount may be in use: then it is detached, which always works, and the threads are told to end.
void UnionServer::end_by_signal() {
    if (is_detached_.exchange(true)) return;
    try {
        transport_.unmount(false);
    } catch (const store::Error&) {
        try {
            transport_.unmount(true);
        } catch (const store::Error& error) {
            log_.line(error.what());
        }
        readers_.stop();
    }
}

void UnionServer::stop(bool is_forced) {
    transport_.unmount(is_forced);
    if (is_forced) readers_.stop();
}

JsonObject UnionServer::requests_as_json() {
    JsonObject requests;
    requests.number("total", transport_.counts().total());
    for (const auto& [name, count] : transport_.counts().list()) requests.number(name, count);
    return requests;
}

JsonObject UnionServer::reader_as_json() {
    const auto stats = readers_.stats();
    return JsonObject()
        .text("now", stats.is_quiet ? "quiet" : "plain")
        .flag("may_be_quiet", stats.may_be_quiet)
        .number("to_quiet", stats.to_quiet)
        .number("to_plain_idle", stats.to_plain_idle)
        .number("to_plain_clients", stats.to_plain_clients)
        .number("to_plain_busy", stats.to_plain_busy)
        .number("to_plain_late", stats.to_plain_late)
        .number("moves", stats.moves)
        .number("worker_tasks", workers_.task_count());
}

std::string real_mountpoint(const std::string& mountpoint) {
    detach_dead_mount(mountpoint);
    struct stat attributes {};
    if (::stat(mountpoint.c_str(), &attributes) != 0) store::throw_errno(errno, "mount point " + mountpoint);
    if (!S_ISDIR(attributes.st_mode)) {
        throw store::Error(store::Errc::malformed, "mount point " + mountpoint + ": not a folder");
    }
    std::array<char, PATH_MAX> room{};
    if (::realpath(mountpoint.c_str(), room.data()) == nullptr) store::throw_errno(errno, "mount point " + mountpoint);
    return room.data();
}

MountSpec mount_spec_for_caller(const std::string& mountpoint, const std::string& source) {
    return {.mountpoint = mountpoint,
            .source = source,
            .allows_others = ::geteuid() == 0 || user_may_allow_others("/etc/fuse.conf")};
}

}  // namespace lamina::unionfs
