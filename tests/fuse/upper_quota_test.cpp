// Limits on an upper directory: the account is what lies there, and what would exceed a limit leaves nothing behind.
#include "support/catch.h"
#include "support/directory_union.h"
#include "support/oci_archive.h"
#include "support/root.h"
#include "support/temp_dir.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

constexpr std::uint64_t kBlock = 4096;

/// In memory: no file system of these has folders or xattrs that take blocks.
struct Upper {
    test::TempDir folder{"/dev/shm"};
    test::DirectoryFolders folders = test::make_folders(folder.path());

    Upper() {
        ::umask(022);
        std::filesystem::create_directories(folders.lowers[0] + "/deep/er");
        test::write_text(folders.lowers[0] + "/deep/er/big", std::string(100 * kBlock, 'b'));
        test::write_text(folders.lowers[0] + "/small", "small");
        REQUIRE(::link((folders.lowers[0] + "/deep/er/big").c_str(), (folders.lowers[0] + "/deep/alias").c_str()) == 0);
    }
    bool is_empty() const { return std::filesystem::is_empty(folders.upper); }
};

std::string text_of(const QuotaUsage& usage) {
    return std::to_string(usage.bytes) + " bytes, " + std::to_string(usage.inodes) + " inodes";
}

/// The account, and what looking through all of it again gives.
QuotaUsage used(test::DirectoryUnion& at) {
    const auto [limits, counted] = at.fs->quota();
    REQUIRE(at.fs->set_quota({}));
    REQUIRE(at.fs->set_quota(limits));
    CHECK(at.fs->quota().used == counted);
    return counted;
}

}  // namespace

TEST_CASE("an upper takes data up to the last byte of a limit, and no further", "[fuse][quota][upper][quota.upper]") {
    if (!test::is_root()) return;
    Upper upper;
    test::DirectoryUnion at(upper.folders);
    REQUIRE(at.fs->set_quota({.bytes = 4 * kBlock}));
    REQUIRE(at.create("/new"));
    REQUIRE(at.write("/new", 0, std::string(4 * kBlock, 'a')));
    CHECK(at.code(at.write("/new", 4 * kBlock, "x")) == EDQUOT);
    CHECK(at.code(at.write("/new", 0, std::string(5 * kBlock, 'x'))) == EDQUOT);
    CHECK(at.code(at.fs->allocate(at.find("/new"), 0, 0, 5 * kBlock)) == EDQUOT);
    CHECK(at.read("/new") == std::string(4 * kBlock, 'a'));
    CHECK(at.write("/new", kBlock, std::string(2 * kBlock, 'b')));
    CHECK(used(at) == QuotaUsage{.bytes = 4 * kBlock, .inodes = 1});
    CHECK(at.truncate("/new", kBlock) == 0);
    CHECK(used(at).bytes == kBlock);
    CHECK(at.write("/new", 2 * kBlock, std::string(kBlock, 'c')));
    CHECK(at.fs->allocate(at.find("/new"), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kBlock));
    CHECK(used(at).bytes == kBlock);
    CHECK(at.write("/new", 0, std::string(3 * kBlock, 'd')));
    CHECK(used(at).bytes == 3 * kBlock);
    CHECK(at.code(at.fs->allocate(at.find("/new"), FALLOC_FL_KEEP_SIZE, 0, 100 * kBlock)) == EOPNOTSUPP);
    CHECK(at.unlink("/new") == 0);
    CHECK(used(at) == QuotaUsage{});
}

TEST_CASE("a copy-up that a limit has no room for copies nothing, not even folders",
          "[fuse][quota][upper][quota.refused]") {
    if (!test::is_root()) return;
    Upper upper;
    test::DirectoryUnion at(upper.folders);
    SECTION("bytes") {
        REQUIRE(at.fs->set_quota({.bytes = 100 * kBlock - 1}));
    }
    SECTION("inodes") {
        REQUIRE(at.fs->set_quota({.inodes = 2}));
    }
    CHECK(at.code(at.write("/deep/er/big", 0, "x")) == EDQUOT);
    CHECK(at.chmod("/deep/er/big", 0600) == EDQUOT);
    CHECK(at.code(at.fs->set_xattr(at.find("/deep/er/big"), "user.x", "1", 0)) == EDQUOT);
    CHECK(upper.is_empty());
    CHECK(used(at).inodes == 0);
    CHECK(at.read("/deep/er/big").size() == 100 * kBlock);
    REQUIRE(at.fs->set_quota({.bytes = 100 * kBlock, .inodes = 3}));
    CHECK(at.write("/deep/er/big", 0, "x"));
    CHECK(text_of(used(at)) == text_of({.bytes = 100 * kBlock, .inodes = 3}));  // Two folders, and the file once.
}

TEST_CASE("a lower file that is cut costs what stays of it", "[fuse][quota][upper]") {
    if (!test::is_root()) return;
    Upper upper;
    test::DirectoryUnion at(upper.folders);
    REQUIRE(at.fs->set_quota({.bytes = kBlock}));
    CHECK(at.truncate("/deep/er/big", kBlock) == 0);
    CHECK(used(at).bytes == kBlock);
}

TEST_CASE("inodes of an upper are counted, whiteouts too, and removing is never refused", "[fuse][quota][upper]") {
    if (!test::is_root()) return;
    Upper upper;
    test::DirectoryUnion at(upper.folders);
    REQUIRE(at.fs->set_quota({.inodes = 2}));
    REQUIRE(at.create("/one", "1"));
    REQUIRE(at.mkdir("/folder"));
    CHECK(at.code(at.create("/two")) == EDQUOT);
    CHECK(at.code(at.mkdir("/two")) == EDQUOT);
    CHECK(at.code(at.make("/two", S_IFLNK | 0777, "one")) == EDQUOT);
    CHECK(at.code(at.make("/two", S_IFIFO | 0666)) == EDQUOT);
    CHECK(at.rename("/small", "/folder/small") == EDQUOT);
    CHECK(at.names("/") == std::set<std::string>{"one", "folder", "deep", "small"});
    CHECK(at.link("/one", "/two") == 0);
    CHECK(used(at).inodes == 2);
    CHECK(at.unlink("/small") == 0);
    CHECK(used(at).inodes == 3);
    CHECK(at.unlink("/deep/alias") == 0);  // Brings folders up, and does without the copy that keeps the link count.
    CHECK(at.unlink("/deep/er/big") == 0);
    CHECK(at.rmdir("/deep/er") == 0);
    CHECK(at.rmdir("/deep") == 0);
    CHECK(at.unlink("/one") == 0);
    CHECK(at.unlink("/two") == 0);
    CHECK(at.rmdir("/folder") == 0);
    CHECK(at.names("/").empty());
    CHECK(used(at).inodes == 2);  // The whiteouts of /small and /deep.
}

TEST_CASE("what an upper held before counts, and the account is the same at the next mount",
          "[fuse][quota][upper][quota.upper]") {
    if (!test::is_root()) return;
    Upper upper;
    test::write_text(upper.folders.upper + "/before", std::string(2 * kBlock, 'x'));
    QuotaUsage account;
    {
        test::DirectoryUnion at(upper.folders);
        REQUIRE(at.fs->set_quota({.bytes = 200 * kBlock}));
        CHECK(used(at) == QuotaUsage{.bytes = 2 * kBlock, .inodes = 1});
        REQUIRE(at.create("/deep/new", std::string(10 * kBlock, 'n')));
        REQUIRE(at.write("/deep/er/big", 5, "x"));
        CHECK(at.rename("/small", "/deep/er/small") == 0);
        CHECK(at.unlink("/before") == 0);
        account = used(at);
    }
    test::DirectoryUnion again(upper.folders);
    REQUIRE(again.fs->set_quota({.bytes = 1}));
    CHECK(again.fs->quota().used == account);
    CHECK(again.code(again.create("/x", "1")) == 0);
    CHECK(again.stat("/x").size_bytes == 0);  // The file is there, its byte found no room.
    CHECK(again.unlink("/deep/new") == 0);
}

TEST_CASE("a file that was removed stays in the account of an upper until it is forgotten", "[fuse][quota][upper]") {
    if (!test::is_root()) return;
    Upper upper;
    test::DirectoryUnion at(upper.folders);
    REQUIRE(at.fs->set_quota({.bytes = 10 * kBlock}));
    REQUIRE(at.create("/open", std::string(kBlock, 'x')));
    const auto held = at.fs->lookup(kRootNode, "open");
    CHECK(at.unlink("/open") == 0);
    CHECK(used(at).bytes == kBlock);
    at.fs->forget((*held)->attributes.node, 1);
    CHECK(used(at) == QuotaUsage{});
}

TEST_CASE("on a disk too a limit holds for folders, and what was made over it is taken back", "[fuse][quota][upper]") {
    if (!test::is_root()) return;
    const test::TempDir folder;  // Where folders may take blocks.
    const auto folders = test::make_folders(folder.path());
    test::DirectoryUnion at(folders);
    REQUIRE(at.fs->set_quota({.bytes = std::uint64_t{1} << 40}));
    const std::uint64_t begin = at.fs->quota().used.bytes;
    REQUIRE(at.mkdir("/first"));
    const std::uint64_t folder_bytes = used(at).bytes - begin;
    REQUIRE(at.fs->set_quota({.bytes = used(at).bytes + folder_bytes + 1}));
    CHECK(at.mkdir("/second"));
    CHECK(at.code(at.mkdir("/third")) == (folder_bytes == 0 ? 0 : EDQUOT));
    CHECK(std::filesystem::is_empty(folders.work + "/work"));
    CHECK(used(at).bytes <= at.fs->quota().limits.bytes);
}
