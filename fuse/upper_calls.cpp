#include "fuse/upper_calls.h"

#include "fuse/upper_meter.h"

#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <vector>

namespace lamina::unionfs {
namespace {

void step() {
    if (const auto hook = g_upper_step.load(std::memory_order_relaxed)) hook();
}

Result<void> done(long result) {
    if (result < 0) return fail(errno);
    return {};
}

timespec time_or_omit(const std::optional<Timestamp>& time) {
    if (!time) return {.tv_sec = 0, .tv_nsec = UTIME_OMIT};
    return {.tv_sec = static_cast<time_t>(time->seconds), .tv_nsec = static_cast<long>(time->nanoseconds)};
}

constexpr unsigned kStatusMask = STATX_BASIC_STATS | STATX_BTIME;

}  // namespace

Result<store::UniqueFd> open_at(const Spot& spot, int flags) {
    store::UniqueFd fd(::openat(spot.fd(), spot.name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC));
    if (!fd) return fail(errno);
    return fd;
}

Result<struct statx> status_of(const Spot& spot) {
    struct statx status {};
    if (::statx(spot.fd(), spot.name.c_str(), AT_SYMLINK_NOFOLLOW, kStatusMask, &status) != 0) return fail(errno);
    return status;
}

Result<struct statx> status_of(int fd) {
    struct statx status {};
    if (::statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, kStatusMask, &status) != 0) return fail(errno);
    return status;
}

bool exists_at(const Spot& spot) {
    return ::faccessat(spot.fd(), spot.name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

Result<std::string> link_target_at(const Spot& spot) {
    std::string target(PATH_MAX, '\0');
    const auto size = ::readlinkat(spot.fd(), spot.name.c_str(), target.data(), target.size());
    if (size < 0) return fail(errno);
    target.resize(static_cast<std::size_t>(size));
    return target;
}

Timestamp time_of(const struct statx_timestamp& time) {
    return {.seconds = time.tv_sec, .nanoseconds = time.tv_nsec};
}

namespace {

/// A call that makes an inode. One that a quota has no room for is taken back before anybody has seen it.
template <class Call>
auto make_at(const Spot& spot, int undo_flags, Call&& call) -> decltype(call()) {
    if (const auto room = UpperMeter::room_for({.inodes = 1}); !room) return std::unexpected(room.error());
    UpperMeter::Names names(spot);
    auto result = call();
    if (!result || !names.is_counted()) return result;
    names.done(&spot, 1);
    if (!names.is_over()) return result;
    names.loses(spot);
    if (::unlinkat(spot.fd(), spot.name.c_str(), undo_flags) == 0) names.done(nullptr, 0);
    return fail(EDQUOT);
}

Result<void> remove_at(const Spot& spot, int flags) {
    step();
    UpperMeter::Names names(spot);
    names.loses(spot);
    const auto removed = done(::unlinkat(spot.fd(), spot.name.c_str(), flags));
    if (removed) names.done(nullptr, 0);
    return removed;
}

}  // namespace

Result<store::UniqueFd> create_at(const Spot& spot) {
    step();
    return make_at(spot, 0, [&]() -> Result<store::UniqueFd> {
        store::UniqueFd fd(
            ::openat(spot.fd(), spot.name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
        if (!fd) return fail(errno);
        return fd;
    });
}

Result<void> make_folder_at(const Spot& spot) {
    step();
    return make_at(spot, AT_REMOVEDIR, [&] { return done(::mkdirat(spot.fd(), spot.name.c_str(), 0700)); });
}

Result<void> make_symlink_at(const Spot& spot, const std::string& target) {
    step();
    return make_at(spot, 0, [&] { return done(::symlinkat(target.c_str(), spot.fd(), spot.name.c_str())); });
}

Result<void> make_node_at(const Spot& spot, std::uint32_t mode, std::uint64_t device) {
    step();
    return make_at(spot, 0,
                   [&] { return done(::mknodat(spot.fd(), spot.name.c_str(), mode, static_cast<dev_t>(device))); });
}

Result<void> link_at(const Spot& from, const Spot& to) {
    step();
    UpperMeter::Names names(to);
    const auto linked = done(::linkat(from.fd(), from.name.c_str(), to.fd(), to.name.c_str(), 0));
    if (linked) names.done(nullptr, 0);
    return linked;
}

Result<void> rename_at(const Spot& from, const Spot& to, unsigned flags) {
    step();
    const std::uint64_t made_inodes = (flags & RENAME_WHITEOUT) ? 1 : 0;
    if (const auto room = UpperMeter::room_for({.inodes = made_inodes}); !room) return room;
    UpperMeter::Names names(from, &to);
    if (!(flags & (RENAME_EXCHANGE | RENAME_NOREPLACE))) names.loses(to);
    const auto renamed = done(::renameat2(from.fd(), from.name.c_str(), to.fd(), to.name.c_str(), flags));
    if (renamed) names.done(nullptr, made_inodes);
    return renamed;
}

Result<void> unlink_at(const Spot& spot) {
    return remove_at(spot, 0);
}

Result<void> remove_folder_at(const Spot& spot) {
    return remove_at(spot, AT_REMOVEDIR);
}

UpperInode::UpperInode(int fd) : fd_(fd), path_("/proc/self/fd/" + std::to_string(fd)) {}

Result<UpperInode> UpperInode::open(const Spot& spot) {
    auto fd = open_at(spot, O_PATH);
    if (!fd) return std::unexpected(fd.error());
    UpperInode inode(fd->get());
    inode.own_ = std::move(*fd);
    return inode;
}

Result<void> UpperInode::set_owner(const Owner& owner) const {
    step();
    return done(::fchownat(fd_, "", owner.uid, owner.gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
}

Result<void> UpperInode::set_mode(std::uint32_t permissions) const {
    step();
    return done(::chmod(path_.c_str(), permissions & 07777));
}

Result<void> UpperInode::set_times(const std::optional<Timestamp>& atime, const std::optional<Timestamp>& mtime) const {
    step();
    const timespec times[2] = {time_or_omit(atime), time_or_omit(mtime)};
    return done(::utimensat(AT_FDCWD, path_.c_str(), times, 0));
}

Result<void> UpperInode::set_xattr(std::string_view name, std::string_view value) const {
    const UpperMeter::OneFile counted(fd_);
    return with_permission(UpperInode(fd_), [&] {
        step();
        return done(::setxattr(path_.c_str(), std::string(name).c_str(), value.data(), value.size(), 0));
    });
}

Result<void> UpperInode::remove_xattr(std::string_view name) const {
    const UpperMeter::OneFile counted(fd_);
    return with_permission(UpperInode(fd_), [&] {
        step();
        return done(::removexattr(path_.c_str(), std::string(name).c_str()));
    });
}

Result<std::optional<std::string>> UpperInode::xattr(std::string_view name) const {
    std::string value(256, '\0');
    for (;;) {
        const auto size = ::getxattr(path_.c_str(), std::string(name).c_str(), value.data(), value.size());
        if (size >= 0) {
            value.resize(static_cast<std::size_t>(size));
            return value;
        }
        if (errno == ENODATA || errno == EOPNOTSUPP) return std::nullopt;
        if (errno != ERANGE || value.size() >= XATTR_SIZE_MAX) return fail(errno);
        value.resize(XATTR_SIZE_MAX);
    }
}

Result<std::size_t> write_at(int fd, std::uint64_t offset_bytes, std::span<const std::byte> data) {
    step();
    if (UpperMeter::is_active()) {
        const std::uint64_t growth = UpperMeter::write_growth(fd, offset_bytes, data.size());
        if (const auto room = UpperMeter::room_for({.bytes = growth}); !room) return std::unexpected(room.error());
    }
    const UpperMeter::OneFile counted(fd);
    for (;;) {
        const auto count = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset_bytes));
        if (count >= 0) return static_cast<std::size_t>(count);
        if (errno != EINTR) return fail(errno);
    }
}

Result<void> resize_file(int fd, std::uint64_t size_bytes) {
    step();
    const UpperMeter::OneFile counted(fd);
    return done(::ftruncate(fd, static_cast<off_t>(size_bytes)));
}

Result<void> allocate_file(int fd, int mode, std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    step();
    if (UpperMeter::is_active() && !(mode & FALLOC_FL_PUNCH_HOLE)) {
        const auto status = status_of(fd);
        if (!status) return std::unexpected(status.error());
        const bool is_behind_end = (mode & FALLOC_FL_KEEP_SIZE) && offset_bytes + size_bytes > status->stx_size;
        if (is_behind_end) return fail(EOPNOTSUPP);  // What lies behind the end of a file is in no account.
        const std::uint64_t growth = UpperMeter::write_growth(fd, offset_bytes, size_bytes);
        if (const auto room = UpperMeter::room_for({.bytes = growth}); !room) return room;
    }
    const UpperMeter::OneFile counted(fd);
    return done(::fallocate(fd, mode, static_cast<off_t>(offset_bytes), static_cast<off_t>(size_bytes)));
}

Result<void> sync_data(int fd) {
    return done(::fdatasync(fd));
}

}  // namespace lamina::unionfs
