#include "support/folder_mount.h"

#include "store/file.h"
#include "support/real_mount.h"

#include <sys/mount.h>
#include <system_error>

#include <cerrno>
#include <cstdlib>
#include <stdexcept>

namespace lamina::test {

FolderMount::FolderMount(unsigned layer_count, const std::string& disk)
    : folder_(disk.empty() ? TempDir() : TempDir(disk)), layer_count_(layer_count) {
    for (const char* const name : {"/upper", "/work", "/mnt"}) store::make_folder(folder_.path() + name);
    for (unsigned number = 0; number < layer_count; ++number) store::make_folder(layer(number));
}

FolderMount::~FolderMount() {
    ::umount2(mountpoint().c_str(), MNT_DETACH);
}

std::string FolderMount::options() const {
    std::string lowers;
    for (unsigned number = 0; number < layer_count_; ++number) lowers += (number == 0 ? "" : ":") + layer(number);
    return "lowerdir=" + lowers + ",upperdir=" + upper() + ",workdir=" + (folder_ / "work");
}

// The server of the mount before may still wait for its disk, on a machine that is busy longer than it waits.
void FolderMount::start(const std::string& more_options) {
    const char* const given = std::getenv("LAMINA_FUSE");
    constexpr int kTries = 30;
    for (int tries = 1;; ++tries) {
        const auto ran = run_program(
            {given ? given : LAMINA_FUSE_PROGRAM, "-o", options() + ",dev,suid" + more_options, mountpoint()});
        if (ran.exit_code == 0) return;
        if (tries == kTries || ran.output.find("in use by another mount") == std::string::npos)
            throw std::runtime_error("lamina-fuse: " + ran.output);
    }
}

void FolderMount::stop() {
    if (::umount2(mountpoint().c_str(), 0) != 0) throw std::system_error(errno, std::generic_category(), "umount");
}

}  // namespace lamina::test
