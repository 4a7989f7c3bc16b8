// What stat(2), readdir(3) and getxattr(2) say through a mount of an image, where no other file system has its say.
#include "store/file.h"
#include "support/catch.h"
#include "support/real_mount.h"
#include "support/tar_builder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <string>
#include <vector>

using namespace lamina;
using test::RealMount;

namespace {

constexpr std::int64_t kImageTime = 1'600'000'000;
constexpr std::uint64_t kFirstNewNumber = std::uint64_t{1} << 40;

/// "file" of 16 blocks, "broken" with bytes in the place of an ACL, and a folder of 600 files.
std::string image() {
    test::TarBuilder tar;
    tar.file("file", std::string(8192, 'i'), {.mtime = {kImageTime, 0}});
    tar.file("broken", "x", {.mode = 0644, .xattrs = {{"system.posix_acl_access", "no ACL"}}});
    tar.folder("many");
    for (int number = 0; number < 600; ++number) tar.file("many/f" + std::to_string(number), "x");
    return tar.tar();
}

void make_file(const std::string& path) {
    const store::UniqueFd fd(::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644));
    INFO(path << ": " << std::strerror(errno));
    REQUIRE(fd);
}

void must(int result) {
    INFO(std::strerror(errno));
    REQUIRE(result == 0);
}

struct statx stat_of(const std::string& path) {
    struct statx shown {};
    must(::statx(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &shown));
    return shown;
}

bool is_same(const statx_timestamp& left, const statx_timestamp& right) {
    return left.tv_sec == right.tv_sec && left.tv_nsec == right.tv_nsec;
}

/// A folder that is read step by step.
class Listing {
public:
    explicit Listing(const std::string& folder) : stream_(::opendir(folder.c_str())) { REQUIRE(stream_ != nullptr); }
    ~Listing() { ::closedir(stream_); }
    Listing(const Listing&) = delete;
    Listing& operator=(const Listing&) = delete;
    /// At most `count` names more, without "." and "..".
    std::vector<std::string> next(std::size_t count) {
        std::vector<std::string> names;
        while (names.size() < count) {
            const dirent* const entry = ::readdir(stream_);
            if (entry == nullptr) break;
            const std::string name = entry->d_name;
            if (name != "." && name != "..") names.push_back(name);
        }
        return names;
    }

private:
    DIR* stream_;
};

std::vector<std::string> names_in(const std::string& folder) {
    return Listing(folder).next(~std::size_t{0});
}

/// What a child process that has become nobody answers: 0 when `work` holds.
template <class Work>
int as_nobody(const Work& work) {
    const pid_t child = ::fork();
    if (child == 0) {
        if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(2);
        ::_exit(work() ? 0 : 1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    return WEXITSTATUS(status);
}

}  // namespace

TEST_CASE("new inodes are numbered in the order of their making, and no number comes again",
          "[e2e][stat][inodes.numbers]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    CHECK(stat_of(mount.mountpoint()).stx_ino == 1);
    const std::uint64_t file = stat_of(mount / "file").stx_ino;
    CHECK(file < kFirstNewNumber);
    make_file(mount / "first");
    CHECK(stat_of(mount / "first").stx_ino == kFirstNewNumber);
    must(::unlink((mount / "first").c_str()));
    must(::mkdir((mount / "second").c_str(), 0755));
    CHECK(stat_of(mount / "second").stx_ino == kFirstNewNumber + 1);
    must(::rename((mount / "file").c_str(), (mount / "second/file").c_str()));
    mount.unmount();
    mount.start();
    CHECK(stat_of(mount / "second/file").stx_ino == file);
    make_file(mount / "third");
    CHECK(stat_of(mount / "third").stx_ino == kFirstNewNumber + 2);
}

TEST_CASE("blocks are those of own bytes and of the image's, and at most the file's size",
          "[e2e][stat][inodes.blocks][inodes.folder-size]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const store::UniqueFd fd(::open((mount / "file").c_str(), O_RDWR | O_CLOEXEC));
    REQUIRE(fd);
    CHECK(stat_of(mount / "file").stx_blocks == 16);
    must(::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    CHECK(stat_of(mount / "file").stx_blocks == 16);
    const std::string bytes(4096, 'n');
    REQUIRE(::pwrite(fd.get(), bytes.data(), bytes.size(), 4096) == 4096);
    CHECK(stat_of(mount / "file").stx_blocks == 16);
    REQUIRE(::pwrite(fd.get(), bytes.data(), 1024, 16384) == 1024);
    CHECK(stat_of(mount / "file").stx_blocks == 16 + 8 + 2);
    must(::ftruncate(fd.get(), 0));
    CHECK(stat_of(mount / "file").stx_blocks == 0);
    must(::mkdir((mount / "folder").c_str(), 0755));
    CHECK(stat_of(mount / "folder").stx_size == 4096);
}

TEST_CASE("all times of one change are equal, and reading moves none",
          "[e2e][stat][attributes.one-time][attributes.atime]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    must(::mkdir((mount / "folder").c_str(), 0755));
    const struct statx made = stat_of(mount / "folder");
    const struct statx root = stat_of(mount.mountpoint());
    for (const auto& time : {made.stx_atime, made.stx_ctime, made.stx_btime, root.stx_mtime, root.stx_ctime})
        CHECK(is_same(time, made.stx_mtime));
    const timespec times[2] = {{.tv_sec = -5, .tv_nsec = 999'999'999}, {.tv_sec = 1, .tv_nsec = 1}};
    must(::utimensat(AT_FDCWD, (mount / "file").c_str(), times, 0));
    must(::utimensat(AT_FDCWD, (mount / "many").c_str(), times, 0));
    char byte = 0;
    const store::UniqueFd fd(::open((mount / "file").c_str(), O_RDWR | O_CLOEXEC));
    REQUIRE(::read(fd.get(), &byte, 1) == 1);
    CHECK(names_in(mount / "many").size() == 600);
    for (const char* const name : {"file", "many"}) {
        CHECK(stat_of(mount / name).stx_atime.tv_sec == -5);
        CHECK(stat_of(mount / name).stx_atime.tv_nsec == 999'999'999);
    }
    REQUIRE(::write(fd.get(), "x", 1) == 1);
    CHECK(stat_of(mount / "file").stx_atime.tv_sec == -5);
}

TEST_CASE("a file of the image was born when the image says, whatever is done to it", "[e2e][stat][attributes.birth]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    must(::chmod((mount / "file").c_str(), 0600));
    must(::truncate((mount / "file").c_str(), 5));
    must(::rename((mount / "file").c_str(), (mount / "many/moved").c_str()));
    for (int round = 0; round < 2; ++round) {
        CHECK(stat_of(mount / "many/moved").stx_btime.tv_sec == kImageTime);
        CHECK(stat_of(mount / "many/moved").stx_mtime.tv_sec != kImageTime);
        mount.unmount();
        mount.start();
    }
}

TEST_CASE("a listing shows each name that stays once, whatever becomes of the others meanwhile",
          "[e2e][stat][listings.once]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const auto name = [&](int number) { return mount / ("many/f" + std::to_string(number)); };
    for (int number = 0; number < 400; ++number) make_file(mount / ("many/n" + std::to_string(number)));
    std::map<std::string, int> seen;
    Listing listing(mount / "many");
    for (int number = 0; number < 600; number += 2) {  // Those of even numbers stay.
        for (const std::string& found : listing.next(3)) ++seen[found];
        must(::unlink(name(number + 1).c_str()));
        make_file(mount / ("many/made" + std::to_string(number)));
        if (number >= 400) continue;
        const std::string added = mount / ("many/n" + std::to_string(number + 1));
        must(number % 4 == 0 ? ::rename(added.c_str(), name(number).c_str()) : ::unlink(added.c_str()));
    }
    for (const std::string& found : listing.next(~std::size_t{0})) ++seen[found];
    for (int number = 0; number < 600; number += 2) CHECK(seen["f" + std::to_string(number)] == 1);
    for (int number = 0; number < 400; number += 2) CHECK(seen["n" + std::to_string(number)] == 1);
}

TEST_CASE("names of the image keep their places in a listing, and new ones come behind as they were made",
          "[e2e][stat][listings.order]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const auto expected = [names = names_in(mount / "many")](std::vector<std::string> more) {
        more.insert(more.begin(), names.begin(), names.end());
        return more;
    };
    for (const char* const name : {"many/z", "many/m", "many/a", "over"}) make_file(mount / name);
    CHECK(names_in(mount / "many") == expected({"z", "m", "a"}));
    must(::rename((mount / "over").c_str(), (mount / "many/f1").c_str()));
    must(::rename((mount / "many/a").c_str(), (mount / "many/z").c_str()));
    CHECK(names_in(mount / "many") == expected({"z", "m"}));
}

TEST_CASE("files end at 2^63 - 1 bytes through the kernel too", "[e2e][stat][data.end]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const store::UniqueFd fd(::open((mount / "file").c_str(), O_RDWR | O_CLOEXEC));
    constexpr off_t kLast = 0x7fffffffffffffff;
    CHECK(::pwrite(fd.get(), "x", 1, kLast - 1) == 1);
    CHECK(stat_of(mount / "file").stx_size == static_cast<std::uint64_t>(kLast));
    CHECK((::fallocate(fd.get(), FALLOC_FL_ZERO_RANGE, kLast, 1) == -1 && errno == EFBIG));
    char byte = 0;
    CHECK(::pread(fd.get(), &byte, 1, kLast - 1) == 1);
    CHECK(byte == 'x');
    must(::ftruncate(fd.get(), 10));
    CHECK(::pread(fd.get(), &byte, 1, 9) == 1);
    CHECK(byte == 'i');
}

TEST_CASE("copy_file_range copies up to 4 MiB a call", "[e2e][stat][data.copy-range]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const store::UniqueFd from(::open((mount / "from").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644));
    const store::UniqueFd to(::open((mount / "to").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644));
    must(::ftruncate(from.get(), 20 << 20));
    REQUIRE(::pwrite(from.get(), "end", 3, (4 << 20) - 3) == 3);
    CHECK(::copy_file_range(from.get(), nullptr, to.get(), nullptr, 20 << 20, 0) == 4 << 20);
    char bytes[3] = {};
    CHECK(::pread(to.get(), bytes, 3, (4 << 20) - 3) == 3);
    CHECK(std::string(bytes, 3) == "end");
}

TEST_CASE("xattrs keep to the limits of the system calls through the kernel too",
          "[e2e][stat][attributes.xattr-limits]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const auto set = [&](const std::string& name, const std::string& value) {
        return ::setxattr((mount / "file").c_str(), name.c_str(), value.data(), value.size(), 0) == 0 ? 0 : errno;
    };
    CHECK(set("user." + std::string(250, 'n'), "v") == 0);
    CHECK(set("user." + std::string(251, 'n'), "v") == ERANGE);
    CHECK(set("user.big", std::string(65536, 'v')) == 0);
    CHECK(set("user.big", std::string(65537, 'v')) == E2BIG);
    CHECK(::getxattr((mount / "file").c_str(), "user.big", nullptr, 0) == 65536);
    int error = 0;
    int number = 0;
    for (; error == 0; ++number) error = set("user." + std::string(200, 'x') + std::to_string(number), "");
    CHECK(error == ENOSPC);
    CHECK(number > 300);
    std::string room(65536, '\0');
    CHECK(::listxattr((mount / "file").c_str(), room.data(), room.size()) > 60'000);
}

TEST_CASE("attributes of trusted are listed for root only", "[e2e][stat][attributes.xattrs]") {
    if (!test::can_mount() || ::geteuid() != 0) return;
    RealMount mount(image());
    must(::setxattr((mount / "file").c_str(), "trusted.a", "1", 1, 0));
    must(::setxattr((mount / "file").c_str(), "user.b", "1", 1, 0));
    char room[100];
    CHECK(::listxattr((mount / "file").c_str(), room, sizeof room) == 17);
    const store::UniqueFd root(::open(mount.mountpoint().c_str(), O_RDONLY | O_DIRECTORY));
    CHECK(as_nobody([&] {  // The way to the mount is closed to him.
              const int fd = ::openat(root.get(), "file", O_RDONLY);
              return fd >= 0 && ::flistxattr(fd, room, sizeof room) == 7 && std::strcmp(room, "user.b") == 0;
          }) == 0);
}

TEST_CASE("a removed folder that is held takes no names and lists none", "[e2e][stat][ops.gone]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    must(::mkdir((mount / "folder").c_str(), 0755));
    const store::UniqueFd held(::open((mount / "folder").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    must(::rmdir((mount / "folder").c_str()));
    CHECK((::mkdirat(held.get(), "x", 0755) == -1 && errno == ENOENT));
    CHECK((::openat(held.get(), "x", O_CREAT | O_WRONLY, 0644) == -1 && errno == ENOENT));
    CHECK((::renameat(AT_FDCWD, (mount / "file").c_str(), held.get(), "x") == -1 && errno == ENOENT));
    CHECK((::mkdir((mount / "file/x").c_str(), 0755) == -1 && errno == ENOTDIR));
    struct stat shown {};
    must(::fstat(held.get(), &shown));
    CHECK(shown.st_nlink == 0);
}

TEST_CASE("bytes of an image in the place of an ACL do not keep anybody out", "[e2e][stat][attributes.foreign-acl]") {
    if (!test::can_mount() || ::geteuid() != 0) return;
    RealMount mount(image());
    const store::UniqueFd root(::open(mount.mountpoint().c_str(), O_RDONLY | O_DIRECTORY));
    const auto can_read = [&] { return ::openat(root.get(), "broken", O_RDONLY) >= 0; };
    const auto can_write = [&] { return ::openat(root.get(), "broken", O_WRONLY) >= 0; };
    CHECK(as_nobody(can_read) == 0);
    CHECK(as_nobody(can_write) == 1);
    must(::chmod((mount / "broken").c_str(), 0666));
    CHECK(as_nobody(can_write) == 0);
    CHECK(::listxattr((mount / "broken").c_str(), nullptr, 0) == 0);
    CHECK((::getxattr((mount / "broken").c_str(), "system.posix_acl_access", nullptr, 0) == -1 && errno == ENODATA));
}
