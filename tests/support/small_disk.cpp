#include "support/small_disk.h"

#include "store/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace lamina::test {

namespace {

bool run(const std::string& command) {
    return std::system(("PATH=$PATH:/sbin:/usr/sbin; (" + command + ") >/dev/null 2>&1").c_str()) == 0;
}

}  // namespace

SmallDisk::SmallDisk(const TempDir& folder, unsigned mebibytes) : path_(folder / "disk") {
    const std::string image = folder / "image";
    store::make_folder(path_);
    store::File::create(image).truncate(std::uint64_t{mebibytes} << 20);
    is_mounted_ =
        ::geteuid() == 0 && run("mkfs.ext4 -q -F -m 0 " + image) && run("mount -o loop " + image + " " + path_);
}

SmallDisk::~SmallDisk() {
    if (is_mounted_) run("umount " + path_);
}

void SmallDisk::fill() const {
    const store::UniqueFd file(::open((path_ + "/filler").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    for (std::size_t size_bytes = 1 << 20; size_bytes > 0;) {
        const std::vector<std::byte> zeros(size_bytes);
        if (::write(file.get(), zeros.data(), zeros.size()) > 0) continue;
        if (errno != ENOSPC) throw std::runtime_error("the disk cannot be filled");
        if (size_bytes > 1) {
            size_bytes = size_bytes > 4096 ? size_bytes / 4 : 1;
            continue;
        }
        ::fsync(file.get());  // What is allocated late is allocated now.
        if (::write(file.get(), zeros.data(), 1) != 1) return;
    }
}

void SmallDisk::empty() const {
    store::remove_file(path_ + "/filler");
}

}  // namespace lamina::test
