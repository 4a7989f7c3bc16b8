#include "fuse/posix_acl.h"
#include "support/catch.h"
#include "support/union_fixture.h"

#include <sys/xattr.h>

#include <cstring>
#include <string>

using namespace lamina;
using namespace lamina::unionfs;
using test::UnionFixture;

namespace {

struct AclEntry {
    std::uint16_t tag;
    std::uint16_t permissions;
    std::uint32_t id = 0xffffffff;
};
constexpr std::uint16_t kUserObj = 1, kUser = 2, kGroupObj = 4, kGroup = 8, kMask = 16, kOther = 32;

std::string acl(const std::vector<AclEntry>& entries) {
    std::string value("\x02\0\0\0", 4);
    for (const AclEntry& entry : entries) {
        char bytes[8];
        std::memcpy(bytes, &entry, sizeof bytes);
        value.append(bytes, sizeof bytes);
    }
    return value;
}

const std::string kWide = acl({{kUserObj, 7}, {kUser, 7, 1000}, {kGroupObj, 5}, {kMask, 7}, {kOther, 0}});
const std::string kMinimal = acl({{kUserObj, 6}, {kGroupObj, 4}, {kOther, 0}});

}  // namespace

TEST_CASE("without a default ACL the umask applies, and is never stored", "[fuse][union][acl][attributes.umask]") {
    UnionFixture at;
    at.caller.umask = 027;
    REQUIRE(at.make("/file", S_IFREG | 0666));
    CHECK(at.stat("/file").mode == (S_IFREG | 0640));
    REQUIRE(at.make("/folder", S_IFDIR | 0777));
    CHECK(at.stat("/folder").mode == (S_IFDIR | 0750));
    REQUIRE(at.make("/link", S_IFLNK | 0777, "x"));
    CHECK(at.stat("/link").mode == (S_IFLNK | 0777));
}

TEST_CASE("a default ACL decides the new inode's ACL and mode, not the umask", "[fuse][union][acl][attributes.umask]") {
    UnionFixture at;
    at.caller.umask = 077;
    REQUIRE(at.mkdir("/shared"));
    REQUIRE(at.fs->set_xattr(at.find("/shared"), kDefaultAclXattr, kWide, 0));
    REQUIRE(at.make("/shared/file", S_IFREG | 0666));
    CHECK(at.stat("/shared/file").mode == (S_IFREG | 0660));
    CHECK(*at.fs->xattr(at.find("/shared/file"), kAccessAclXattr) ==
          acl({{kUserObj, 6}, {kUser, 7, 1000}, {kGroupObj, 5}, {kMask, 6}, {kOther, 0}}));
    CHECK(UnionFixture::code(at.fs->xattr(at.find("/shared/file"), kDefaultAclXattr)) == ENODATA);
    REQUIRE(at.make("/shared/sub", S_IFDIR | 0755));
    CHECK(*at.fs->xattr(at.find("/shared/sub"), kDefaultAclXattr) == kWide);
    CHECK(at.stat("/shared/sub").mode == (S_IFDIR | 0750));
    REQUIRE(at.make("/shared/sub/link", S_IFLNK | 0777, "x"));
    CHECK(at.fs->xattr_names(at.find("/shared/sub/link"))->empty());
}

TEST_CASE("a default ACL of the view counts as one that was set", "[fuse][union][acl][attributes.umask]") {
    UnionFixture at([](test::FakeView& view) {
        view.node(view.directory(kRootNode, "shared")).xattrs[std::string(kDefaultAclXattr)] = kMinimal;
    });
    REQUIRE(at.make("/shared/file", S_IFREG | 0666));
    CHECK(at.stat("/shared/file").mode == (S_IFREG | 0640));
    CHECK(at.fs->xattr_names(at.find("/shared/file"))->empty());
    REQUIRE(at.make("/shared/second", S_IFREG | 0600));
    CHECK(at.stat("/shared/second").mode == (S_IFREG | 0600));
}

TEST_CASE("an access ACL sets the mode, and chmod sets the ACL's mask", "[fuse][union][acl][attributes.acl]") {
    UnionFixture at;
    REQUIRE(at.create("/file"));
    const NodeId node = at.find("/file");
    REQUIRE(at.fs->set_xattr(node, kAccessAclXattr, kWide, 0));
    CHECK(at.stat("/file").mode == (S_IFREG | 0770));
    CHECK(at.chmod("/file", 0644) == 0);
    CHECK(*at.fs->xattr(node, kAccessAclXattr) ==
          acl({{kUserObj, 6}, {kUser, 7, 1000}, {kGroupObj, 5}, {kMask, 4}, {kOther, 4}}));
    CHECK(at.stat("/file").mode == (S_IFREG | 0644));
}

TEST_CASE("an ACL that says no more than the mode is not stored", "[fuse][union][acl][attributes.acl]") {
    UnionFixture at;
    REQUIRE(at.create("/file"));
    const NodeId node = at.find("/file");
    REQUIRE(at.fs->set_xattr(node, kAccessAclXattr, kWide, 0));
    REQUIRE(at.fs->set_xattr(node, kAccessAclXattr, kMinimal, 0));
    CHECK(at.stat("/file").mode == (S_IFREG | 0640));
    CHECK(at.fs->xattr_names(node)->empty());
}

TEST_CASE("setting an ACL drops the set-gid bit when asked", "[fuse][union][acl]") {
    UnionFixture at;
    REQUIRE(at.create("/file"));
    CHECK(at.chmod("/file", 02755) == 0);
    REQUIRE(at.fs->set_xattr(at.find("/file"), kAccessAclXattr, kWide, 0, true));
    CHECK(at.stat("/file").mode == (S_IFREG | 0770));
}

TEST_CASE("ACLs where none can be, and bytes that are none, are refused", "[fuse][union][acl][ops.xattrs]") {
    UnionFixture at;
    REQUIRE(at.create("/file"));
    REQUIRE(at.make("/link", S_IFLNK | 0777, "x"));
    const auto set = [&](std::string_view path, std::string_view name, const std::string& value) {
        return UnionFixture::code(at.fs->set_xattr(at.find(path), name, value, 0));
    };
    CHECK(set("/file", kDefaultAclXattr, kWide) == EACCES);
    CHECK(set("/link", kAccessAclXattr, kWide) == EOPNOTSUPP);
    CHECK(set("/file", kAccessAclXattr, "\x03\0\0\0abcdefgh") == EINVAL);
    CHECK(set("/file", kAccessAclXattr, std::string("\x03\0\0\0", 4)) == EOPNOTSUPP);
    const std::vector<std::vector<AclEntry>> unsound = {
        {{kUserObj, 7}},
        {{kUserObj, 7}, {kGroupObj, 5}},
        {{kUserObj, 7}, {kUser, 7, 1000}, {kGroupObj, 5}, {kOther, 0}},
        {{kGroupObj, 5}, {kUserObj, 7}, {kOther, 0}},
        {{kUserObj, 8}, {kGroupObj, 5}, {kOther, 0}},
        {{kUserObj, 7}, {kUserObj, 7}, {kGroupObj, 5}, {kOther, 0}},
        {{kUserObj, 7}, {kUser, 7, 1}, {kUser, 6, 1}, {kGroupObj, 5}, {kMask, 7}, {kOther, 0}},
        {{kUserObj, 7}, {kGroupObj, 5}, {kGroup, 5, 1}, {kOther, 0}},
        {{kUserObj, 7}, {kGroupObj, 5}, {kOther, 0}, {64, 0}},
        {{kUserObj, 7}, {kGroupObj, 5}, {0, 0}, {kOther, 0}},
    };
    for (const auto& entries : unsound) CHECK(set("/file", kAccessAclXattr, acl(entries)) == EINVAL);
    CHECK(at.stat("/file").mode == (S_IFREG | 0644));
    CHECK(at.fs->xattr_names(at.find("/file"))->empty());
}

TEST_CASE("an ACL cut at any byte, or with any byte changed, never harms", "[fuse][union][acl]") {
    for (std::size_t size = 0; size < kWide.size(); ++size) {
        const auto parsed = PosixAcl::parse(std::string_view(kWide).substr(0, size));
        CHECK((!parsed || parsed->is_empty()));
    }
    for (std::size_t byte = 0; byte < kWide.size(); ++byte) {
        std::string changed = kWide;
        for (int value = 0; value < 256; ++value) {
            changed[byte] = static_cast<char>(value);
            if (const auto parsed = PosixAcl::parse(changed); parsed && !parsed->is_empty()) (void)parsed->mode_with(0);
        }
    }
    SUCCEED();
}

TEST_CASE("new inodes take group and set-gid from a set-gid folder as local file systems do",
          "[fuse][union][acl][attributes.owner]") {
    UnionFixture at;
    REQUIRE(at.mkdir("/shared"));
    REQUIRE(at.fs->set_attributes(at.find("/shared"), {.gid = 50}));
    CHECK(at.chmod("/shared", 02775) == 0);
    at.caller = {.uid = 1000, .gid = 100, .umask = 0};
    REQUIRE(at.make("/shared/file", S_IFREG | 02755));
    CHECK(at.stat("/shared/file").gid == 50);
    CHECK(at.stat("/shared/file").uid == 1000);
    CHECK(at.stat("/shared/file").mode == (S_IFREG | 0755));  // He is not in that group.
    REQUIRE(at.make("/shared/sub", S_IFDIR | 0755));
    CHECK(at.stat("/shared/sub").mode == (S_IFDIR | 02755));
    at.caller.gid = 50;
    REQUIRE(at.make("/shared/own", S_IFREG | 02755));
    CHECK(at.stat("/shared/own").mode == (S_IFREG | 02755));
    at.caller.gid = 100;
    REQUIRE(at.make("/plain", S_IFREG | 02755));
    CHECK(at.stat("/plain").gid == 100);
    CHECK(at.stat("/plain").mode == (S_IFREG | 02755));
}

TEST_CASE("xattrs keep to the limits of the system calls",
          "[fuse][union][xattr][attributes.xattr-limits][ops.xattrs]") {
    UnionFixture at;
    REQUIRE(at.create("/file"));
    const NodeId node = at.find("/file");
    const auto set = [&](const std::string& name, const std::string& value) {
        return UnionFixture::code(at.fs->set_xattr(node, name, value, 0));
    };
    CHECK(set("user." + std::string(250, 'n'), "v") == 0);
    CHECK(set("user." + std::string(251, 'n'), "v") == ERANGE);
    CHECK(set("", "v") == ERANGE);
    CHECK(set("user.big", std::string(65536, 'v')) == 0);
    CHECK(set("user.big", std::string(65537, 'v')) == E2BIG);
    CHECK(at.fs->xattr(node, "user.big")->size() == 65536);
    CHECK(set("user.empty", "") == 0);
    CHECK(at.fs->xattr(node, "user.empty")->empty());
    int error = 0;
    for (int number = 0; error == 0; ++number)
        error = set("user." + std::string(200, 'x') + std::to_string(number), "");
    CHECK(error == ENOSPC);
    CHECK(at.fs->xattr_names(node)->size() <= 65536);
}
