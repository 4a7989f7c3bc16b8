// The form of an upper directory, without a mount: which marks are in it, what is synced when, and what a mount finds.
#include "support/catch.h"
#include "support/directory_union.h"
#include "support/root.h"
#include "support/temp_dir.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

int g_data_syncs = 0;
int g_file_system_syncs = 0;

}  // namespace

// In the place of the C library's, so that it shows who calls them.
extern "C" int fdatasync(int fd) {
    ++g_data_syncs;
    return static_cast<int>(::syscall(SYS_fdatasync, fd));
}

extern "C" int syncfs(int fd) noexcept {
    ++g_file_system_syncs;
    return static_cast<int>(::syscall(SYS_syncfs, fd));
}

namespace {

void write_file(const std::string& path, const std::string& content) {
    std::ofstream(path, std::ios::binary) << content;
}

/// "none" where there is no such attribute.
std::string xattr_of(const std::string& path, const std::string& name) {
    char value[256];
    const auto size = ::lgetxattr(path.c_str(), name.c_str(), value, sizeof value);
    return size < 0 ? "none" : std::string(value, static_cast<std::size_t>(size));
}

/// Folders with a few things of below.
struct Stage {
    Stage() : folders(test::make_folders(folder.path())) {
        for (const char* const name : {"/tree", "/tree/below", "/empty"})
            REQUIRE(::mkdir((folders.lowers[0] + name).c_str(), 0755) == 0);
        for (const char* const name : {"/file", "/other", "/tree/leaf"}) write_file(folders.lowers[0] + name, "below");
    }
    std::string upper(const std::string& name) const { return folders.upper + "/" + name; }
    bool has(const std::string& name) const {
        struct stat status {};
        return ::lstat(upper(name).c_str(), &status) == 0;
    }
    bool has_whiteout(const std::string& name) const {
        struct stat status {};
        return ::lstat(upper(name).c_str(), &status) == 0 && S_ISCHR(status.st_mode) && status.st_rdev == 0;
    }

    test::TempDir folder;
    test::DirectoryFolders folders;
};

}  // namespace

TEST_CASE("whiteouts, opaque folders and redirects are in the upper where something is below, and nowhere else",
          "[fuse][upper][upper.whiteouts]") {
    if (!test::is_root()) return;
    const Stage stage;
    test::DirectoryUnion at(stage.folders);
    CHECK(at.unlink("/file") == 0);
    CHECK(stage.has_whiteout("file"));
    REQUIRE(at.create("/new", "x"));
    CHECK(at.unlink("/new") == 0);
    CHECK(!stage.has("new"));
    CHECK(at.rmdir("/empty") == 0);
    REQUIRE(at.mkdir("/empty"));
    CHECK(xattr_of(stage.upper("empty"), "trusted.overlay.opaque") == "y");
    REQUIRE(at.mkdir("/fresh"));
    CHECK(xattr_of(stage.upper("fresh"), "trusted.overlay.opaque") == "none");
    CHECK(at.rename("/tree", "/fresh/moved") == 0);
    CHECK(stage.has_whiteout("tree"));
    CHECK(xattr_of(stage.upper("fresh/moved"), "trusted.overlay.redirect") == "/tree");
}

TEST_CASE("a device that would be a whiteout cannot be made", "[fuse][upper][upper.no-device-0]") {
    const Stage stage;
    test::DirectoryUnion at(stage.folders);
    const auto made = at.fs->make(kRootNode, "device", {.mode = S_IFCHR | 0600, .device = 0}, at.caller);
    CHECK(test::UnionPaths::code(made) == EPERM);
    CHECK(!stage.has("device"));
}

TEST_CASE("what an earlier mount left in the work folder is removed", "[fuse][upper][upper.leftovers]") {
    if (!test::is_root()) return;
    const Stage stage;
    { const test::DirectoryUnion first(stage.folders); }
    const std::string left = stage.folders.work + "/work/#17";
    REQUIRE(::mkdir(left.c_str(), 0) == 0);
    write_file(left + "/inside", "x");
    write_file(stage.folders.work + "/work/#18", "x");
    const test::DirectoryUnion next(stage.folders);
    CHECK(std::filesystem::is_empty(stage.folders.work + "/work"));
}

TEST_CASE("a file that loses its name while it is held lies in the work folder until it is forgotten",
          "[fuse][upper][upper.nameless]") {
    if (!test::is_root()) return;
    const Stage stage;
    test::DirectoryUnion at(stage.folders);
    REQUIRE(at.create("/new", "content"));
    const NodeId node = (*at.fs->lookup(kRootNode, "new"))->attributes.node;
    CHECK(at.unlink("/new") == 0);
    const std::filesystem::directory_iterator left(stage.folders.work + "/work");
    REQUIRE(left != end(left));
    CHECK(left->path().filename().string().starts_with("#"));
    at.fs->forget(node, 1);
    CHECK(std::filesystem::is_empty(stage.folders.work + "/work"));
}

TEST_CASE("the data of a copy is synced before it has its name, and never on a volatile mount",
          "[fuse][upper][upper.synced-copies]") {
    for (const bool is_volatile : {false, true}) {
        const Stage stage;
        test::DirectoryUnion at(stage.folders, {.is_volatile = is_volatile});
        g_data_syncs = 0;
        CHECK(at.chmod("/file", 0600) == 0);
        CHECK(g_data_syncs == (is_volatile ? 0 : 1));
        REQUIRE(at.write("/file", 0, "B"));
        CHECK(g_data_syncs == (is_volatile ? 0 : 1));
    }
}

TEST_CASE("fsync syncs the file system of the upper, and never on a volatile mount", "[fuse][upper][upper.sync]") {
    if (!test::is_root()) return;
    for (const bool is_volatile : {false, true}) {
        const Stage stage;
        test::DirectoryUnion at(stage.folders, {.is_volatile = is_volatile});
        REQUIRE(at.create("/new", "content"));
        g_file_system_syncs = 0;
        REQUIRE(at.fs->sync());
        CHECK(g_file_system_syncs == (is_volatile ? 0 : 1));
    }
}

TEST_CASE("allocated room is the upper's", "[fuse][upper][upper.fallocate]") {
    if (!test::is_root()) return;
    const Stage stage;
    test::DirectoryUnion at(stage.folders);
    REQUIRE(at.create("/new"));
    REQUIRE(at.fs->allocate(at.find("/new"), 0, 0, 1 << 20));
    struct stat status {};
    REQUIRE(::stat(stage.upper("new").c_str(), &status) == 0);
    CHECK(status.st_size == 1 << 20);
    CHECK(status.st_blocks * 512 >= 1 << 20);
}

TEST_CASE("on a full upper a name of a file that has others goes all the same, and one link too many is left",
          "[fuse][upper][upper.full-links]") {
    const test::TempDir folder;
    const std::string disk = folder / "disk";
    REQUIRE(::mkdir(disk.c_str(), 0755) == 0);
    if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=1m") != 0) {
        WARN("SKIPPED: no tmpfs can be mounted here");
        return;
    }
    {
        test::DirectoryFolders folders = test::make_folders(disk);
        folders.lowers[0] = folder / "lower";
        REQUIRE(::mkdir(folders.lowers[0].c_str(), 0755) == 0);
        write_file(folders.lowers[0] + "/a", std::string(2 << 20, 'b'));  // More than there is room for.
        REQUIRE(::link((folders.lowers[0] + "/a").c_str(), (folders.lowers[0] + "/b").c_str()) == 0);
        {
            test::DirectoryUnion at(folders);
            CHECK(at.unlink("/b") == 0);
            CHECK(at.find("/b") == 0);
            CHECK(at.stat("/a").nlink == 1);
            CHECK(at.read_node(at.find("/a"), 0, 4) == "bbbb");
        }
        test::DirectoryUnion next(folders);
        CHECK(next.find("/b") == 0);
        CHECK(next.stat("/a").nlink == 2);
    }
    ::umount2(disk.c_str(), MNT_DETACH);
}
