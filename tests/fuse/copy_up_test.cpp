// What a copy in the upper is, one property at a time: as the union shows it, as it lies in the upper, and as the next
// mount and the kernel's overlayfs show it.
#include "fuse/posix_acl.h"
#include "support/catch.h"
#include "support/directory_union.h"
#include "support/root.h"
#include "support/temp_dir.h"
#include "support/union_manifest.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

void write_file(const std::string& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
}

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
}

struct stat stat_of(const std::string& path) {
    struct stat status {};
    REQUIRE(::lstat(path.c_str(), &status) == 0);
    return status;
}

void set_times(const std::string& path, timespec atime, timespec mtime) {
    const timespec times[2] = {atime, mtime};
    REQUIRE(::utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW) == 0);
}

bool is_same(const timespec& left, const timespec& right) {
    return left.tv_sec == right.tv_sec && left.tv_nsec == right.tv_nsec;
}

/// One lower with one directory "d" and what `build` puts into it.
class Stage {
public:
    explicit Stage(const std::function<void(const std::string& directory)>& build) {
        ::umask(022);
        folders = test::make_folders(folder.path());
        REQUIRE(::mkdir(lower("d").c_str(), 0755) == 0);
        build(lower("d"));
        set_times(lower("d"), {1000, 1}, {2000, 2});
        at = std::make_unique<test::DirectoryUnion>(folders);
    }
    std::string lower(const std::string& name) const { return folders.lowers[0] + "/" + name; }
    std::string upper(const std::string& name) const { return folders.upper + "/" + name; }
    /// Copies up without a change of what stat shows, but ctime.
    void copy_up(const std::string& path) {
        const NodeId node = at->find(path);
        REQUIRE(node != 0);
        REQUIRE(at->fs->set_xattr(node, "user.touched", "1", 0));
    }
    void remount() {
        at.reset();
        at = std::make_unique<test::DirectoryUnion>(folders);
    }

    test::TempDir folder;
    test::DirectoryFolders folders;
    std::unique_ptr<test::DirectoryUnion> at;
};

}  // namespace

TEST_CASE("a copy has mode, set-id bits, owner and times of its original, and its folder keeps its times",
          "[fuse][upper][copyup][upper.copies][upper.unseen-copies]") {
    if (!test::is_root()) return;
    Stage stage([](const std::string& directory) {
        write_file(directory + "/f", "content");
        REQUIRE(::chown((directory + "/f").c_str(), 1234, 5678) == 0);
        REQUIRE(::chmod((directory + "/f").c_str(), 06751) == 0);
        set_times(directory + "/f", {-1000000000, 123456789}, {4102444800, 987654321});  // 1938 and 2100.
    });
    const auto before = stage.at->stat("/d/f");
    stage.copy_up("/d/f");
    const struct stat original = stat_of(stage.lower("d/f"));
    const struct stat copy = stat_of(stage.upper("d/f"));
    CHECK(copy.st_mode == original.st_mode);
    CHECK(copy.st_uid == 1234);
    CHECK(copy.st_gid == 5678);
    CHECK(is_same(copy.st_mtim, original.st_mtim));
    CHECK(is_same(copy.st_atim, original.st_atim));
    CHECK(is_same(stat_of(stage.upper("d")).st_mtim, {2000, 2}));
    CHECK(is_same(stat_of(stage.upper("d")).st_atim, {1000, 1}));
    const auto after = stage.at->stat("/d/f");
    CHECK(after.shown_number() == before.shown_number());
    CHECK(after.mtime == before.mtime);
    CHECK(after.mode == before.mode);
    stage.remount();
    CHECK(stage.at->stat("/d/f").shown_number() == before.shown_number());
    CHECK(stage.at->stat("/d/f").mtime == before.mtime);
}

TEST_CASE("a copy has the xattrs, ACLs and capabilities of its original", "[fuse][upper][copyup][upper.copies]") {
    if (!test::is_root()) return;
    const std::string capability("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
                                 20);
    const std::string acl(
        "\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x05\0\x39\x30\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0"
        "\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff",
        44);
    Stage stage([&](const std::string& directory) {
        const std::string file = directory + "/f";
        write_file(file, "content");
        REQUIRE(::chmod(file.c_str(), 0755) == 0);
        REQUIRE(::setxattr(file.c_str(), "user.a", "1", 1, 0) == 0);
        REQUIRE(::setxattr(file.c_str(), "user.empty", "", 0, 0) == 0);
        REQUIRE(::setxattr(file.c_str(), "trusted.t", "2", 1, 0) == 0);
        REQUIRE(::setxattr(file.c_str(), "system.posix_acl_access", acl.data(), acl.size(), 0) == 0);
        REQUIRE(::setxattr(file.c_str(), "security.capability", capability.data(), capability.size(), 0) == 0);
        REQUIRE(::mkdir((directory + "/sub").c_str(), 0700) == 0);
        write_file(directory + "/sub/g", "");
        REQUIRE(::setxattr((directory + "/sub").c_str(), "system.posix_acl_default", acl.data(), acl.size(), 0) == 0);
    });
    stage.copy_up("/d/f");
    stage.copy_up("/d/sub/g");
    const std::string file = stage.upper("d/f");
    const auto value = [](const std::string& path, const char* name) {
        char buffer[256];
        const auto size = ::getxattr(path.c_str(), name, buffer, sizeof buffer);
        return size < 0 ? std::string("none") : std::string(buffer, static_cast<std::size_t>(size));
    };
    CHECK(value(file, "user.a") == "1");
    CHECK(value(file, "user.empty") == "");
    CHECK(value(file, "trusted.t") == "2");
    CHECK(value(file, "system.posix_acl_access") == acl);
    CHECK(value(file, "security.capability") == capability);
    CHECK(value(stage.upper("d/sub"), "system.posix_acl_default") == acl);
    CHECK(value(stage.upper("d/sub/g"), "system.posix_acl_access") == "none");
    CHECK(stat_of(stage.upper("d/sub")).st_mode == stat_of(stage.lower("d/sub")).st_mode);
    CHECK(*stage.at->fs->xattr(stage.at->find("/d/f"), "security.capability") == capability);
    REQUIRE(stage.at->write("/d/f", 0, "C"));
    CHECK(value(file, "security.capability") == "none");
    CHECK(value(file, "user.a") == "1");
}

TEST_CASE("holes stay holes in a copy", "[fuse][upper][copyup][upper.copies]") {
    Stage stage([](const std::string& directory) {
        write_file(directory + "/f", "head");
        const int fd = ::open((directory + "/f").c_str(), O_WRONLY);
        REQUIRE(::pwrite(fd, "middle", 6, 10 << 20) == 6);
        REQUIRE(::ftruncate(fd, 64 << 20) == 0);
        ::close(fd);
    });
    const NodeId node = stage.at->find("/d/f");
    stage.copy_up("/d/f");
    const struct stat copy = stat_of(stage.upper("d/f"));
    CHECK(copy.st_size == 64 << 20);
    CHECK(copy.st_blocks <= stat_of(stage.lower("d/f")).st_blocks + 8);  // A block of xattrs.
    CHECK(*stage.at->fs->seek(node, 4096, true) == 10 << 20);
    CHECK(stage.at->fs->seek(node, 11 << 20, true).error() == Errno{ENXIO});
    CHECK(stage.at->stat("/d/f").allocated_bytes == static_cast<std::uint64_t>(copy.st_blocks) * 512);
    CHECK(stage.at->read_node(node, 10 << 20, 6) == "middle");
}

TEST_CASE("symlinks, fifos, sockets and devices are copied as what they are",
          "[fuse][upper][copyup][upper.copies][upper.whiteouts]") {
    if (!test::is_root()) return;
    Stage stage([](const std::string& directory) {
        REQUIRE(::symlink("../nowhere", (directory + "/link").c_str()) == 0);
        REQUIRE(::lchown((directory + "/link").c_str(), 7, 8) == 0);
        REQUIRE(::mkfifo((directory + "/fifo").c_str(), 0604) == 0);
        REQUIRE(::mknod((directory + "/sock").c_str(), S_IFSOCK | 0611, 0) == 0);
        REQUIRE(::mknod((directory + "/null").c_str(), S_IFCHR | 0666, makedev(1, 3)) == 0);
        for (const char* name : {"/link", "/fifo", "/sock", "/null"}) set_times(directory + name, {5, 6}, {7, 8});
    });
    for (const std::string name : {"link", "fifo", "sock", "null"}) {
        CAPTURE(name);
        REQUIRE(stage.at->rename("/d/" + name, "/" + name) == 0);
        const struct stat original = stat_of(stage.lower("d/" + name));
        const struct stat copy = stat_of(stage.upper(name));
        CHECK(copy.st_mode == original.st_mode);
        CHECK(copy.st_uid == original.st_uid);
        CHECK(copy.st_gid == original.st_gid);
        CHECK(copy.st_rdev == original.st_rdev);
        CHECK(is_same(copy.st_mtim, {7, 8}));
        CHECK(S_ISCHR(stat_of(stage.upper("d/" + name)).st_mode));  // The whiteout.
    }
    CHECK(*stage.at->fs->link_target(stage.at->find("/link")) == "../nowhere");
    stage.remount();
    CHECK(*stage.at->fs->link_target(stage.at->find("/link")) == "../nowhere");
    CHECK(stage.at->names("/d").empty());
}

TEST_CASE("a file of below with several names stays one file when it is changed by one of them",
          "[fuse][upper][copyup][upper.hard-links]") {
    if (!test::is_root()) return;
    Stage stage([](const std::string& directory) {
        write_file(directory + "/a", "below");
        REQUIRE(::link((directory + "/a").c_str(), (directory + "/b").c_str()) == 0);
        REQUIRE(::link((directory + "/a").c_str(), (directory + "/c").c_str()) == 0);
    });
    const auto number = stage.at->stat("/d/a").shown_number();
    REQUIRE(stage.at->write("/d/b", 0, "ABOVE"));
    REQUIRE(stage.at->unlink("/d/c") == 0);
    for (int round = 0; round < 2; ++round) {
        CAPTURE(round);
        for (const char* name : {"/d/a", "/d/b"}) {
            CHECK(stage.at->read(name) == "ABOVE");
            CHECK(stage.at->stat(name).nlink == 2);
            CHECK(stage.at->stat(name).shown_number() == number);
        }
        stage.remount();
    }
    REQUIRE(stage.at->unlink("/d/a") == 0);
    CHECK(stage.at->stat("/d/b").nlink == 1);
    REQUIRE(stage.at->unlink("/d/b") == 0);
    stage.remount();
    CHECK(stage.at->names("/d").empty());
    CHECK(std::filesystem::is_empty(stage.folders.work + "/index"));
}

TEST_CASE("links that an earlier mount left are counted right when names of them come and go",
          "[fuse][upper][copyup][upper.hard-links]") {
    if (!test::is_root()) return;
    Stage stage([](const std::string& directory) {
        write_file(directory + "/a", "below");
        REQUIRE(::link((directory + "/a").c_str(), (directory + "/b").c_str()) == 0);
        REQUIRE(::link((directory + "/a").c_str(), (directory + "/c").c_str()) == 0);
    });
    REQUIRE(stage.at->write("/d/b", 0, "ABOVE"));
    stage.remount();
    REQUIRE(stage.at->unlink("/d/a") == 0);  // By which it lies in the upper.
    REQUIRE(stage.at->link("/d/b", "/d/d") == 0);
    REQUIRE(stage.at->unlink("/d/b") == 0);
    for (int round = 0; round < 2; ++round) {
        CAPTURE(round);
        for (const char* name : {"/d/c", "/d/d"}) {
            CHECK(stage.at->read(name) == "ABOVE");
            CHECK(stage.at->stat(name).nlink == 2);
        }
        stage.remount();
    }
}

TEST_CASE("names as odd as names can be are kept in the upper", "[fuse][upper][upper.wh][names.wh]") {
    if (!test::is_root()) return;
    const std::vector<std::string> names = {".wh.x", ".wh..wh..opq", ".wh.", "two\nlines",         "\xff\xfe\x80",
                                            "-",     "a b\t\x01",    "#1",   std::string(255, 'n')};
    Stage stage([](const std::string& directory) { write_file(directory + "/x", "below"); });
    for (const std::string& name : names) {
        REQUIRE(stage.at->create("/d/" + name, "content"));
        REQUIRE(stage.at->create("/empty"));
        REQUIRE(stage.at->mkdir("/folder"));
        if (name.size() > 250) continue;
        REQUIRE(stage.at->rename("/empty", "/d/" + name + "e") == 0);
        REQUIRE(stage.at->rename("/folder", "/d/" + name + "d") == 0);
        REQUIRE(stage.at->link("/d/" + name, "/d/" + name + "l") == 0);
    }
    const auto live = test::union_manifest(*stage.at);
    stage.remount();
    CHECK(test::difference(live, test::union_manifest(*stage.at)) == "");
    CHECK(stage.at->read("/d/x") == "below");
    stage.at.reset();
    if (!test::KernelOverlay::is_possible()) return;
    const test::KernelMount kernel(stage.folders);
    CHECK(test::difference(live, test::folder_manifest(kernel.path())) == "");
}

TEST_CASE("a file of below that is only truncated is not copied", "[fuse][upper][copyup]") {
    Stage stage([](const std::string& directory) { write_file(directory + "/f", std::string(1 << 20, 'x')); });
    REQUIRE(stage.at->truncate("/d/f", 3) == 0);
    CHECK(read_file(stage.upper("d/f")) == "xxx");
    CHECK(stat_of(stage.upper("d/f")).st_blocks <= 8);
    REQUIRE(stage.at->truncate("/d/f", 5) == 0);
    CHECK(read_file(stage.upper("d/f")) == std::string("xxx\0\0", 5));
}

TEST_CASE("xattrs that steer a union are data when programs set them", "[fuse][upper][upper.xattrs]") {
    if (!test::is_root()) return;
    Stage stage([](const std::string& directory) {
        REQUIRE(::mkdir((directory + "/sub").c_str(), 0755) == 0);
        write_file(directory + "/sub/below", "below");
    });
    const NodeId sub = stage.at->find("/d/sub");
    REQUIRE(stage.at->fs->set_xattr(sub, "trusted.overlay.opaque", "y", 0));
    REQUIRE(stage.at->fs->set_xattr(sub, "user.overlay.redirect", "/etc", 0));
    CHECK(stage.at->fs->set_xattr(sub, "user.fuseoverlayfs.opaque", "y", 0).error() == Errno{EPERM});
    stage.remount();
    const NodeId again = stage.at->find("/d/sub");
    CHECK(*stage.at->fs->xattr(again, "trusted.overlay.opaque") == "y");
    CHECK(*stage.at->fs->xattr(again, "user.overlay.redirect") == "/etc");
    CHECK(stage.at->read("/d/sub/below") == "below");  // What hides in another union hides nothing here.
    REQUIRE(stage.at->fs->remove_xattr(again, "trusted.overlay.opaque"));
    CHECK(stage.at->fs->xattr(again, "trusted.overlay.opaque").error() == Errno{ENODATA});
}

TEST_CASE("files without a name live until they are forgotten, and one can be given a name",
          "[fuse][upper][upper.nameless]") {
    if (!test::is_root()) return;
    Stage stage([](const std::string& directory) { write_file(directory + "/f", "below"); });
    const auto made = stage.at->fs->make_unnamed(stage.at->find("/d"), {.mode = S_IFREG | 0640}, {});
    REQUIRE(made);
    const NodeId node = made->attributes.node;
    REQUIRE(stage.at->fs->write(node, 0, std::as_bytes(std::span("data", 4)), UnionFs::WriteBy::privileged));
    CHECK(stage.at->fs->attributes(node)->nlink == 0);
    REQUIRE(stage.at->fs->link(node, stage.at->find("/d"), "named"));
    CHECK(stage.at->read("/d/named") == "data");
    CHECK(stat_of(stage.upper("d/named")).st_nlink == 1);
    REQUIRE(stage.at->unlink("/d/named") == 0);
    CHECK(stage.at->read_node(node) == "data");
    stage.at->fs->forget(node, 2);
    CHECK(std::filesystem::is_empty(stage.folders.work + "/work"));
    // Of below, and never changed before it lost its name.
    const auto held = stage.at->fs->lookup(stage.at->find("/d"), "f");
    const NodeId file = (*held)->attributes.node;
    REQUIRE(stage.at->unlink("/d/f") == 0);
    CHECK(stage.at->read_node(file) == "below");
    REQUIRE(stage.at->fs->write(file, 0, std::as_bytes(std::span("B", 1)), UnionFs::WriteBy::privileged));
    CHECK(stage.at->read_node(file) == "Below");
    stage.at->fs->forget(file, 1);
    CHECK(std::filesystem::is_empty(stage.folders.work + "/work"));
    stage.remount();
    CHECK(stage.at->names("/d").empty());
}

TEST_CASE("a full upper is an error of the call, and leaves nothing half-made",
          "[fuse][upper][upper.errors][upper.truncate]") {
    const test::TempDir folder;
    const std::string disk = folder / "disk";
    REQUIRE(::mkdir(disk.c_str(), 0755) == 0);
    if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=1m,nr_inodes=64") != 0) {
        WARN("SKIPPED: no tmpfs can be mounted here");
        return;
    }
    {
        test::DirectoryFolders folders = test::make_folders(disk);
        folders.lowers[0] = folder / "lower";
        REQUIRE(::mkdir(folders.lowers[0].c_str(), 0755) == 0);
        REQUIRE(::mkdir((folders.lowers[0] + "/d").c_str(), 0755) == 0);
        write_file(folders.lowers[0] + "/d/big", std::string(2 << 20, 'b'));
        write_file(folders.lowers[0] + "/d/cut", std::string(2 << 20, 'c'));
        write_file(folders.lowers[0] + "/d/small", "small");
        test::DirectoryUnion at(folders);
        CHECK(at.write("/d/big", 0, "B").error() == Errno{ENOSPC});
        CHECK(at.chmod("/d/big", 0600) == ENOSPC);
        CHECK(at.rename("/d/big", "/moved") == ENOSPC);
        CHECK(at.read("/d/big").substr(0, 4) == "bbbb");
        CHECK(at.truncate("/d/cut", 3) == 0);  // What it cuts needs no room.
        CHECK(at.read("/d/cut") == "ccc");
        CHECK(std::filesystem::is_empty(folders.work + "/work"));
        REQUIRE(at.create("/full"));
        std::string written;
        const std::string block(64 << 10, 'x');
        while (const auto count = at.write("/full", written.size(), block)) written += block.substr(0, *count);
        CHECK(at.write("/full", written.size(), block).error() == Errno{ENOSPC});
        CHECK(at.read("/full") == written);
        CHECK(at.write("/d/small", 0, "S").error() == Errno{ENOSPC});
        CHECK(at.read("/d/small") == "small");
        REQUIRE(at.unlink("/full") == 0);
        CHECK(*at.write("/d/small", 0, "S") == 1);
        for (int number = 0;; ++number) {  // No inodes are left.
            REQUIRE(number < 100);
            if (const auto made = at.create("/n" + std::to_string(number)); !made) {
                CHECK(made.error() == Errno{ENOSPC});
                break;
            }
        }
        CHECK(at.mkdir("/folder").error() == Errno{ENOSPC});
        CHECK(at.unlink("/d/big") == ENOSPC);  // A whiteout needs an inode.
        CHECK(at.names("/d").contains("big"));
        REQUIRE(at.unlink("/n0") == 0);
        CHECK(at.unlink("/d/big") == 0);
        CHECK(std::filesystem::is_empty(folders.work + "/work"));
    }
    ::umount2(disk.c_str(), MNT_DETACH);
}

TEST_CASE("a file whose data is still below is read there until its data changes, whatever becomes of its names",
          "[fuse][upper][copyup][upper.metacopy]") {
    if (!test::KernelOverlay::is_possible()) {
        WARN("SKIPPED: the kernel's overlayfs cannot be mounted here");
        return;
    }
    Stage stage([](const std::string& directory) {
        for (const char* name : {"/written", "/removed", "/moved", "/first", "/second"})
            write_file(directory + name, "from below");
    });
    stage.at.reset();
    {
        const test::KernelMount kernel(stage.folders, "redirect_dir=on,index=on,metacopy=on");
        for (const char* name : {"/d/written", "/d/removed", "/d/moved", "/d/first", "/d/second"})
            REQUIRE(::chmod((kernel.path() + name).c_str(), 0600) == 0);
    }
    REQUIRE(read_file(stage.upper("d/written")) == std::string(10, '\0'));
    stage.at = std::make_unique<test::DirectoryUnion>(stage.folders);
    CHECK(stage.at->read("/d/written") == "from below");
    CHECK(*stage.at->write("/d/written", 0, "FROM") == 4);
    CHECK(stage.at->read("/d/written") == "FROM below");
    const auto held = stage.at->fs->lookup(stage.at->find("/d"), "removed");
    REQUIRE(stage.at->unlink("/d/removed") == 0);
    CHECK(stage.at->read_node((*held)->attributes.node) == "from below");
    REQUIRE(stage.at->rename("/d/moved", "/moved") == 0);
    REQUIRE(stage.at->rename("/d/first", "/d/second", {.exchange = true}) == 0);
    for (int round = 0; round < 2; ++round) {
        for (const char* name : {"/moved", "/d/first", "/d/second"}) {
            CHECK(stage.at->read(name) == "from below");
            CHECK(stage.at->stat(name).mode == (S_IFREG | 0600));
        }
        CHECK(stage.at->read("/d/written") == "FROM below");
        stage.remount();
    }
    stage.at.reset();
    const test::KernelMount kernel(stage.folders);  // Without metacopy: all that was moved is whole.
    CHECK(read_file(kernel.path() + "/moved") == "from below");
    CHECK(read_file(kernel.path() + "/d/written") == "FROM below");
}

TEST_CASE("with metacopy=on a change of attributes stores no bytes, and a later one of bytes stores all",
          "[fuse][upper][copyup][upper.metacopy]") {
    if (!test::is_root()) return;
    constexpr std::uint64_t kSize = 1 << 20;
    const std::string bytes(kSize, 'b');
    Stage stage([&](const std::string& directory) {
        for (const char* name : {"/moded", "/owned", "/timed", "/tagged", "/cut", "/written", "/moved", "/removed"})
            write_file(directory + name, bytes);
        write_file(directory + "/linked", bytes);
        REQUIRE(::link((directory + "/linked").c_str(), (directory + "/twin").c_str()) == 0);
    });
    stage.folders.makes_metacopy = true;
    stage.remount();
    const auto stored = [&](const char* name) {
        struct stat status {};
        REQUIRE(::lstat(stage.upper(name).c_str(), &status) == 0);
        CHECK(static_cast<std::uint64_t>(status.st_size) == kSize);
        return static_cast<std::uint64_t>(status.st_blocks) * 512;
    };
    const auto change = [&](const char* name, const unionfs::AttributeChange& to) {
        REQUIRE(stage.at->fs->set_attributes(stage.at->find(name), to));
    };
    const std::uint64_t shown = stage.at->stat("/d/moded").allocated_bytes;
    change("/d/moded", {.mode = 0600});
    change("/d/owned", {.uid = 0, .gid = 7});
    change("/d/timed", {.mtime = Timestamp{.seconds = -5, .nanoseconds = 1}});
    for (const char* name : {"/d/tagged", "/d/cut", "/d/written", "/d/moved", "/d/removed", "/d/linked"})
        stage.copy_up(name);
    for (const char* name : {"d/moded", "d/timed", "d/tagged", "d/cut", "d/written", "d/moved", "d/removed"})
        CHECK(stored(name) < kSize / 8);
    CHECK(stage.at->stat("/d/moded").allocated_bytes == shown);
    CHECK(stored("d/linked") >= kSize);  // Its other name would not find the bytes.
    const auto held = stage.at->fs->lookup(stage.at->find("/d"), "removed");
    REQUIRE(stage.at->unlink("/d/removed") == 0);
    CHECK(stage.at->read_node((*held)->attributes.node) == bytes);
    change("/d/cut", {.size_bytes = 100});
    CHECK(*stage.at->write("/d/written", 0, "B") == 1);
    REQUIRE(stage.at->rename("/d/moved", "/moved") == 0);
    CHECK(stored("d/written") >= kSize);
    for (int round = 0; round < 2; ++round) {
        CHECK(stage.at->read("/d/cut") == bytes.substr(0, 100));
        CHECK(stage.at->read("/d/written") == "B" + bytes.substr(1));
        for (const char* name : {"/d/moded", "/d/timed", "/d/tagged", "/moved", "/d/twin"})
            CHECK(stage.at->read(name) == bytes);
        CHECK(stage.at->stat("/d/moded").mode == (S_IFREG | 0600));
        CHECK(stage.at->stat("/d/timed").mtime.seconds == -5);
        stage.remount();
    }
    if (!test::KernelOverlay::is_possible()) return;
    stage.at.reset();
    const test::KernelMount kernel(stage.folders, "redirect_dir=on,index=on,metacopy=on");
    for (const char* name : {"/d/moded", "/d/timed", "/d/tagged", "/moved", "/d/twin"})
        CHECK(read_file(kernel.path() + name) == bytes);
}

TEST_CASE("a server without privilege changes also what its user has made read-only",
          "[fuse][upper][copyup][upper.unprivileged]") {
    constexpr uid_t kUser = 1234;
    if (::geteuid() != 0) return;
    const test::TempDir folder("/dev/shm");
    REQUIRE(::chown(folder.path().c_str(), kUser, kUser) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
        if (::setresgid(kUser, kUser, kUser) != 0 || ::setresuid(kUser, kUser, kUser) != 0) ::_exit(100);
        const auto folders = test::make_folders(folder.path());
        const std::string lower = folders.lowers[0];
        ::mkdir((lower + "/d").c_str(), 0755);
        write_file(lower + "/d/f", "below");
        ::link((lower + "/d/f").c_str(), (lower + "/g").c_str());
        ::chmod((lower + "/d/f").c_str(), 0444);
        ::chmod((lower + "/d").c_str(), 0555);
        int step = 1;
        const auto must = [&](bool is_so) {
            if (!is_so) ::_exit(step);
            ++step;
        };
        {
            test::DirectoryUnion at(folders, {.is_user = true});
            at.caller = {.uid = kUser, .gid = kUser, .umask = 022};
            must(at.chmod("/d/f", 0440) == 0);
            must(at.write("/d/f", 0, "BELOW").has_value());
            must(at.read("/g") == "BELOW");
            must(at.make("/r", S_IFDIR | 0555).has_value());
            must(at.create("/n", "x").has_value());
            must(at.chmod("/n", 0) == 0);
            must(at.write("/n", 1, "y").has_value());
            must(at.read("/n") == "xy");
            must(at.stat("/n").mode == S_IFREG);
            must(at.fs->set_xattr(at.find("/d/f"), "user.a", "1", 0).has_value());
            must(at.rename("/d", "/e") == 0);
            must(at.unlink("/g") == 0);
            must(at.stat("/e/f").nlink == 1);
        }
        test::DirectoryUnion again(folders, {.is_user = true});
        must(again.read("/e/f") == "BELOW");
        must(again.stat("/e/f").nlink == 1);
        must((again.stat("/e").mode & 07777) == 0555);
        must((again.stat("/e/f").mode & 07777) == 0440);
        must((again.stat("/n").mode & 07777) == 0);
        must(again.find("/d") == 0 && again.find("/g") == 0);
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    CHECK(WEXITSTATUS(status) == 0);
    CHECK(WIFEXITED(status));
}
