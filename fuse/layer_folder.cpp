// Thin: one system call each, in the form that cannot be led astray. Attributes are read with getxattrat and
// listxattrat (Linux 6.13); where those are not, and of a file that is open (they take no O_PATH descriptor but as a
// folder), through /proc/self/fd of an O_PATH descriptor, which is a magic link to the very inode, also of a symlink.
#include "fuse/layer_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <cstring>
#include <memory>

namespace lamina::unionfs::layer {
namespace {

constexpr std::size_t kMaxXattrBytes = 64 << 10;
constexpr long kGetxattrat = 464;  // The same on all architectures but alpha; the C library does not know them yet.
constexpr long kListxattrat = 465;

struct XattrArguments {
    std::uint64_t value = 0;
    std::uint32_t size = 0;
    std::uint32_t flags = 0;
};

/// A name with its NUL. Names of folders are at most 255 bytes; a longer one is cut off and not found.
class Name {
public:
    explicit Name(std::string_view name) {
        const std::size_t size = std::min(name.size(), text_.size() - 1);
        std::memcpy(text_.data(), name.data(), size);
        text_[size] = '\0';
    }
    const char* get() const noexcept { return text_.data(); }

private:
    std::array<char, 260> text_;
};

Timestamp to_timestamp(const statx_timestamp& time) {
    return {.seconds = time.tv_sec, .nanoseconds = time.tv_nsec};
}

std::uint32_t type_of(unsigned char type) {
    return DTTOIF(type);
}

std::atomic<bool> g_has_xattrat{true};

/// Runs `direct`; where the kernel does not have that call, `by_path` with the name under /proc.
template <class Direct, class ByPath>
ssize_t xattr_call(int folder_fd, std::string_view name, Direct&& direct, ByPath&& by_path) {
    if (g_has_xattrat.load(std::memory_order_relaxed)) {
        const long got = direct();
        const bool is_no_folder = name.empty() && errno == ENOTDIR;
        if (got >= 0 || (errno != ENOSYS && errno != EPERM && !is_no_folder)) return got;
        if (errno == ENOSYS) g_has_xattrat.store(false, std::memory_order_relaxed);
    }
    store::UniqueFd opened;
    int fd = folder_fd;
    if (!name.empty()) {
        opened = store::UniqueFd(::openat(folder_fd, Name(name).get(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
        if (!opened) return -1;
        fd = opened.get();
    }
    return by_path(fmt::format("/proc/self/fd/{}", fd).c_str());
}

bool has_none(int error) {
    return error == ENODATA || error == EOPNOTSUPP;
}

}  // namespace

Result<Stat> stat_of(int folder_fd, std::string_view name) {
    struct statx got {};
    const int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (name.empty() ? AT_EMPTY_PATH : 0);
    if (::statx(folder_fd, Name(name).get(), flags, STATX_BASIC_STATS | STATX_BTIME, &got) != 0) return fail(errno);
    Stat stat;
    stat.device = ::makedev(got.stx_dev_major, got.stx_dev_minor);
    stat.inode = got.stx_ino;
    stat.mode = got.stx_mode;
    stat.uid = got.stx_uid;
    stat.gid = got.stx_gid;
    stat.nlink = got.stx_nlink;
    stat.size_bytes = got.stx_size;
    stat.allocated_bytes = got.stx_blocks * 512;
    stat.special = ::makedev(got.stx_rdev_major, got.stx_rdev_minor);
    stat.atime = to_timestamp(got.stx_atime);
    stat.mtime = to_timestamp(got.stx_mtime);
    stat.ctime = to_timestamp(got.stx_ctime);
    if ((got.stx_mask & STATX_BTIME) != 0)
        stat.birth_mark = static_cast<std::uint64_t>(got.stx_btime.tv_sec) * 1'000'000'000 + got.stx_btime.tv_nsec;
    stat.birth = (got.stx_mask & STATX_BTIME) != 0 ? to_timestamp(got.stx_btime) : stat.mtime;
    return stat;
}

Result<store::UniqueFd> open_in(int folder_fd, std::string_view name, int flags) {
    open_how how{};
    how.flags = static_cast<std::uint64_t>(flags | O_CLOEXEC | O_NOFOLLOW);
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
    const Name path(name.empty() ? std::string_view(".") : name);
    while (true) {
        const long fd = ::syscall(SYS_openat2, folder_fd, path.get(), &how, sizeof how);
        if (fd >= 0) return store::UniqueFd(static_cast<int>(fd));
        if (errno != EINTR) return fail(errno);
    }
}

Result<store::UniqueFd> open_file(int folder_fd, std::string_view name) {
    constexpr int kFlags = O_RDONLY | O_NONBLOCK | O_NOCTTY;
    auto opened = open_in(folder_fd, name, kFlags | O_NOATIME);
    if (!opened && opened.error() == Errno{EPERM}) return open_in(folder_fd, name, kFlags);
    return opened;
}

Result<void> list_folder(int folder_fd, const std::function<Result<void>(const Listed&)>& emit) {
    auto opened = open_in(folder_fd, {}, O_RDONLY | O_DIRECTORY | O_NOATIME);
    if (!opened && opened.error() == Errno{EPERM}) opened = open_in(folder_fd, {}, O_RDONLY | O_DIRECTORY);
    if (!opened) return std::unexpected(opened.error());
    constexpr std::size_t kRoomBytes = 64 << 10;
    const auto room = std::make_unique_for_overwrite<char[]>(kRoomBytes);
    while (true) {
        const long got = ::syscall(SYS_getdents64, opened->get(), room.get(), kRoomBytes);
        if (got < 0) return fail(errno);
        if (got == 0) return {};
        for (long at = 0; at < got;) {
            const auto* const entry = static_cast<const dirent64*>(static_cast<const void*>(room.get() + at));
            at += entry->d_reclen;
            const std::string_view name(entry->d_name);
            if (name == "." || name == ".." || name.empty() || name.contains('/')) continue;
            Listed listed{.name = name, .inode = entry->d_ino, .type = type_of(entry->d_type)};
            if (entry->d_type == DT_UNKNOWN) {
                const auto stat = stat_of(folder_fd, name);
                if (!stat && stat.error() == Errno{ENOENT}) continue;
                if (!stat) return std::unexpected(stat.error());
                listed.type = stat->mode & S_IFMT;
            }
            if (const auto emitted = emit(listed); !emitted) return emitted;
        }
    }
}

Result<std::vector<std::string>> xattr_names(int folder_fd, std::string_view name) {
    std::vector<char> room(512);
    const Name path(name.empty() ? std::string_view(".") : name);
    constexpr int kFlags = AT_SYMLINK_NOFOLLOW;
    while (true) {
        const ssize_t got = xattr_call(
            folder_fd, name,
            [&] { return ::syscall(kListxattrat, folder_fd, path.get(), kFlags, room.data(), room.size()); },
            [&](const char* by) { return ::listxattr(by, room.data(), room.size()); });
        if (got < 0 && errno == ERANGE && room.size() < kMaxXattrBytes) {
            room.resize(kMaxXattrBytes);
            continue;
        }
        if (got < 0 && has_none(errno)) return std::vector<std::string>{};
        if (got < 0) return fail(errno);
        std::vector<std::string> names;
        for (std::size_t at = 0; at < static_cast<std::size_t>(got); at += names.back().size() + 1)
            names.emplace_back(room.data() + at);
        return names;
    }
}

Result<std::optional<std::string>> xattr(int folder_fd, std::string_view name, std::string_view xattr_name) {
    std::string value(256, '\0');
    const std::string key(xattr_name);
    const Name path(name.empty() ? std::string_view(".") : name);
    constexpr int kFlags = AT_SYMLINK_NOFOLLOW;
    while (true) {
        XattrArguments arguments{.value = reinterpret_cast<std::uint64_t>(value.data()),
                                 .size = static_cast<std::uint32_t>(value.size())};
        const ssize_t got = xattr_call(
            folder_fd, name,
            [&] {
                return ::syscall(kGetxattrat, folder_fd, path.get(), kFlags, key.c_str(), &arguments, sizeof arguments);
            },
            [&](const char* by) { return ::getxattr(by, key.c_str(), value.data(), value.size()); });
        if (got < 0 && errno == ERANGE && value.size() < kMaxXattrBytes) {
            value.resize(kMaxXattrBytes);
            continue;
        }
        if (got < 0 && has_none(errno)) return std::nullopt;
        if (got < 0) return fail(errno);
        value.resize(static_cast<std::size_t>(got));
        return value;
    }
}

Result<std::string> link_target(int folder_fd, std::string_view name) {
    std::string target(4096, '\0');
    const ssize_t got = ::readlinkat(folder_fd, Name(name).get(), target.data(), target.size());
    if (got < 0) return fail(errno);
    target.resize(static_cast<std::size_t>(got));
    return target;
}

std::optional<std::array<std::uint8_t, 16>> file_system_uuid(int folder_fd) {
    struct Uuid {
        std::uint8_t size;
        std::array<std::uint8_t, 16> bytes;
    } uuid{};
    static_assert(sizeof(Uuid) == 17);
    constexpr unsigned long kGetUuid = _IOR(0x15, 0, Uuid);  // FS_IOC_GETFSUUID, Linux 6.9
    const auto opened = open_in(folder_fd, {}, O_RDONLY | O_DIRECTORY);
    if (!opened || ::ioctl(opened->get(), kGetUuid, &uuid) != 0 || uuid.size != uuid.bytes.size()) return std::nullopt;
    return uuid.bytes;
}

store::UniqueFd private_mount(store::UniqueFd folder) {
    const long cloned = ::syscall(SYS_open_tree, folder.get(), "",
                                  OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | static_cast<unsigned>(AT_EMPTY_PATH));
    return cloned >= 0 ? store::UniqueFd(static_cast<int>(cloned)) : std::move(folder);
}

}  // namespace lamina::unionfs::layer
