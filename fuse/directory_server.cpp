// Folders are opened where the caller is and as he named them, before the server leaves for the background and for the
// root folder; from then on descriptors are all it has. Members are made bottom up, and end the other way round.
#include "fuse/directory_server.h"

#include "fuse/arena.h"
#include "fuse/change_set.h"
#include "fuse/control.h"
#include "fuse/directory_keeper.h"
#include "fuse/folder_lock.h"
#include "fuse/mount_folders.h"
#include "fuse/mount_state.h"
#include "fuse/quota_control.h"
#include "fuse/stack_view.h"
#include "fuse/union_server.h"
#include "store/error.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace lamina::unionfs {
namespace {

constexpr std::size_t kOwnDescriptors = 160;  // Of the keeper's files, threads, standard files, libfuse.
constexpr std::size_t kLeastCached = 64;

store::UniqueFd copy_of(const store::UniqueFd& fd) {
    store::UniqueFd copy(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3));
    if (!copy) store::throw_errno(errno, "folder");
    return copy;
}

/// How many descriptors the view may cache, with as many allowed as can be.
std::size_t descriptors_for_view(std::size_t source_count) {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) store::throw_errno(errno, "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
    const std::size_t taken = source_count + kOwnDescriptors;
    if (limit.rlim_cur < taken + kLeastCached) {
        throw store::Error(store::Errc::malformed,
                           fmt::format("{} folders are too many for a limit of {} open files; ulimit -n {}",
                                       source_count, limit.rlim_cur, taken + kLeastCached));
    }
    return std::min<std::size_t>(limit.rlim_cur - taken, 1024 - kOwnDescriptors - kLeastCached);
}

/// An ordinary user's server can give nothing away: what is shown as the one owner's is kept as its own.
IdMap id_map(const std::vector<IdRange>& ranges, std::optional<std::uint32_t> squashed_to, std::uint32_t own) {
    return {.ranges = ranges,
            .is_closed = !ranges.empty(),
            .squashed_to = squashed_to,
            .own = ::geteuid() == 0 ? squashed_to.value_or(own) : own};
}

/// Of a mount without an upper: nothing changes.
class NoKeeper final : public Keeper {
public:
    Result<void> reserve(std::uint64_t, std::uint64_t) override { return fail(EROFS); }
    Result<std::uint64_t> place(std::span<const std::byte>, std::uint64_t) override { return fail(EROFS); }
    Result<void> overwrite(std::uint64_t, std::span<const std::byte>) override { return fail(EROFS); }
    bool may_overwrite(std::uint64_t, std::uint64_t) const override { return false; }
    Result<void> load(std::uint64_t, std::span<std::byte>) const override { return fail(EIO); }
    void release(std::uint64_t, std::uint64_t) override {}
    void append(const change::Change&) noexcept override {}
    Result<void> sync() override { return {}; }
    Usage usage() const override { return {}; }
};

/// What may be asked of a mount of folders that counts what its upper takes.
class QuotaSession : public ControlSession {
public:
    explicit QuotaSession(UnionFs& fs) : fs_(fs) {}
    std::string answer(const std::string& ask, const Members& members) override {
        if (ask != "quota") throw store::Error(store::Errc::unsupported, "ask: quota");
        return answer_quota(fs_, members, [](const QuotaLimits&) {});
    }

private:
    UnionFs& fs_;
};

}  // namespace

class DirectoryServer::Impl {
public:
    explicit Impl(const ServerOptions& options);
    void serve(const std::function<void()>& on_ready);

private:
    void run_server(const std::function<void()>& on_ready);
    void end();
    void make_view(MountFolders& folders);
    void add_images(std::vector<StackSource>& sources, const std::vector<std::string>& images);
    void begin_quota();

    const ServerOptions options_;
    const std::string mountpoint_;
    MountFolders folders_;
    const bool is_read_only_;
    std::vector<FolderLock> image_locks_;  // Say that the images are in use.
    ServerLog log_{std::string()};
    std::unique_ptr<StackView> view_;
    std::unique_ptr<Arena> arena_;
    std::unique_ptr<ChangeSet> changes_;
    std::unique_ptr<Keeper> keeper_;
    std::unique_ptr<UnionFs> fs_;
    std::unique_ptr<ControlSocket> control_;  // In the work folder, when there is a quota to be changed.
};

DirectoryServer::Impl::Impl(const ServerOptions& options)
    : options_(options),
      mountpoint_(real_mountpoint(options.mountpoint)),
      folders_(open_mount_folders(options.stack, mountpoint_)),
      is_read_only_(options.is_read_only || !folders_.upper) {
    make_view(folders_);
    if (::chdir("/") != 0) store::throw_errno(errno, "/");
}

void DirectoryServer::Impl::add_images(std::vector<StackSource>& sources, const std::vector<std::string>& images) {
    for (const std::string& folder : images) {
        static_cast<void>(store::read_mount_base(folder));  // Before a lock is put into a folder that is no mount's.
        image_locks_.emplace_back(folder);
        const store::MountBase base =
            store::read_mount_base(folder);  // It is not discarded any more, if it was not yet.
        const std::string store_root = store::folder_of(store::folder_of(folder));
        sources.push_back({.name = base.image,
                           .folder = {},
                           .image = store::ReadView::open(store_root, base.tree, options_.cache_bytes)});
    }
}

void DirectoryServer::Impl::make_view(MountFolders& folders) {
    std::vector<StackSource> sources;
    if (folders.upper) {
        sources.push_back({.name = folders.upper_path, .folder = copy_of(folders.upper), .image = {}});
    }
    add_images(sources, options_.stack.images_above);
    for (auto& lower : folders.lowers) {
        sources.push_back({.name = lower.path, .folder = std::move(lower.folder), .image = {}});
    }
    add_images(sources, options_.stack.images_below);
    StackOptions stack;
    stack.has_upper = static_cast<bool>(folders.upper);
    if (folders.upper) stack.work_folder = copy_of(folders.work);
    stack.xattrs = {.is_user = folders.has_user_xattrs,
                    .follows_redirects = options_.stack.follows_redirects,
                    .follows_metacopy = options_.stack.follows_metacopy};
    stack.override_stat = options_.stack.override_stat;
    stack.descriptor_limit = descriptors_for_view(sources.size());
    stack.report = [this](const std::string& line) { log_.line(line); };
    view_ = std::make_unique<StackView>(std::move(sources), std::move(stack));
}

void DirectoryServer::Impl::begin_quota() {
    if (!options_.quota || is_read_only_) return;
    if (const auto set = fs_->set_quota(*options_.quota); !set)
        store::throw_errno(std::to_underlying(set.error()), folders_.upper_path + ": counting what lies in it");
    try {
        control_ = std::make_unique<ControlSocket>(fmt::format("/proc/self/fd/{}", folders_.work.get()),
                                                   [this] { return std::make_unique<QuotaSession>(*fs_); });
    } catch (const store::Error& error) {  // A file system without sockets: the limit holds, and stays as it is.
        log_.line(error.what());
    }
}

void DirectoryServer::Impl::serve(const std::function<void()>& on_ready) {
    run_server(on_ready);
    end();
}

void DirectoryServer::Impl::run_server(const std::function<void()>& on_ready) {
    EndSignals signals;
    auto arena = Arena::create();
    if (!arena) store::throw_errno(std::to_underlying(arena.error()), "arena");
    arena_ = std::move(*arena);
    changes_ = std::make_unique<ChangeSet>(*arena_, *view_);
    if (folders_.upper && !is_read_only_) {
        keeper_ = std::make_unique<DirectoryKeeper>(
            *view_, *changes_,
            DirectoryKeeper::Folders{.upper = copy_of(folders_.upper), .work = copy_of(folders_.work)},
            DirectoryKeeper::Options{.is_volatile = options_.stack.is_volatile,
                                     // overlayfs follows none of the user's attributes of that kind.
                                     .makes_metacopy = options_.stack.makes_metacopy && !folders_.has_user_xattrs});
    } else {
        keeper_ = std::make_unique<NoKeeper>();
    }
    fs_ = std::make_unique<UnionFs>(*view_, *changes_, keeper_.get());
    begin_quota();
    const OwnerMap owners{.uids = id_map(options_.stack.uids, options_.stack.squash_uid, ::geteuid()),
                          .gids = id_map(options_.stack.gids, options_.stack.squash_gid, ::getegid())};
    HolderLink holder = HolderLink::none();
    UnionServer server(signals,
                       {.fs = *fs_,
                        .log = log_,
                        .arena = *arena_,
                        .holder = holder,
                        .owners = owners,
                        .quiet_reader = options_.quiet_reader},
                       on_ready);
    const bool is_root = ::geteuid() == 0;
    MountSpec spec =
        mount_spec_for_caller(mountpoint_, options_.stack.source_name.empty() ? "lamina" : options_.stack.source_name);
    spec.is_read_only = is_read_only_;
    spec.allows_set_id = is_root && options_.allows_set_id;
    spec.allows_devices = is_root && options_.allows_devices;
    spec.flags = options_.mount_flags;
    spec.is_debug = options_.is_debug;
    server.run(spec, {});
}

// All is in the upper by now: whoever mounts it next, or waits to, need not wait for a slow disk too.
void DirectoryServer::Impl::end() {
    control_.reset();
    fs_.reset();
    keeper_.reset();
    if (is_read_only_) return;
    for (const auto* const folder : {&folders_.upper, &folders_.work}) ::flock(folder->get(), LOCK_UN);
    if (options_.stack.is_volatile || ::syncfs(folders_.upper.get()) == 0) return;
    log_.line(fmt::format("the last sync failed: {}", std::strerror(errno)));
}

DirectoryServer::DirectoryServer(const ServerOptions& options) : impl_(std::make_unique<Impl>(options)) {}
DirectoryServer::~DirectoryServer() = default;

void DirectoryServer::serve(const std::function<void()>& on_ready) {
    impl_->serve(on_ready);
}

}  // namespace lamina::unionfs
