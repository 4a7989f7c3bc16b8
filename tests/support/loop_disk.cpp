#include "support/loop_disk.h"

#include "store/file.h"

#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>

namespace lamina::test {

namespace {

void run(const std::string& command) {
    if (std::system((command + " >/dev/null 2>&1").c_str()) != 0) throw std::runtime_error("failed: " + command);
}

}  // namespace

bool LoopDisk::is_possible() {
    if (::geteuid() != 0) return false;
    try {
        const LoopDisk probe(8);
        return true;
    } catch (const std::exception&) {
        return false;
    }
}

LoopDisk::LoopDisk(unsigned size_megabytes) : image_(folder_ / "image"), mount_(folder_ / "mount") {
    run("truncate -s " + std::to_string(size_megabytes) + "M " + image_);
    run("PATH=$PATH:/sbin:/usr/sbin mkfs.ext4 -q -F " + image_);
    mount();
}

LoopDisk::LoopDisk(const std::string& image_file) : image_(image_file), mount_(folder_ / "mount") {
    mount();
}

void LoopDisk::mount() {
    store::make_folder(mount_);
    run("PATH=$PATH:/sbin:/usr/sbin mount -o loop,commit=600 " + image_ + " " + mount_);
}

LoopDisk::~LoopDisk() {
    run("PATH=$PATH:/sbin:/usr/sbin umount " + mount_ + " || umount -l " + mount_ + " || true");
}

std::string LoopDisk::power_cut(const std::string& target) const {
    run("cp --sparse=always " + image_ + " " + target);
    return target;
}

}  // namespace lamina::test
