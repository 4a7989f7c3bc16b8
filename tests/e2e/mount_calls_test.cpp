// System calls through a real mount, for what the kernel and the packaged libfuse have their own say in. The union's
// rules themselves are tested without a mount.
#include "store/file.h"
#include "support/catch.h"
#include "support/real_mount.h"
#include "support/tar_builder.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>

using namespace lamina;
using test::RealMount;

namespace {

std::string image() {
    return test::TarBuilder()
        .folder("folder")
        .file("folder/file", std::string(300'000, 'i'))
        .file("program", "x", {.mode = 06755})
        .tar();
}

store::UniqueFd open_file(const std::string& path, int flags) {
    store::UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, 0644));
    INFO(path << ": " << std::strerror(errno));
    REQUIRE(fd);
    return fd;
}

std::string read_text(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

struct stat stat_of(const std::string& path) {
    struct stat attributes {};
    REQUIRE(::lstat(path.c_str(), &attributes) == 0);
    return attributes;
}

}  // namespace

TEST_CASE("a file without a name can be made, written and given one", "[e2e][calls]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const auto fd = open_file(mount / "folder", O_TMPFILE | O_RDWR);
    REQUIRE(::write(fd.get(), "unnamed", 7) == 7);
    const std::string path = "/proc/self/fd/" + std::to_string(fd.get());
    REQUIRE(::linkat(AT_FDCWD, path.c_str(), AT_FDCWD, (mount / "named").c_str(), AT_SYMLINK_FOLLOW) == 0);
    CHECK(read_text(mount / "named") == "unnamed");
    CHECK(stat_of(mount / "named").st_nlink == 1);
}

TEST_CASE("an unlinked file is whole as long as it is open", "[e2e][calls][inodes.nameless]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const auto of_image = open_file(mount / "folder/file", O_RDWR);
    const auto of_mount = open_file(mount / "new", O_RDWR | O_CREAT);
    REQUIRE(::write(of_mount.get(), "mine", 4) == 4);
    REQUIRE(::unlink((mount / "folder/file").c_str()) == 0);
    REQUIRE(::unlink((mount / "new").c_str()) == 0);
    std::array<char, 4> bytes{};
    REQUIRE(::pread(of_image.get(), bytes.data(), 4, 200'000) == 4);
    CHECK(std::string(bytes.data(), 4) == "iiii");
    REQUIRE(::pwrite(of_image.get(), "over", 4, 200'000) == 4);
    REQUIRE(::pread(of_image.get(), bytes.data(), 4, 200'000) == 4);
    CHECK(std::string(bytes.data(), 4) == "over");
    REQUIRE(::pread(of_mount.get(), bytes.data(), 4, 0) == 4);
    CHECK(std::string(bytes.data(), 4) == "mine");
}

TEST_CASE("an inode tells when it was made", "[e2e][calls]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    open_file(mount / "new", O_CREAT | O_WRONLY);
    struct statx attributes {};
    REQUIRE(::statx(AT_FDCWD, (mount / "new").c_str(), 0, STATX_BASIC_STATS | STATX_BTIME, &attributes) == 0);
    CHECK((attributes.stx_mask & STATX_BTIME) != 0);
    CHECK(attributes.stx_btime.tv_sec >= attributes.stx_mtime.tv_sec - 60);
    CHECK(attributes.stx_ino == stat_of(mount / "new").st_ino);
}

TEST_CASE("xattrs are set, listed, read and removed", "[e2e][calls]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const std::string path = mount / "folder/file";
    const std::string value(5000, 'v');
    REQUIRE(::setxattr(path.c_str(), "user.big", value.data(), value.size(), XATTR_CREATE) == 0);
    CHECK((::setxattr(path.c_str(), "user.big", "x", 1, XATTR_CREATE) == -1 && errno == EEXIST));
    CHECK((::setxattr(path.c_str(), "user.none", "x", 1, XATTR_REPLACE) == -1 && errno == ENODATA));
    std::string room(6000, '\0');
    CHECK(::getxattr(path.c_str(), "user.big", nullptr, 0) == 5000);
    CHECK((::getxattr(path.c_str(), "user.big", room.data(), 100) == -1 && errno == ERANGE));
    CHECK(::getxattr(path.c_str(), "user.big", room.data(), room.size()) == 5000);
    CHECK(room.substr(0, 5000) == value);
    CHECK(::listxattr(path.c_str(), room.data(), room.size()) == 9);
    CHECK(::removexattr(path.c_str(), "user.big") == 0);
    CHECK((::getxattr(path.c_str(), "user.big", nullptr, 0) == -1 && errno == ENODATA));
}

TEST_CASE("renames without replacing and exchanges are atomic calls of their own", "[e2e][calls]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const auto rename2 = [&](const char* from, const char* to, unsigned flags) {
        return ::renameat2(AT_FDCWD, (mount / from).c_str(), AT_FDCWD, (mount / to).c_str(), flags);
    };
    CHECK((rename2("program", "folder/file", RENAME_NOREPLACE) == -1 && errno == EEXIST));
    CHECK(rename2("program", "folder", RENAME_EXCHANGE) == 0);
    CHECK(S_ISDIR(stat_of(mount / "program").st_mode));
    CHECK(read_text(mount / "folder") == "x");
    CHECK((rename2("folder", "y", RENAME_WHITEOUT) == -1 && errno == EINVAL));
}

TEST_CASE("holes stay holes through seek, fallocate and copy_file_range",
          "[e2e][calls][data.fallocate][data.copy-range]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const auto fd = open_file(mount / "sparse", O_RDWR | O_CREAT);
    REQUIRE(::ftruncate(fd.get(), 4 << 20) == 0);
    REQUIRE(::pwrite(fd.get(), "data", 4, 1 << 20) == 4);
    const off_t data = ::lseek(fd.get(), 0, SEEK_DATA);
    CHECK(data <= 1 << 20);
    CHECK(data > 0);
    CHECK(::lseek(fd.get(), 1 << 20, SEEK_HOLE) < 2 << 20);
    CHECK((::lseek(fd.get(), 3 << 20, SEEK_DATA) == -1 && errno == ENXIO));
    REQUIRE(::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 20, 4096) == 0);
    char byte = 'x';
    REQUIRE(::pread(fd.get(), &byte, 1, 1 << 20) == 1);
    CHECK(byte == 0);
    CHECK((::fallocate(fd.get(), FALLOC_FL_COLLAPSE_RANGE, 0, 4096) == -1 && errno == EOPNOTSUPP));

    const auto from = open_file(mount / "folder/file", O_RDONLY);
    off_t from_offset = 0;
    off_t to_offset = 100;
    CHECK(::copy_file_range(from.get(), &from_offset, fd.get(), &to_offset, 250'000, 0) == 250'000);
    REQUIRE(::pread(fd.get(), &byte, 1, 100 + 249'999) == 1);
    CHECK(byte == 'i');
}

TEST_CASE("big and unaligned writes come back, also mapped and direct", "[e2e][calls]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    auto fd = open_file(mount / "big", O_RDWR | O_CREAT);
    std::string bytes(5'000'001, '\0');
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 31 / 7);
    REQUIRE(::pwrite(fd.get(), bytes.data(), bytes.size(), 3) == static_cast<ssize_t>(bytes.size()));
    void* const map = ::mmap(nullptr, bytes.size() + 3, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    REQUIRE(map != MAP_FAILED);
    CHECK(std::memcmp(static_cast<char*>(map) + 3, bytes.data(), bytes.size()) == 0);
    std::memset(static_cast<char*>(map) + 1'000'003, 'm', 100'000);
    bytes.replace(1'000'000, 100'000, 100'000, 'm');
    REQUIRE(::msync(map, bytes.size() + 3, MS_SYNC) == 0);
    ::munmap(map, bytes.size() + 3);
    REQUIRE(::fsync(fd.get()) == 0);
    fd = {};
    mount.unmount();
    mount.start();
    CHECK(read_text(mount / "big").substr(3) == bytes);

    const auto direct = open_file(mount / "big", O_RDONLY | O_DIRECT);
    void* room = nullptr;
    REQUIRE(::posix_memalign(&room, 4096, 2 << 20) == 0);
    REQUIRE(::pread(direct.get(), room, 2 << 20, 4096) == 2 << 20);
    CHECK(std::memcmp(room, bytes.data() + 4093, 2 << 20) == 0);
    std::free(room);
}

TEST_CASE("programs that ask for file flags get the answer of a file system without them", "[e2e][calls]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const auto fd = open_file(mount / "folder/file", O_RDONLY);
    int flags = 0;
    CHECK((::ioctl(fd.get(), FS_IOC_GETFLAGS, &flags) == -1 && errno == ENOTTY));
    CHECK((::ioctl(fd.get(), 0x5401, &flags) == -1 && errno == ENOTTY));
}

TEST_CASE("open with O_TRUNC empties the file", "[e2e][calls]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    open_file(mount / "folder/file", O_WRONLY | O_TRUNC);
    CHECK(stat_of(mount / "folder/file").st_size == 0);
    const auto fd = open_file(mount / "folder/file", O_WRONLY | O_CREAT | O_TRUNC);
    REQUIRE(::write(fd.get(), "abc", 3) == 3);
    CHECK(read_text(mount / "folder/file") == "abc");
}

TEST_CASE("the umask applies to what is made", "[e2e][calls][attributes.umask]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const mode_t before = ::umask(027);
    ::close(::open((mount / "file").c_str(), O_CREAT | O_WRONLY, 0666));
    ::mkdir((mount / "made").c_str(), 0777);
    ::umask(before);
    CHECK((stat_of(mount / "file").st_mode & 07777) == 0640);
    CHECK((stat_of(mount / "made").st_mode & 07777) == 0750);
}

TEST_CASE("set-id bits go when another user writes", "[e2e][calls][data.privileges][attributes.chown]") {
    if (!test::can_mount()) return;
    if (::geteuid() != 0) {
        WARN("SKIPPED: needs root to become another user");
        return;
    }
    RealMount mount(image());
    REQUIRE(::chmod((mount / "program").c_str(), 06777) == 0);
    const auto root = open_file(mount.mountpoint(), O_RDONLY | O_DIRECTORY);  // The way there is closed to others.
    const pid_t child = ::fork();
    if (child == 0) {
        if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(2);
        const int fd = ::openat(root.get(), "program", O_WRONLY);
        ::_exit(fd >= 0 && ::write(fd, "y", 1) == 1 ? 0 : 1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WEXITSTATUS(status) == 0);
    CHECK((stat_of(mount / "program").st_mode & 07777) == 0777);
    REQUIRE(::chmod((mount / "program").c_str(), 06755) == 0);
    REQUIRE(::chown((mount / "program").c_str(), 1, 1) == 0);
    CHECK((stat_of(mount / "program").st_mode & 07777) == 0755);
}

TEST_CASE("devices, fifos and sockets can be made", "[e2e][calls]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    REQUIRE(::mkfifo((mount / "fifo").c_str(), 0600) == 0);
    CHECK(S_ISFIFO(stat_of(mount / "fifo").st_mode));
    REQUIRE(::mknod((mount / "socket").c_str(), S_IFSOCK | 0600, 0) == 0);
    CHECK(S_ISSOCK(stat_of(mount / "socket").st_mode));
    if (::geteuid() != 0) return;
    if (::mknod((mount / "device").c_str(), S_IFCHR | 0600, makedev(1, 300)) == 0) {
        CHECK(stat_of(mount / "device").st_rdev == makedev(1, 300));
    }
}

TEST_CASE("statvfs tells sizes and the longest name", "[e2e][calls][names.limits]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    struct statvfs usage {};
    REQUIRE(::statvfs(mount.mountpoint().c_str(), &usage) == 0);
    CHECK(usage.f_namemax == 255);
    CHECK(usage.f_bsize == 4096);
    CHECK(usage.f_bfree > 0);
    CHECK(usage.f_files > usage.f_ffree);
    const std::string longest(255, 'n');
    CHECK(::mkdir((mount / longest).c_str(), 0755) == 0);
    CHECK((::mkdir((mount / (longest + "n")).c_str(), 0755) == -1 && errno == ENAMETOOLONG));
}
