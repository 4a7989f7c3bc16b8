#include "fuse/change_walk.h"
#include "support/catch.h"
#include "support/union_fixture.h"

#include <fcntl.h>

#include <chrono>
#include <set>
#include <string>
#include <vector>

using namespace lamina;
using namespace lamina::unionfs;
using test::UnionFixture;

namespace {

constexpr std::uint64_t kGibibyte = std::uint64_t{1} << 30;

void one_file(test::FakeView& view) {
    view.file(kRootNode, "file", std::string(1000, 'v'));
}

/// A file of the view that claims to be large; reading past its content would fail.
void huge_file(test::FakeView& view) {
    const NodeId node = view.file(kRootNode, "huge", std::string(1 << 20, 'v'));
    view.node(node).attributes.size_bytes = kGibibyte;
    view.node(node).attributes.allocated_bytes = kGibibyte;
}

std::size_t extent_count(const UnionFixture& at) {
    return at.changes->counts().extents;
}

}  // namespace

TEST_CASE("the first write to a large file of the view copies and reads nothing", "[fuse][union][data][data.no-copy]") {
    UnionFixture at(huge_file);
    REQUIRE(at.write("/huge", 4096, std::string(4096, 'n')));
    CHECK(at.view.reads() == 0);
    CHECK(at.keeper.live_bytes() == 4096);
    CHECK(at.stat("/huge").size_bytes == kGibibyte);
    CHECK(at.read_node(at.find("/huge"), 4090, 12) == "vvvvvvnnnnnn");
    CHECK(at.read_node(at.find("/huge"), 8190, 4) == "nnvv");
}

TEST_CASE("appends that follow each other stay one extent", "[fuse][union][data][data.in-place][inodes.blocks]") {
    UnionFixture at(one_file);
    REQUIRE(at.create("/new"));
    for (int count = 0; count < 100; ++count) REQUIRE(at.write("/new", 10U * count, "0123456789"));
    CHECK(extent_count(at) == 1);
    CHECK(at.read("/new").size() == 1000);
    CHECK(at.stat("/new").allocated_bytes == 1024);
}

TEST_CASE("bytes are written over in place only where the keeper allows it", "[fuse][union][data][data.in-place]") {
    UnionFixture at(one_file);
    REQUIRE(at.create("/new", "0123456789"));
    REQUIRE(at.write("/new", 2, "ab"));
    CHECK(at.keeper.overwrites == 1);
    REQUIRE(at.fs->sync());
    REQUIRE(at.write("/new", 4, "cd"));
    CHECK(at.keeper.overwrites == 1);
    REQUIRE(at.write("/new", 3, "BCDE"));  // Old, new, old: in three parts.
    CHECK(at.keeper.overwrites == 2);
    CHECK(at.read("/new") == "01aBCDE789");
    CHECK(at.keeper.live_bytes() == 10);
}

TEST_CASE("when a sync takes the permission to write over back, a new place is taken",
          "[fuse][union][data][data.in-place]") {
    UnionFixture at(one_file);
    REQUIRE(at.create("/new", "0123456789"));
    at.keeper.denies_overwrites = true;
    CHECK(*at.write("/new", 2, "ab") == 2);
    CHECK(at.read("/new") == "01ab456789");
    CHECK(at.keeper.live_bytes() == 10);
}

TEST_CASE("a truncate hides the view's bytes for ever and frees what was written",
          "[fuse][union][data][data.truncate]") {
    UnionFixture at(one_file);
    REQUIRE(at.write("/file", 400, std::string(200, 'n')));
    CHECK(at.truncate("/file", 500) == 0);
    CHECK(at.keeper.live_bytes() == 100);
    CHECK(at.truncate("/file", 1000) == 0);
    CHECK(at.read("/file") == std::string(400, 'v') + std::string(100, 'n') + std::string(500, '\0'));
    CHECK(at.truncate("/file", 0) == 0);
    CHECK(at.keeper.live_bytes() == 0);
    CHECK(at.truncate("/file", 3) == 0);
    CHECK(at.read("/file") == std::string(3, '\0'));
}

TEST_CASE("a read that is under way sees no space that was used again", "[fuse][union][data][data.one-moment]") {
    UnionFixture at(one_file);
    REQUIRE(at.create("/new", "old bytes"));
    bool is_first = true;
    at.keeper.before_load = [&] {
        if (!std::exchange(is_first, false)) return;
        REQUIRE(at.truncate("/new", 0) == 0);
        CHECK(at.keeper.released_bytes == 9);
    };
    CHECK(at.read("/new") == "old bytes");
    CHECK(at.read("/new").empty());
}

TEST_CASE("space is released only when the keeper has the change that freed it", "[fuse][union][data][steps.space]") {
    UnionFixture at(one_file);
    REQUIRE(at.create("/new", "bytes"));
    const std::size_t log_size = at.keeper.log.size();
    CHECK(at.truncate("/new", 0) == 0);
    CHECK(at.keeper.log_size_at_release == log_size + 1);
}

TEST_CASE("the space of a removed file is released when the kernel forgets it",
          "[fuse][union][data][inodes.nameless][ops.gone]") {
    UnionFixture at(one_file);
    REQUIRE(at.create("/new", "bytes"));
    const NodeId node = (*at.fs->lookup(kRootNode, "new"))->attributes.node;
    CHECK(at.unlink("/new") == 0);
    CHECK(at.keeper.released_bytes == 0);
    CHECK(at.read_node(node) == "bytes");
    at.fs->forget(node, 1);
    CHECK(at.keeper.released_bytes == 5);
    CHECK(UnionFixture::code(at.fs->attributes(node)) == ENOENT);
}

TEST_CASE("removed files that are waited for in vain are not waited for again, but others are",
          "[fuse][union][data][upper.room]") {
    UnionFixture at(one_file);
    std::vector<NodeId> nodes;
    const auto remove_known = [&](const std::string& name) {
        REQUIRE(at.create("/" + name));
        nodes.push_back((*at.fs->lookup(kRootNode, name))->attributes.node);
        CHECK(at.unlink("/" + name) == 0);
    };
    CHECK_FALSE(at.fs->awaits_forget());
    remove_known("held");
    CHECK(at.fs->awaits_forget());
    at.fs->wait_for_forget(std::chrono::milliseconds(1));
    CHECK_FALSE(at.fs->awaits_forget());
    remove_known("gone");
    CHECK(at.fs->awaits_forget());
    at.fs->forget(nodes[1], 1);
    CHECK_FALSE(at.fs->awaits_forget());
    at.fs->forget(nodes[0], 1);
    remove_known("next");
    CHECK(at.fs->awaits_forget());
}

TEST_CASE("a write that has no room changes nothing and says why", "[fuse][union][data][steps.whole]") {
    UnionFixture at(one_file);
    REQUIRE(at.create("/new", "bytes"));
    const auto before = at.stat("/new");
    for (const int error : {ENOSPC, EDQUOT, EROFS}) {
        at.keeper.reserve_error = error;
        CHECK(UnionFixture::code(at.write("/new", 0, "BYTES")) == error);
        CHECK(UnionFixture::code(at.create("/other")) == error);
        CHECK(at.unlink("/new") == error);
        CHECK(at.rename("/new", "/other") == error);
    }
    at.keeper.reserve_error = 0;
    at.keeper.place_error = ENOSPC;
    CHECK(UnionFixture::code(at.write("/new", 5, "more")) == ENOSPC);
    CHECK(at.read("/new") == "bytes");
    CHECK(at.stat("/new").mtime == before.mtime);
    CHECK(at.names("/") == std::set<std::string>{"file", "new"});
}

TEST_CASE("a write that finds no room half-way says how much it wrote", "[fuse][union][data][steps.full]") {
    UnionFixture at(one_file);
    REQUIRE(at.create("/new", "0123456789"));
    at.keeper.capacity_bytes = at.keeper.usage().extent_bytes + 5;
    const auto written = at.write("/new", 8, "abcd");  // Two bytes in place, two in a new one.
    REQUIRE(written);
    CHECK(*written == 4);
    at.keeper.capacity_bytes = at.keeper.usage().extent_bytes;
    at.keeper.place_error = ENOSPC;
    CHECK(UnionFixture::code(at.write("/new", 12, "efgh")) == ENOSPC);
    CHECK(at.read("/new") == "01234567abcd");
}

TEST_CASE("files end at 2^63 - 1 bytes", "[fuse][union][data][data.end]") {
    UnionFixture at(one_file);
    const std::uint64_t last = 0x7fffffffffffffff;
    CHECK(UnionFixture::code(at.write("/file", last, "x")) == EFBIG);
    CHECK(UnionFixture::code(at.write("/file", ~std::uint64_t{0}, "x")) == EFBIG);
    CHECK(at.truncate("/file", last + 1) == EFBIG);
    CHECK(UnionFixture::code(at.fs->allocate(at.find("/file"), FALLOC_FL_ZERO_RANGE, last, 1)) == EFBIG);
    REQUIRE(at.write("/file", last - 1, "x"));
    CHECK(at.stat("/file").size_bytes == last);
    CHECK(at.read_node(at.find("/file"), last - 3, 100) == std::string("\0\0x", 3));
    CHECK(at.read_node(at.find("/file"), last, 100).empty());
    CHECK(at.truncate("/file", 10) == 0);
    CHECK(at.read("/file") == std::string(10, 'v'));
}

TEST_CASE("holes are found by seeking, over the view's bytes and behind them", "[fuse][union][data][ops.data]") {
    UnionFixture at(one_file);
    const NodeId node = at.find("/file");
    CHECK(*at.fs->seek(node, 0, true) == 0);
    CHECK(*at.fs->seek(node, 0, false) == 1000);
    REQUIRE(at.fs->allocate(node, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, 50));
    REQUIRE(at.write("/file", 2000, "end"));
    CHECK(*at.fs->seek(node, 0, false) == 100);
    CHECK(*at.fs->seek(node, 100, true) == 150);
    CHECK(*at.fs->seek(node, 120, false) == 120);
    CHECK(*at.fs->seek(node, 150, false) == 1000);
    CHECK(*at.fs->seek(node, 1000, true) == 2000);
    CHECK(*at.fs->seek(node, 2000, false) == 2003);
    CHECK(UnionFixture::code(at.fs->seek(node, 2003, true)) == ENXIO);
    CHECK(UnionFixture::code(at.fs->seek(node, 5000, false)) == ENXIO);
    CHECK(at.truncate("/file", 3000) == 0);
    CHECK(UnionFixture::code(at.fs->seek(node, 2003, true)) == ENXIO);
}

TEST_CASE("fallocate answers other modes, other inodes and too much with their errors",
          "[fuse][union][data][data.fallocate]") {
    UnionFixture at(one_file);
    const NodeId node = at.find("/file");
    CHECK(UnionFixture::code(at.fs->allocate(node, FALLOC_FL_COLLAPSE_RANGE, 0, 10)) == EOPNOTSUPP);
    CHECK(UnionFixture::code(at.fs->allocate(node, FALLOC_FL_PUNCH_HOLE, 0, 10)) == EOPNOTSUPP);
    CHECK(UnionFixture::code(at.fs->allocate(node, 0, 0, 0)) == EINVAL);
    CHECK(UnionFixture::code(at.fs->allocate(node, 0, 0, kGibibyte * 4)) == ENOSPC);
    CHECK(UnionFixture::code(at.fs->allocate(kRootNode, 0, 0, 1)) == EISDIR);
    REQUIRE(at.fs->allocate(node, FALLOC_FL_KEEP_SIZE, 0, 5000));
    CHECK(at.stat("/file").size_bytes == 1000);
}

TEST_CASE("a range is copied between files, and not onto itself", "[fuse][union][data][data.copy-range]") {
    UnionFixture at(one_file);
    REQUIRE(at.create("/new", "0123456789"));
    const NodeId file = at.find("/file");
    const NodeId copy = at.find("/new");
    CHECK(*at.fs->copy_range({copy, 2, file, 10, 5}) == 5);
    CHECK(at.read("/file").substr(8, 9) == "vv23456vv");
    CHECK(*at.fs->copy_range({file, 0, copy, 8, 5000}) == 1000);
    CHECK(at.stat("/new").size_bytes == 1008);
    CHECK(*at.fs->copy_range({file, 1000, copy, 0, 10}) == 0);
    CHECK(UnionFixture::code(at.fs->copy_range({copy, 0, copy, 5, 10})) == EINVAL);
    CHECK(*at.fs->copy_range({copy, 0, copy, 1008, 1008}) == 1008);
}

TEST_CASE("a write drops file capabilities always and set-id bits when asked",
          "[fuse][union][data][data.privileges][attributes.chown][attributes.xattrs-kept]") {
    UnionFixture at([](test::FakeView& view) {
        const NodeId node = view.file(kRootNode, "tool", "binary", 06755);
        view.node(node).xattrs = {{"security.capability", "caps"}, {"user.kept", "1"}};
    });
    const NodeId node = at.find("/tool");
    const auto bytes = std::as_bytes(std::span("x", 1));
    REQUIRE(at.fs->write(node, 0, bytes, UnionFs::WriteBy::privileged));
    CHECK(at.stat("/tool").mode == (S_IFREG | 06755));
    CHECK(UnionFixture::code(at.fs->xattr(node, "security.capability")) == ENODATA);
    CHECK(*at.fs->xattr(node, "user.kept") == "1");
    REQUIRE(at.fs->write(node, 0, bytes, UnionFs::WriteBy::unprivileged));
    CHECK(at.stat("/tool").mode == (S_IFREG | 0755));
    CHECK(at.chmod("/tool", 06644) == 0);
    REQUIRE(at.fs->set_attributes(node, {.uid = 5}));
    CHECK(at.stat("/tool").mode == (S_IFREG | 02644));  // Set-gid without group execution means locking, and stays.
    REQUIRE(at.fs->set_xattr(node, "security.capability", "caps", 0));
    REQUIRE(at.fs->set_attributes(node, {.gid = 5}));
    CHECK(UnionFixture::code(at.fs->xattr(node, "security.capability")) == ENODATA);
}

TEST_CASE("a mapping's pages drop neither file capabilities nor set-id bits", "[fuse][union][data][data.mapping]") {
    UnionFixture at([](test::FakeView& view) {
        const NodeId node = view.file(kRootNode, "tool", "binary", 06755);
        view.node(node).xattrs = {{"security.capability", "caps"}};
    });
    const NodeId node = at.find("/tool");
    REQUIRE(at.fs->write(node, 0, std::as_bytes(std::span("X", 1)), UnionFs::WriteBy::mapping));
    CHECK(*at.fs->xattr(node, "security.capability") == "caps");
    CHECK(at.stat("/tool").mode == (S_IFREG | 06755));
    CHECK(at.read("/tool") == "Xinary");
}

TEST_CASE("a file of 100,000 extents is still quick to write and read", "[fuse][union][data]") {
    UnionFixture at(huge_file);
    const NodeId node = at.find("/huge");
    const std::string byte = "n";
    for (std::uint64_t count = 0; count < 100'000; ++count)
        REQUIRE(at.fs->write(node, count * 7 % 1'000'000 + 1, std::as_bytes(std::span(byte)),
                             UnionFs::WriteBy::privileged));
    CHECK(extent_count(at) == 100'000);
    CHECK(at.read_node(node, 0, 16) == "vnvvvvvvnvvvvvvn");
    CHECK(at.truncate("/huge", 0) == 0);
    CHECK(at.keeper.live_bytes() == 0);
}
