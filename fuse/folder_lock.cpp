#include "fuse/folder_lock.h"

#include "store/error.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>
#include <thread>

namespace lamina::unionfs {

FolderLock::FolderLock(const std::string& mount_folder, std::chrono::milliseconds patience) {
    constexpr std::chrono::milliseconds kPause{5};
    const std::string path = mount_folder + "/lock";
    fd_ = store::UniqueFd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd_) store::throw_errno(errno, "open " + path);
    const auto until = std::chrono::steady_clock::now() + patience;
    while (::flock(fd_.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) store::throw_errno(errno, "lock " + path);
        if (std::chrono::steady_clock::now() >= until) {
            throw store::Error(store::Errc::busy, mount_folder + ": is mounted already");
        }
        std::this_thread::sleep_for(kPause);
    }
}

std::optional<FolderLock> FolderLock::try_shared(const std::string& mount_folder) {
    const std::string path = mount_folder + "/lock";
    store::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd) store::throw_errno(errno, "open " + path);
    if (::flock(fd.get(), LOCK_SH | LOCK_NB) == 0) return FolderLock(std::move(fd));
    if (errno != EWOULDBLOCK) store::throw_errno(errno, "lock " + path);
    return std::nullopt;
}

}  // namespace lamina::unionfs
