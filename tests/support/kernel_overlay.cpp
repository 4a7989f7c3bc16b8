#include "support/kernel_overlay.h"

#include "store/file.h"
#include "support/temp_dir.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace lamina::test {
namespace {

[[noreturn]] void refuse(const std::string& what) {
    throw std::runtime_error(what + ": " + std::strerror(errno));
}

void configure(int fs, const std::string& key, const std::string& value) {
    if (::fsconfig(fs, FSCONFIG_SET_STRING, key.c_str(), value.c_str(), 0) != 0) refuse(key + "=" + value);
}

}  // namespace

bool KernelOverlay::is_possible() {
    if (::geteuid() != 0) return false;
    const TempDir folder;
    for (const char* const name : {"lower", "upper", "work", "merged"}) store::make_folder(folder / name);
    try {
        const KernelOverlay mounted({.lowers = {folder / "lower"}, .upper = folder / "upper", .work = folder / "work"},
                                    "", folder / "merged");
        return true;
    } catch (const std::runtime_error&) {
        return false;
    }
}

namespace {

/// False: an earlier mount of the upper still lives, in a mount namespace that some other process made meanwhile.
bool mount_overlay(const KernelOverlay::Layers& layers, const std::string& options, const std::string& mountpoint) {
    const store::UniqueFd fs(::fsopen("overlay", FSOPEN_CLOEXEC));
    if (!fs) refuse("fsopen");
    for (const std::string& lower : layers.lowers) configure(fs.get(), "lowerdir+", lower);
    if (!layers.upper.empty()) {
        configure(fs.get(), "upperdir", layers.upper);
        configure(fs.get(), "workdir", layers.work);
    }
    std::istringstream words(options);
    for (std::string word; std::getline(words, word, ',');) {
        const auto equals = word.find('=');
        if (equals != std::string::npos) {
            configure(fs.get(), word.substr(0, equals), word.substr(equals + 1));
        } else if (::fsconfig(fs.get(), FSCONFIG_SET_FLAG, word.c_str(), nullptr, 0) != 0) {
            refuse(word);
        }
    }
    if (::fsconfig(fs.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
        if (errno == EBUSY) return false;
        refuse("overlayfs");
    }
    const store::UniqueFd mount(::fsmount(fs.get(), FSMOUNT_CLOEXEC, 0));
    if (!mount) refuse("fsmount");
    if (::move_mount(mount.get(), "", AT_FDCWD, mountpoint.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0) refuse(mountpoint);
    return true;
}

}  // namespace

KernelOverlay::KernelOverlay(const Layers& layers, const std::string& options, const std::string& mountpoint)
    : mountpoint_(mountpoint) {
    constexpr int kTries = 500;
    for (int count = 0; count < kTries; ++count) {
        if (mount_overlay(layers, options, mountpoint)) return;
        ::usleep(20'000);
    }
    refuse("overlayfs");
}

KernelOverlay::~KernelOverlay() {
    if (::umount2(mountpoint_.c_str(), 0) != 0) ::umount2(mountpoint_.c_str(), MNT_DETACH);
}

void run_script(const std::string& folder, const std::string& script) {
    const TempDir scratch;
    {
        std::ofstream file(scratch / "script");
        file << "set -e\ncd '" << folder << "'\n" << script;
    }
    const std::string command = "bash " + (scratch / "script") + " >" + (scratch / "out") + " 2>&1";
    if (std::system(command.c_str()) == 0) return;
    std::ifstream out(scratch / "out");
    std::stringstream text;
    text << out.rdbuf();
    throw std::runtime_error("script failed: " + text.str());
}

}  // namespace lamina::test
