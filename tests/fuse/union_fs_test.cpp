#include "fuse/union_fs.h"

#include "support/catch.h"
#include "support/union_fixture.h"

#include <string>

using namespace lamina;
using namespace lamina::unionfs;
using test::UnionFixture;

namespace {

void small_image(test::FakeView& view) {
    const NodeId etc = view.directory(kRootNode, "etc");
    view.file(etc, "motd", "hello from below");
    const NodeId hosts = view.file(etc, "hosts", "127.0.0.1 localhost");
    view.link(hosts, etc, "hosts.old");
    view.symlink(kRootNode, "link", "etc/motd");
    view.directory(kRootNode, "empty");
}

}  // namespace

TEST_CASE("what was not changed is shown as the view has it", "[fuse][union]") {
    UnionFixture at(small_image);
    CHECK(at.read("/etc/motd") == "hello from below");
    CHECK(at.names("/") == std::set<std::string>{"etc", "link", "empty"});
    CHECK(*at.fs->link_target(at.find("/link")) == "etc/motd");
    CHECK(at.stat("/etc/hosts").nlink == 2);
    CHECK(at.find("/etc/nothing") == 0);
    CHECK(at.changes->counts().nodes == 0);
    CHECK(at.keeper.log.empty());
}

TEST_CASE("a new file is there with its bytes, and its folder's times change", "[fuse][union]") {
    UnionFixture at(small_image);
    REQUIRE(at.create("/etc/new", "fresh bytes"));
    CHECK(at.read("/etc/new") == "fresh bytes");
    CHECK(at.find("/etc/new") == kFirstNewNode);
    CHECK(at.stat("/etc/new").mode == (S_IFREG | 0644));
    CHECK(at.names("/etc") == std::set<std::string>{"motd", "hosts", "hosts.old", "new"});
    CHECK(at.stat("/etc").mtime.seconds == 5000);
    CHECK(UnionFixture::code(at.create("/etc/new")) == EEXIST);
}

TEST_CASE("a write into a file of the view leaves the rest of it to the view", "[fuse][union]") {
    UnionFixture at(small_image);
    REQUIRE(at.write("/etc/motd", 6, "INTO"));
    CHECK(at.read("/etc/motd") == "hello INTO below");
    CHECK(at.keeper.live_bytes() == 4);
    CHECK(at.find("/etc/motd") < kFirstNewNode);
}

TEST_CASE("a removed name of the view is gone, and can be made again as something new", "[fuse][union]") {
    UnionFixture at(small_image);
    CHECK(at.unlink("/etc/motd") == 0);
    CHECK(at.find("/etc/motd") == 0);
    CHECK(at.unlink("/etc/motd") == ENOENT);
    REQUIRE(at.create("/etc/motd", "new"));
    CHECK(at.read("/etc/motd") == "new");
    CHECK(at.names("/etc").size() == 3);
}

TEST_CASE("a folder of the view that was removed and made again shows nothing of below",
          "[fuse][union][inodes.opaque][inodes.replaced]") {
    UnionFixture at(small_image);
    CHECK(at.rmdir("/etc") == ENOTEMPTY);
    for (const char* name : {"/etc/motd", "/etc/hosts", "/etc/hosts.old"}) CHECK(at.unlink(name) == 0);
    CHECK(at.rmdir("/etc") == 0);
    CHECK(at.stat("/").nlink == 3);
    REQUIRE(at.mkdir("/etc"));
    CHECK(at.names("/etc").empty());
    CHECK(at.find("/etc") >= kFirstNewNode);
}

TEST_CASE("the other name of a hard link keeps the inode, its number and its bytes",
          "[fuse][union][inodes.stay][inodes.links]") {
    UnionFixture at(small_image);
    const NodeId node = at.find("/etc/hosts");
    REQUIRE(at.write("/etc/hosts.old", 0, "999"));
    CHECK(at.read("/etc/hosts") == "999.0.0.1 localhost");
    CHECK(at.unlink("/etc/hosts") == 0);
    CHECK(at.find("/etc/hosts.old") == node);
    CHECK(at.stat("/etc/hosts.old").nlink == 1);
    CHECK(at.link("/etc/hosts.old", "/third") == 0);
    CHECK(at.stat("/third").nlink == 2);
}

TEST_CASE("a read-only union refuses every change and still reads", "[fuse][union][ops.read-only]") {
    UnionFixture at(small_image);
    UnionFs read_only(at.view, *at.changes, nullptr);
    CHECK(UnionFixture::code(read_only.make(kRootNode, "x", {.mode = S_IFREG | 0644}, {})) == EROFS);
    CHECK(UnionFixture::code(read_only.unlink(kRootNode, "link")) == EROFS);
    CHECK(UnionFixture::code(read_only.write(2, 0, {}, UnionFs::WriteBy::privileged)) == EROFS);
    CHECK((*read_only.lookup(kRootNode, "etc"))->attributes.node == at.find("/etc"));
}
