// Puts a mount together, bottom up: lock, base, image, changes, union, /dev/fuse, threads, control socket; and takes it
// apart the other way round. Members are declared in that order, so that a failure on the way gives back what was
// taken. The first server makes or opens each; a next one has lock, control socket, /dev/fuse and the changes' arena
// from the holder, in the order of Held, and the rest it opens again.
#include "fuse/mount_server.h"

#include "fuse/control.h"
#include "fuse/daemon_link.h"
#include "fuse/folder_lock.h"
#include "fuse/image_view.h"
#include "fuse/json_text.h"
#include "fuse/mount_state.h"
#include "fuse/quota_control.h"
#include "fuse/union_server.h"
#include "store/error.h"
#include "store/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <thread>

namespace lamina::unionfs {
namespace {

std::string real_path(const std::string& path) {
    std::array<char, PATH_MAX> room{};
    if (::realpath(path.c_str(), room.data()) == nullptr) store::throw_errno(errno, path);
    return room.data();
}

std::string store_root_of(const std::string& mount_folder) {
    return store::folder_of(store::folder_of(mount_folder));
}

/// Behind HolderLink's own descriptors.
enum Held : std::size_t { kHeldLock = HolderLink::kLog + 1, kHeldControl };

FolderLock lock_of(const std::string& mount_folder, HolderLink& holder) {
    return holder.is_first() ? FolderLock(mount_folder) : FolderLock::adopt(holder.take(kHeldLock));
}

class MountServer {
public:
    MountServer(const ServerOptions& options, HolderLink& holder, const std::function<void()>& on_ready);
    void run();

    JsonObject stats();
    Result<void> sync() { return fs_->sync(); }
    MountState& state() { return *state_; }
    const HolderLink& holder() const { return holder_; }
    std::string reads() const;
    std::string quota(const ControlSession::Members& members);
    void stop(bool is_forced);

private:
    std::unique_ptr<MountState> open_state(HolderLink& holder) const;
    void begin_quota();
    void finish();
    JsonObject changes_as_json();

    const ServerOptions options_;
    HolderLink& holder_;
    const std::string& mount_folder_ = options_.mount_folder;
    EndSignals signals_;
    ServerLog log_;
    store::UniqueFd holder_log_;
    FolderLock lock_;
    const store::MountBase base_;
    const bool is_read_only_;
    std::shared_ptr<ReadChunks> reads_;
    std::unique_ptr<ImageView> view_;
    std::unique_ptr<MountState> state_;
    std::unique_ptr<UnionFs> fs_;
    std::unique_ptr<UnionServer> server_;
    std::unique_ptr<ControlSocket> control_;
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
        if (ask == "quota") return server_.quota(members);
        if (ask == "reads") return server_.reads();
        if (ask == "stop") {
            server_.stop(members.contains("force") && members.at("force") == "true");
            return JsonObject().flag("ok", true).str();
        }
        if (ask == "upgrade") return upgrade(members.contains("program") ? members.at("program") : std::string());
        throw store::Error(store::Errc::unsupported, "ask: one of stats, sync, cut, quota, reads, upgrade, stop");
    }

private:
    static std::string plain(const Result<void>& result) {
        if (!result) store::throw_errno(std::to_underlying(result.error()), "sync");
        return JsonObject().flag("ok", true).str();
    }
    /// The holder ends this server for it: the answer may come or not.
    std::string upgrade(const std::string& program) {
        const store::UniqueFd fd(::open(program.c_str(), O_PATH | O_CLOEXEC));
        if (!fd) store::throw_errno(errno, "program " + program);
        server_.holder().ask_for_upgrade(fd.get());
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

/// The holder's lines go where the server's do.
store::UniqueFd open_holder_log(const ServerOptions& options) {
    if (options.stays_in_foreground) return store::UniqueFd(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3));
    const std::string path = options.mount_folder + "/server.log";
    return store::UniqueFd(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
}

MountServer::MountServer(const ServerOptions& options, HolderLink& holder, const std::function<void()>& on_ready)
    : options_(options),
      holder_(holder),
      log_(options.stays_in_foreground ? std::string() : mount_folder_ + "/server.log"),
      holder_log_(open_holder_log(options_)),
      lock_(lock_of(mount_folder_, holder)),
      base_(store::read_mount_base(mount_folder_)),
      is_read_only_(options.is_read_only || base_.is_read_only) {
    const std::string root = store_root_of(mount_folder_);
    const bool is_lazy = store::are_lazy(root, base_.layers);
    reads_ = std::make_shared<ReadChunks>(is_lazy ? ReadChunks::Until::end : ReadChunks::Until::start_is_over);
    auto link =
        std::make_unique<DaemonLink>(root, mount_folder_.substr(mount_folder_.rfind('/') + 1), kFetchLimit, reads_);
    auto image = store::ReadView::open(root, base_.tree, options.cache_bytes, std::move(link));
    view_ = std::make_unique<ImageView>(std::move(image),
                                        [this](const std::string& line) { log_.line(base_.image + ": " + line); });
    state_ = open_state(holder);
    fs_ = std::make_unique<UnionFs>(*view_, state_->changes(), &state_->keeper());
    begin_quota();
    auto listener = holder.is_first() ? store::UniqueFd() : holder.take(kHeldControl);
    const OwnerMap owners{.uids = IdMap::root_as(::geteuid()), .gids = IdMap::root_as(::getegid())};
    const bool has_no_xattrs = is_read_only_ && !view_->has_xattrs() && state_->changes().counts().nodes == 0;
    server_ = std::make_unique<UnionServer>(signals_,
                                            UnionServer::Parts{.fs = *fs_,
                                                               .log = log_,
                                                               .arena = state_->arena(),
                                                               .holder = holder,
                                                               .owners = owners,
                                                               .has_no_xattrs = has_no_xattrs,
                                                               .quiet_reader = options_.quiet_reader},
                                            on_ready);
    control_ = std::make_unique<ControlSocket>(mount_folder_, std::move(listener),
                                               [this] { return std::make_unique<ServerSession>(*this); });
}

std::unique_ptr<MountState> MountServer::open_state(HolderLink& holder) const {
    const MountState::Options options{.is_read_only = is_read_only_};
    if (holder.is_first()) return MountState::open(mount_folder_, base_.tree, *view_, options);
    auto arena = Arena::attach(holder.take(HolderLink::kArena));
    if (!arena) store::throw_errno(std::to_underlying(arena.error()), "the arena of the mount");
    return MountState::resume(std::move(*arena), mount_folder_, base_.tree, *view_, options);
}

/// The one that is asked for now holds at later mounts too. It may have been changed since, so that a next server takes
/// what is kept; and goes on without, rather than end the mount, when that is damaged.
void MountServer::begin_quota() try {
    if (is_read_only_) return;
    if (options_.quota && holder_.is_first()) write_quota(mount_folder_, *options_.quota);
    if (const auto limits = read_quota(mount_folder_)) (void)fs_->set_quota(*limits);
} catch (const store::Error& error) {
    if (holder_.is_first()) throw;
    log_.line(error.what());
}

std::string MountServer::quota(const ControlSession::Members& members) {
    return answer_quota(*fs_, members, [this](const QuotaLimits& limits) {
        if (is_read_only_) throw store::Error(store::Errc::read_only, "the mount is read-only: it has no changes");
        write_quota(mount_folder_, limits);
    });
}

/// What was read since this server began.
std::string MountServer::reads() const {
    const ReadChunks::Seen seen = reads_->seen();
    JsonObject answer;
    answer.flag("ok", true);
    answer.text("chunks", seen.text).number("start", seen.start_count);
    return answer.str();
}

void MountServer::run() {
    const bool is_root = ::geteuid() == 0;
    MountSpec spec = mount_spec_for_caller(options_.mountpoint, "lamina:" + base_.image);
    spec.is_read_only = is_read_only_;
    spec.allows_set_id = is_root && options_.allows_set_id;
    spec.allows_devices = is_root && options_.allows_devices;
    spec.flags = options_.mount_flags;
    spec.is_debug = options_.is_debug;
    spec.allows_resend = options_.allows_resend;
    server_->run(spec, {holder_log_.get(), lock_.fd(), control_->fd()});
    finish();
    server_->ended();
}

void MountServer::stop(bool is_forced) {
    if (const auto synced = sync(); !synced && !is_forced) {
        store::throw_errno(std::to_underlying(synced.error()), "sync");
    }
    server_->stop(is_forced);
}

void MountServer::finish() {
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

JsonObject MountServer::changes_as_json() {
    const auto usage = state_->keeper().usage();
    const auto counts = state_->changes().counts();
    const UnionFs::Quota quota = fs_->quota();
    return JsonObject()
        .number("nodes", counts.nodes)
        .number("names", counts.names)
        .number("extents", counts.extents)
        .number("arena_bytes", counts.arena_bytes)
        .number("log_bytes", usage.log_bytes)
        .number("extent_bytes", usage.extent_bytes)
        .number("quota_bytes", quota.limits.bytes)
        .number("quota_inodes", quota.limits.inodes)
        .number("used_bytes", quota.used.bytes)
        .number("used_inodes", quota.used.inodes);
}

JsonObject MountServer::stats() {
    const SessionPage& page = server_->page();
    JsonObject stats;
    stats.flag("ok", true)
        .text("image", base_.image)
        .text("mountpoint", options_.mountpoint)
        .flag("mounted", server_->is_mounted())
        .flag("read_only", is_read_only_)
        .number("pid", static_cast<std::uint64_t>(::getpid()))
        .number("holder_pid", page.holder)
        .number("restarts", page.restarts)
        .number("last_gap_us", page.last_gap_ns / 1000)
        .number("since", page.since)
        .object("requests", server_->requests_as_json())
        .object("reader", server_->reader_as_json())
        .object("changes", changes_as_json());
    return stats;
}

}  // namespace

std::string checked_mountpoint(const std::string& mountpoint, const std::string& mount_folder) {
    const std::string path = real_mountpoint(mountpoint);
    const std::string root = store_root_of(mount_folder);
    if ((path + "/").starts_with(root + "/")) {
        throw store::Error(store::Errc::malformed, "mount point " + path + ": inside the store");
    }
    if ((root + "/").starts_with(path + "/")) {
        throw store::Error(store::Errc::malformed, "mount point " + path + ": the store lies below it");
    }
    return path;
}

namespace {

/// Number of a member of an answer; 0: there is no such one, or no answer.
std::uint64_t number_in_stats(const std::string& mount_folder, const std::string& member) {
    std::string answer;
    try {
        answer = ask_control(mount_folder, R"({"ask":"stats"})");
    } catch (const store::Error&) {  // Between two servers, or one died over it.
        return 0;
    }
    const auto at = answer.find("\"" + member + "\":");
    return at == answer.npos ? 0 : std::strtoull(answer.c_str() + at + member.size() + 3, nullptr, 10);
}

bool is_same_file(const std::string& one, const std::string& other) {
    struct stat of_one {};
    struct stat of_other {};
    return ::stat(one.c_str(), &of_one) == 0 && ::stat(other.c_str(), &of_other) == 0 &&
           of_one.st_dev == of_other.st_dev && of_one.st_ino == of_other.st_ino;
}

}  // namespace

void upgrade_server(const std::string& mount_folder) {
    constexpr std::chrono::seconds kPatience{30};
    const std::uint64_t old_server = number_in_stats(mount_folder, "pid");
    const std::string program = real_path("/proc/self/exe");
    if (old_server == 0) throw store::Error(store::Errc::unavailable, mount_folder + ": no server runs here");
    try {
        ControlClient(mount_folder).ask(R"({"ask":"upgrade","program":")" + program + "\"}");
    } catch (const store::Error& error) {  // The server was replaced before it answered, or is not there.
        if (error.code() != store::Errc::unavailable) throw;
    }
    const auto until = std::chrono::steady_clock::now() + kPatience;
    std::uint64_t server = 0;
    while ((server = number_in_stats(mount_folder, "pid")) == 0 || server == old_server) {
        if (std::chrono::steady_clock::now() > until) throw store::Error(store::Errc::timed_out, "no new server came");
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    const bool is_ours = is_same_file("/proc/self/exe", "/proc/" + std::to_string(server) + "/exe");
    if (!is_ours)
        throw store::Error(store::Errc::unavailable,
                           program + " cannot go on with this mount: a server of the old program does");
    std::printf("process %llu serves, of %s\n", static_cast<unsigned long long>(server), program.c_str());
}

void resolve_paths(ServerOptions& options) {
    options.mount_folder = real_path(options.mount_folder);
    options.mountpoint = checked_mountpoint(options.mountpoint, options.mount_folder);
}

void serve_mount(const ServerOptions& options, HolderLink& holder, const std::function<void()>& on_ready) {
    try {
        MountServer(options, holder, on_ready).run();
    } catch (const store::Error& error) {  // Of a next server nobody reads standard error.
        if (!holder.is_first()) ServerLog(options.mount_folder + "/server.log").line(error.what());
        throw;
    }
}

}  // namespace lamina::unionfs
