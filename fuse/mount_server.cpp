// Puts a mount together, bottom up: lock, base, image, changes, union, /dev/fuse, threads, control socket; and takes it
// apart the other way round. Members are declared in that order, so that a failure on the way gives back what was
// taken.
//
// How it ends: whatever the reason, the kernel is unmounted while the reading threads still serve (what it writes back
// then has to be answered), the threads see the end of /dev/fuse, and the main thread finishes: workers, sync, lock.
// Only a SIGTERM while files are open goes another way: the mount is taken out of the tree, and what holds files open
// gets errors once the server is gone.
#include "fuse/mount_server.h"

#include "fuse/control.h"
#include "fuse/folder_lock.h"
#include "fuse/image_view.h"
#include "fuse/json_text.h"
#include "fuse/mount_context.h"
#include "fuse/mount_state.h"
#include "fuse/ops.h"
#include "fuse/reading_threads.h"
#include "fuse/unmount.h"
#include "store/error.h"
#include "store/file.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <optional>
#include <thread>

namespace lamina::unionfs {
namespace {

constexpr unsigned kWorkerLimit = 4;

std::string real_path(const std::string& path) {
    std::array<char, PATH_MAX> room{};
    if (::realpath(path.c_str(), room.data()) == nullptr) store::throw_errno(errno, path);
    return room.data();
}

std::string store_root_of(const std::string& mount_folder) {
    return store::folder_of(store::folder_of(mount_folder));
}

/// Signals that end the server, as a descriptor; blocked for this thread and those that it starts.
class EndSignals {
public:
    EndSignals() {
        sigset_t signals;
        ::sigemptyset(&signals);
        for (const int number : {SIGTERM, SIGINT}) ::sigaddset(&signals, number);
        ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
        fd_ = store::UniqueFd(::signalfd(-1, &signals, SFD_CLOEXEC));
        if (!fd_) store::throw_errno(errno, "signalfd");
        ::signal(SIGPIPE, SIG_IGN);
        ::signal(SIGHUP, SIG_IGN);
    }
    int fd() const { return fd_.get(); }
    void take() {
        signalfd_siginfo taken{};
        if (::read(fd_.get(), &taken, sizeof taken) < 0) {
            // Nothing waits; the caller polled.
        }
    }

private:
    store::UniqueFd fd_;
};

class Event {
public:
    Event() : fd_(::eventfd(0, EFD_CLOEXEC)) {
        if (!fd_) store::throw_errno(errno, "eventfd");
    }
    void set() {
        const std::uint64_t one = 1;
        if (::write(fd_.get(), &one, sizeof one) < 0) {
            // It is set already.
        }
    }
    int fd() const { return fd_.get(); }

private:
    store::UniqueFd fd_;
};

class MountServer {
public:
    MountServer(const ServerOptions& options, const std::function<void()>& on_ready);
    void run();

    JsonObject stats();
    Result<void> sync() { return fs_->sync(); }
    MountState& state() { return *state_; }
    void stop(bool is_forced);

private:
    void mount();
    void end_by_signal();
    void finish();
    JsonObject requests_as_json();
    JsonObject reader_as_json();
    JsonObject changes_as_json();

    const ServerOptions options_;
    const std::string mount_folder_;
    const std::string mountpoint_;
    const std::int64_t since_ = std::time(nullptr);
    EndSignals signals_;
    Event ended_;
    ServerLog log_;
    FolderLock lock_;
    const store::MountBase base_;
    const bool is_read_only_;
    std::unique_ptr<ImageView> view_;
    std::unique_ptr<MountState> state_;
    std::unique_ptr<UnionFs> fs_;
    WorkerPool workers_{kWorkerLimit};
    MountContext context_;
    std::unique_ptr<Transport> transport_;
    std::unique_ptr<ReadingThreads> readers_;
    std::jthread joiner_;
    std::unique_ptr<ControlSocket> control_;
    std::atomic<bool> is_detached_{false};
};

/// What one connection to the control socket may ask.
class ServerSession : public ControlSession {
public:
    explicit ServerSession(MountServer& server) : server_(server) {}
    ~ServerSession() override {
        if (holds_cut_) server_.state().end_cut();
    }
    std::string answer(const std::string& ask, const Members& members) override {
        if (ask == "stats") return server_.stats().str();
        if (ask == "sync") return plain(server_.sync());
        if (ask == "cut") return cut();
        if (ask == "stop") {
            server_.stop(members.contains("force") && members.at("force") == "true");
            return JsonObject().flag("ok", true).str();
        }
        throw store::Error(store::Errc::unsupported, "ask: one of stats, sync, cut, stop");
    }

private:
    static std::string plain(const Result<void>& result) {
        if (!result) store::throw_errno(std::to_underlying(result.error()), "sync");
        return JsonObject().flag("ok", true).str();
    }
    std::string cut() {
        if (holds_cut_) throw store::Error(store::Errc::busy, "this connection holds a cut already");
        const auto cut = server_.state().begin_cut();
        holds_cut_ = true;
        return JsonObject()
            .flag("ok", true)
            .number("generation", cut.generation)
            .number("log_bytes", cut.log_bytes)
            .str();
    }

    MountServer& server_;
    bool holds_cut_ = false;
};

MountServer::MountServer(const ServerOptions& options, const std::function<void()>& on_ready)
    : options_(options),
      mount_folder_(real_path(options.mount_folder)),
      mountpoint_(checked_mountpoint(options.mountpoint, mount_folder_)),
      log_(options.stays_in_foreground ? std::string() : mount_folder_ + "/server.log"),
      lock_(mount_folder_),
      base_(store::read_mount_base(mount_folder_)),
      is_read_only_(options.is_read_only || base_.is_read_only) {
    auto image = store::ReadView::open(store_root_of(mount_folder_), base_.tree, options.cache_bytes);
    view_ = std::make_unique<ImageView>(std::move(image),
                                        [this](const std::string& line) { log_.line(base_.image + ": " + line); });
    state_ = MountState::open(mount_folder_, base_.tree, *view_, {.is_read_only = is_read_only_});
    fs_ = std::make_unique<UnionFs>(*view_, state_->changes(), &state_->keeper());
    transport_ = std::make_unique<Transport>(operations(), handle_raw, context_);
    context_ = {.fs = fs_.get(),
                .workers = &workers_,
                .log = &log_,
                .transport = transport_.get(),
                .owners = {.uid = ::geteuid(), .gid = ::getegid()},
                .has_no_xattrs = is_read_only_ && !view_->has_xattrs() && state_->changes().counts().nodes == 0};
    transport_->on_serving(on_ready);
    readers_ = std::make_unique<ReadingThreads>(*transport_, options.quiet_reader);
    control_ =
        std::make_unique<ControlSocket>(mount_folder_, [this] { return std::make_unique<ServerSession>(*this); });
}

void MountServer::mount() {
    const bool is_root = ::geteuid() == 0;
    transport_->mount({.mountpoint = mountpoint_,
                       .source = "lamina:" + base_.image,
                       .is_read_only = is_read_only_,
                       .allows_others = is_root || user_may_allow_others("/etc/fuse.conf"),
                       .allows_set_id = is_root && options_.allows_set_id,
                       .allows_devices = is_root && options_.allows_devices,
                       .flags = options_.mount_flags,
                       .is_debug = options_.is_debug});
}

void MountServer::run() {
    mount();
    readers_->start();
    joiner_ = std::jthread([this] {
        readers_->join();
        ended_.set();
    });
    std::array<pollfd, 2> waiting = {pollfd{.fd = ended_.fd(), .events = POLLIN, .revents = 0},
                                     pollfd{.fd = signals_.fd(), .events = POLLIN, .revents = 0}};
    while (true) {
        if (::poll(waiting.data(), waiting.size(), -1) < 0 && errno != EINTR) store::throw_errno(errno, "poll");
        if (waiting[0].revents != 0) break;
        if (waiting[1].revents != 0) {
            signals_.take();
            end_by_signal();
        }
    }
    finish();
}

// The mount may be in use: then it is detached, which always works, and the threads are told to end.
void MountServer::end_by_signal() {
    if (is_detached_.exchange(true)) return;
    try {
        transport_->unmount(false);
    } catch (const store::Error&) {
        try {
            transport_->unmount(true);
        } catch (const store::Error& error) {
            log_.line(error.what());
        }
        readers_->stop();
    }
}

void MountServer::stop(bool is_forced) {
    if (const auto synced = sync(); !synced && !is_forced) {
        store::throw_errno(std::to_underlying(synced.error()), "sync");
    }
    transport_->unmount(is_forced);
    if (is_forced) readers_->stop();
}

void MountServer::finish() {
    joiner_ = {};
    workers_.finish();
    if (const auto synced = fs_->sync(); !synced && !is_read_only_) {
        log_.line(fmt::format("the last sync failed: errno {}", std::to_underlying(synced.error())));
    }
    control_.reset();  // Whoever asked for the end has his answer.
    try {
        state_->close();
    } catch (const store::Error& error) {
        log_.line(error.what());
    }
}

JsonObject MountServer::requests_as_json() {
    JsonObject requests;
    requests.number("total", transport_->counts().total());
    for (const auto& [name, count] : transport_->counts().list()) requests.number(name, count);
    return requests;
}

JsonObject MountServer::reader_as_json() {
    const auto stats = readers_->stats();
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

JsonObject MountServer::changes_as_json() {
    const auto usage = state_->keeper().usage();
    const auto counts = state_->changes().counts();
    return JsonObject()
        .number("nodes", counts.nodes)
        .number("names", counts.names)
        .number("extents", counts.extents)
        .number("arena_bytes", counts.arena_bytes)
        .number("log_bytes", usage.log_bytes)
        .number("extent_bytes", usage.extent_bytes);
}

JsonObject MountServer::stats() {
    JsonObject stats;
    stats.flag("ok", true)
        .text("image", base_.image)
        .text("mountpoint", mountpoint_)
        .flag("mounted", transport_->is_connected())
        .flag("read_only", is_read_only_)
        .number("pid", static_cast<std::uint64_t>(::getpid()))
        .number("since", static_cast<std::uint64_t>(since_))
        .object("requests", requests_as_json())
        .object("reader", reader_as_json())
        .object("changes", changes_as_json());
    return stats;
}

}  // namespace

std::string checked_mountpoint(const std::string& mountpoint, const std::string& mount_folder) {
    detach_dead_mount(mountpoint);
    struct stat attributes {};
    if (::stat(mountpoint.c_str(), &attributes) != 0) store::throw_errno(errno, "mount point " + mountpoint);
    if (!S_ISDIR(attributes.st_mode)) {
        throw store::Error(store::Errc::malformed, "mount point " + mountpoint + ": not a folder");
    }
    const std::string path = real_path(mountpoint);
    const std::string root = store_root_of(mount_folder);
    if ((path + "/").starts_with(root + "/")) {
        throw store::Error(store::Errc::malformed, "mount point " + path + ": inside the store");
    }
    if ((root + "/").starts_with(path + "/")) {
        throw store::Error(store::Errc::malformed, "mount point " + path + ": the store lies below it");
    }
    return path;
}

void serve_mount(const ServerOptions& options, const std::function<void()>& on_ready) {
    MountServer(options, on_ready).run();
}

}  // namespace lamina::unionfs
