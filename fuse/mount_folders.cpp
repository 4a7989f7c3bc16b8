// A lower in which the mount point lies would lead the server back into its own mount, where it would wait for itself.
// Such a lower is read through a private copy of the mount that it lies on, which shows nothing that is mounted in it
// (as the kernel's overlayfs always does); where none can be made, it is refused.
#include "fuse/mount_folders.h"

#include "store/error.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace lamina::unionfs {
namespace {

constexpr std::chrono::seconds kPatience{10};
constexpr std::chrono::milliseconds kPause{5};
constexpr const char* kProbe = "trusted.overlay.probe";
constexpr const char* kUserProbe = "user.overlay.probe";
constexpr const char* kProbeName = "#probe";
constexpr const char* kMovedProbeName = "#probed";

struct Named {
    const char* what;
    std::string given;
    std::string real;
};

[[noreturn]] void refuse(const Named& folder, const std::string& why, store::Errc code = store::Errc::malformed) {
    throw store::Error(code, fmt::format("{} {}: {}", folder.what, folder.given, why));
}

std::string real_path(const Named& folder) {
    std::array<char, PATH_MAX> room{};
    if (::realpath(folder.given.c_str(), room.data()) == nullptr) refuse(folder, std::strerror(errno));
    struct stat status {};
    if (::stat(room.data(), &status) != 0) refuse(folder, std::strerror(errno));
    if (!S_ISDIR(status.st_mode)) refuse(folder, "not a folder");
    return room.data();
}

bool is_inside(const std::string& path, const std::string& folder) {
    return folder == "/" || path == folder || path.starts_with(folder + "/");
}

void check_apart(const std::vector<Named>& folders) {
    for (std::size_t one = 0; one < folders.size(); ++one) {
        for (std::size_t other = 0; other < one; ++other) {
            const Named& first = folders[one];
            const Named& second = folders[other];
            if (first.real == second.real) {
                refuse(first, fmt::format("the same folder as the {} {}", second.what, second.given));
            }
            const bool is_within = is_inside(first.real, second.real);
            const Named& inner = is_within ? first : second;
            const Named& outer = is_within ? second : first;
            if (is_within || is_inside(second.real, first.real)) {
                refuse(inner, fmt::format("overlaps: it lies in the {} {}", outer.what, outer.given));
            }
        }
    }
}

store::UniqueFd open_folder(const Named& folder, int flags) {
    store::UniqueFd fd(::open(folder.real.c_str(), flags | O_DIRECTORY | O_CLOEXEC));
    if (!fd) refuse(folder, std::strerror(errno));
    if (::faccessat(fd.get(), ".", R_OK | X_OK, AT_EACCESS) != 0) refuse(folder, std::strerror(errno));
    return fd;
}

store::UniqueFd open_private_copy(const Named& folder, const std::string& mountpoint) {
    store::UniqueFd fd(
        static_cast<int>(::syscall(SYS_open_tree, AT_FDCWD, folder.real.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)));
    if (!fd) {
        refuse(folder, fmt::format("the mount point {} lies in it, and it cannot be seen without ({})", mountpoint,
                                   std::strerror(errno)));
    }
    return fd;
}

void lock(const Named& folder, const store::UniqueFd& fd) {
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) refuse(folder, std::string("cannot be locked: ") + std::strerror(errno));
        if (std::chrono::steady_clock::now() >= until) {
            refuse(folder, "in use by another mount; unmount that first", store::Errc::busy);
        }
        std::this_thread::sleep_for(kPause);
    }
}

std::uint64_t mount_id(const store::UniqueFd& fd) {
    struct statx status {};
    if (::statx(fd.get(), "", AT_EMPTY_PATH, STATX_MNT_ID, &status) != 0) return 0;
    return (status.stx_mask & STATX_MNT_ID) != 0 ? status.stx_mnt_id : 0;
}

void check_one_file_system(const Named& upper, const MountFolders& folders, const Named& work) {
    struct stat of_upper {};
    struct stat of_work {};
    ::fstat(folders.upper.get(), &of_upper);
    ::fstat(folders.work.get(), &of_work);
    if (of_upper.st_dev != of_work.st_dev || mount_id(folders.upper) != mount_id(folders.work)) {
        refuse(work,
               fmt::format("on another file system, or another mount of it, than the upper folder {}", upper.given));
    }
}

/// Whether an attribute can be set. On a full disk there is no room for one, but it would have been taken.
bool can_set(const store::UniqueFd& folder, const char* name) {
    if (::fsetxattr(folder.get(), name, "y", 1, 0) != 0) return errno == ENOSPC || errno == EDQUOT;
    ::fremovexattr(folder.get(), name);
    return true;
}

/// Whether overlay's attributes can be the privileged ones, by trying in the work folder.
bool needs_user_xattrs(const Named& work, const MountFolders& folders, bool is_wanted) {
    if (!is_wanted && can_set(folders.work, kProbe)) return false;
    if (can_set(folders.work, kUserProbe)) return true;
    if (errno == EOPNOTSUPP) refuse(work, "its file system has no extended attributes, which an upper folder needs");
    refuse(work, std::string("no extended attribute can be set: ") + std::strerror(errno));
}

/// Tries in the work folder whether a whiteout can be left behind by a rename. A full disk shows nothing.
void check_whiteouts(const Named& work, const MountFolders& folders) {
    const int folder = folders.work.get();
    const store::UniqueFd probe(::openat(folder, kProbeName, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    if (!probe) return;
    const bool can = ::renameat2(folder, kProbeName, folder, kMovedProbeName, RENAME_WHITEOUT) == 0;
    const int error = errno;
    ::unlinkat(folder, kProbeName, 0);
    ::unlinkat(folder, kMovedProbeName, 0);
    if (!can && (error == EINVAL || error == ENOSYS || error == EOPNOTSUPP))
        refuse(work, "its file system leaves no whiteout behind a rename (RENAME_WHITEOUT), as an upper folder's must");
}

bool is_privileged() {
    std::FILE* const file = std::fopen("/proc/self/uid_map", "re");
    if (file == nullptr) return ::geteuid() == 0;
    unsigned first = 1;
    unsigned outside = 1;
    unsigned count = 0;
    const bool is_whole = std::fscanf(file, "%u %u %u", &first, &outside, &count) == 3 && outside == 0 && count > 65536;
    std::fclose(file);
    return ::geteuid() == 0 && is_whole;
}

void open_upper(MountFolders& folders, const Named& upper, const Named& work, bool wants_user_xattrs) {
    folders.upper = open_folder(upper, O_RDONLY);
    folders.work = open_folder(work, O_RDONLY);
    for (const auto* const folder : {&upper, &work}) {
        const store::UniqueFd& fd = folder == &upper ? folders.upper : folders.work;
        if (::faccessat(fd.get(), ".", W_OK, AT_EACCESS) != 0) refuse(*folder, std::strerror(errno));
    }
    check_one_file_system(upper, folders, work);
    lock(upper, folders.upper);
    lock(work, folders.work);
    folders.has_user_xattrs = needs_user_xattrs(work, folders, wants_user_xattrs);
    check_whiteouts(work, folders);
}

}  // namespace

MountFolders open_mount_folders(const StackMountOptions& options, const std::string& mountpoint) {
    MountFolders folders;
    std::vector<Named> all;
    if (!options.upper.empty()) {
        if (options.work.empty()) throw store::Error(store::Errc::malformed, "-o upperdir= needs -o workdir= too");
        all.push_back({.what = "upper folder", .given = options.upper, .real = {}});
        all.push_back({.what = "work folder", .given = options.work, .real = {}});
    }
    const std::size_t first_lower = all.size();
    for (const auto& lower : options.lowers) all.push_back({.what = "lower folder", .given = lower, .real = {}});
    for (Named& folder : all) folder.real = real_path(folder);
    check_apart(all);
    for (std::size_t at = 0; at < first_lower; ++at) {
        if (is_inside(mountpoint, all[at].real) && mountpoint != all[at].real) {
            refuse(all[at], fmt::format("the mount point {} lies in it", mountpoint));
        }
    }
    for (std::size_t at = first_lower; at < all.size(); ++at) {
        const bool leads_back = is_inside(mountpoint, all[at].real) && mountpoint != all[at].real;
        store::UniqueFd fd = open_folder(all[at], O_PATH);
        if (leads_back) fd = open_private_copy(all[at], mountpoint);
        folders.lowers.push_back({.path = all[at].real, .folder = std::move(fd)});
    }
    folders.has_user_xattrs = options.has_user_xattrs || !is_privileged();
    if (first_lower == 0) return folders;
    folders.upper_path = all[0].real;
    open_upper(folders, all[0], all[1], options.has_user_xattrs);
    return folders;
}

}  // namespace lamina::unionfs
