#include "fuse/unmount.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <spawn.h>

#include <array>
#include <cerrno>

namespace lamina::unionfs {
namespace {

int run_fusermount(const std::string& mountpoint, bool is_lazy) {
    std::string program = "fusermount3";
    std::string unmount = is_lazy ? "-uz" : "-u";
    std::string quiet = "-q";
    std::string separator = "--";
    std::string path = mountpoint;
    std::array<char*, 6> arguments = {program.data(),   quiet.data(), unmount.data(),
                                      separator.data(), path.data(),  nullptr};
    pid_t child = 0;
    if (::posix_spawnp(&child, program.c_str(), nullptr, nullptr, arguments.data(), environ) != 0) return EPERM;
    int status = 0;
    while (::waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) return errno;
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : EBUSY;
}

}  // namespace

int unmount_path(const std::string& mountpoint, bool is_lazy) {
    if (::umount2(mountpoint.c_str(), UMOUNT_NOFOLLOW | (is_lazy ? MNT_DETACH : 0)) == 0) return 0;
    if (errno != EPERM) return errno;
    return run_fusermount(mountpoint, is_lazy);
}

// Only a FUSE mount whose connection is gone answers so, and it can serve nobody any more.
void detach_dead_mount(const std::string& mountpoint) {
    struct stat attributes {};
    if (::stat(mountpoint.c_str(), &attributes) == 0 || errno != ENOTCONN) return;
    unmount_path(mountpoint, true);
}

}  // namespace lamina::unionfs
