// What stat(2) says of inodes, without a mount: numbers, sizes, times.
#include "fuse/posix_acl.h"
#include "support/catch.h"
#include "support/union_fixture.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <string>

using namespace lamina;
using namespace lamina::unionfs;
using test::UnionFixture;

namespace {

constexpr Timestamp kBirth{.seconds = 42, .nanoseconds = 7};

/// A file of 16 blocks, all of them on disk, with a birth time of its own.
void one_file(test::FakeView& view) {
    const NodeId node = view.file(kRootNode, "file", std::string(8192, 'v'));
    view.node(node).attributes.birth = kBirth;
    view.node(node).attributes.atime = {.seconds = 900, .nanoseconds = 1};
}

}  // namespace

TEST_CASE("numbers of new inodes are never used again", "[fuse][union][inodes.numbers]") {
    UnionFixture at(one_file);
    CHECK(at.find("/") == kRootNode);
    REQUIRE(at.create("/first"));
    CHECK(at.find("/first") == kFirstNewNode);
    CHECK(at.unlink("/first") == 0);
    REQUIRE(at.mkdir("/second"));
    CHECK(at.find("/second") == kFirstNewNode + 1);
    REQUIRE(at.write("/file", 0, "x"));
    CHECK(at.find("/file") < kFirstNewNode);
}

TEST_CASE("a hole in bytes of the view leaves the blocks as they were, and own bytes add to them",
          "[fuse][union][inodes.blocks]") {
    UnionFixture at(one_file);
    const NodeId node = at.find("/file");
    REQUIRE(at.fs->allocate(node, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    CHECK(at.stat("/file").allocated_bytes == 8192);
    REQUIRE(at.write("/file", 4096, std::string(4096, 'n')));
    CHECK(at.stat("/file").allocated_bytes == 8192);  // Not more than the file has bytes.
    REQUIRE(at.write("/file", 16384, std::string(1024, 'n')));
    CHECK(at.stat("/file").allocated_bytes == 8192 + 4096 + 1024);
    CHECK(at.truncate("/file", 0) == 0);
    CHECK(at.stat("/file").allocated_bytes == 0);
}

TEST_CASE("a new folder has the size of a block", "[fuse][union][inodes.folder-size]") {
    UnionFixture at(one_file);
    REQUIRE(at.mkdir("/folder"));
    CHECK(at.stat("/folder").size_bytes == 4096);
}

TEST_CASE("all times of one change are equal", "[fuse][union][attributes.one-time]") {
    UnionFixture at(one_file);
    REQUIRE(at.mkdir("/folder"));
    const Attributes made = at.stat("/folder");
    const Attributes root = at.stat("/");
    for (const Timestamp& time : {made.atime, made.ctime, made.birth, root.mtime, root.ctime})
        CHECK(time == made.mtime);
    CHECK(at.rename("/file", "/folder/file") == 0);
    const Timestamp moved = at.stat("/folder/file").ctime;
    CHECK(moved != made.mtime);
    for (const std::string path : {"/", "/folder"}) {
        CHECK(at.stat(path).mtime == moved);
        CHECK(at.stat(path).ctime == moved);
    }
}

TEST_CASE("reading and listing leave the access time as it was set", "[fuse][union][attributes.atime]") {
    UnionFixture at(one_file);
    const Timestamp before = at.stat("/file").atime;
    CHECK(before.seconds == 900);
    CHECK(at.read("/file").size() == 8192);
    CHECK(at.stat("/file").atime == before);
    REQUIRE(at.write("/file", 0, "x"));
    CHECK(at.read("/file").size() == 8192);
    CHECK(at.stat("/file").atime == before);
    const Timestamp set{.seconds = -5, .nanoseconds = 999'999'999};
    REQUIRE(at.fs->set_attributes(at.find("/file"), {.atime = set}));
    CHECK(at.read("/file").size() == 8192);
    CHECK(at.stat("/file").atime == set);
    const Timestamp folder = at.stat("/").atime;
    CHECK(at.names("/").size() == 1);
    CHECK(at.stat("/").atime == folder);
}

TEST_CASE("whatever is done to an inode of the view, it was born when the view says",
          "[fuse][union][attributes.birth]") {
    UnionFixture at(one_file);
    REQUIRE(at.write("/file", 0, "x"));
    CHECK(at.chmod("/file", 0600) == 0);
    CHECK(at.rename("/file", "/moved") == 0);
    CHECK(at.stat("/moved").birth == kBirth);
}

TEST_CASE("bytes in the place of an ACL that no kernel would accept are data",
          "[fuse][union][acl][attributes.foreign-acl]") {
    const std::string name(kAccessAclXattr);
    UnionFixture at([&](test::FakeView& view) {
        view.node(view.file(kRootNode, "file", "v")).xattrs[name] = "no ACL";
        view.node(view.directory(kRootNode, "folder")).xattrs[std::string(kDefaultAclXattr)] = "no ACL";
    });
    CHECK(*at.fs->xattr(at.find("/file"), name) == "no ACL");
    CHECK(at.chmod("/file", 0640) == 0);
    CHECK(at.stat("/file").mode == (S_IFREG | 0640));
    CHECK(*at.fs->xattr(at.find("/file"), name) == "no ACL");
    REQUIRE(at.make("/folder/made", S_IFREG | 0666));
    CHECK(at.stat("/folder/made").mode == (S_IFREG | 0644));  // The umask's.
}
