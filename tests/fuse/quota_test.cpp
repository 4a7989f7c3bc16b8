// Limits on what the changes of a mount take: the account, what is refused, and what never is.
#include "fuse/quota.h"

#include "fuse/mount_state.h"
#include "support/catch.h"
#include "support/change_dump.h"
#include "support/memory_view.h"
#include "support/oci_archive.h"
#include "support/temp_dir.h"
#include "support/union_fixture.h"

#include <fcntl.h>
#include <sys/xattr.h>

#include <random>

using namespace lamina;
using namespace lamina::unionfs;
using test::UnionFixture;

namespace {

constexpr std::uint64_t kBlock = 4096;

void small_image(test::FakeView& view) {
    const NodeId etc = view.directory(kRootNode, "etc");
    view.file(etc, "motd", std::string(10'000, 'm'));
    view.file(etc, "hosts", "127.0.0.1 localhost");
    view.directory(kRootNode, "empty");
}

QuotaUsage used(UnionFixture& at) {
    return at.fs->quota().used;
}

std::string error_of(const std::string& text) {
    return test::error_of([&] { static_cast<void>(parse_quota(text)); });
}

}  // namespace

TEST_CASE("limits are written as numbers with units, and anything else is refused", "[fuse][quota]") {
    CHECK(parse_quota("0") == QuotaLimits{});
    CHECK(parse_quota("10") == QuotaLimits{.bytes = 10});
    CHECK(parse_quota("2K:3") == QuotaLimits{.bytes = 2048, .inodes = 3});
    CHECK(parse_quota("1G,2M") == QuotaLimits{.bytes = 1 << 30, .inodes = 2 << 20});
    CHECK(parse_quota("4T:0") == QuotaLimits{.bytes = std::uint64_t{4} << 40});
    CHECK(parse_quota("0:7") == QuotaLimits{.inodes = 7});
    for (const char* const bad : {"", ":", "1:", ":1", "-1", "+1", "1k", "1KB", "x", "1 ", " 1", "1:2:3", "1,2,3",
                                  "0x10", "99999999999999999999", "9999999999T", "1.5G"}) {
        CAPTURE(bad);
        CHECK(error_of(bad).starts_with("malformed: "));
    }
}

TEST_CASE("data may be written up to the last byte of a limit, and no further", "[fuse][quota][quota.refused]") {
    UnionFixture at(small_image);
    REQUIRE(at.fs->set_quota({.bytes = 4 * kBlock}));
    REQUIRE(at.create("/new"));
    REQUIRE(*at.write("/new", 0, std::string(4 * kBlock - 1, 'a')) == 4 * kBlock - 1);
    CHECK(used(at).bytes == 4 * kBlock);
    REQUIRE(at.write("/new", 4 * kBlock - 1, "z"));
    const auto before = test::dump(*at.changes);
    const std::size_t log_size = at.keeper.log.size();
    CHECK(at.code(at.write("/new", 4 * kBlock, "x")) == EDQUOT);
    CHECK(at.code(at.write("/new", 0, std::string(5 * kBlock, 'x'))) == EDQUOT);
    CHECK(at.code(at.write("/etc/motd", 0, "x")) == EDQUOT);
    CHECK(at.code(at.fs->allocate(at.find("/new"), 0, 4 * kBlock, 1)) == EDQUOT);
    CHECK(test::dump(*at.changes) == before);
    CHECK(at.keeper.log.size() == log_size);
    CHECK(at.stat("/new").size_bytes == 4 * kBlock);
}

TEST_CASE("at the limit what is there can be written over, cut and removed", "[fuse][quota][quota.removing]") {
    UnionFixture at(small_image);
    REQUIRE(at.fs->set_quota({.bytes = 2 * kBlock, .inodes = 3}));
    REQUIRE(at.create("/new", std::string(2 * kBlock, 'a')));
    CHECK(used(at) == QuotaUsage{.bytes = 2 * kBlock, .inodes = 2});
    REQUIRE(at.fs->sync());  // From now on what is written over goes to another place first.
    CHECK(at.write("/new", 100, std::string(kBlock, 'b')));
    CHECK(at.rename("/new", "/newer") == 0);
    CHECK(at.truncate("/newer", kBlock) == 0);
    CHECK(used(at).bytes == kBlock);
    CHECK(at.write("/newer", kBlock, std::string(kBlock, 'c')));
    CHECK(at.unlink("/newer") == 0);
    CHECK(used(at).bytes == 0);
    CHECK(at.create("/other"));
    CHECK(at.code(at.create("/third")) == 0);
    CHECK(at.code(at.create("/fourth")) == EDQUOT);
}

TEST_CASE("holes and bytes of the image cost nothing", "[fuse][quota][quota.account]") {
    UnionFixture at(small_image);
    REQUIRE(at.fs->set_quota({.bytes = kBlock}));
    REQUIRE(at.create("/sparse"));
    CHECK(at.truncate("/sparse", std::uint64_t{1} << 40) == 0);
    CHECK(at.chmod("/etc/motd", 0600) == 0);
    CHECK(at.rename("/etc/motd", "/moved") == 0);
    CHECK(used(at).bytes == 0);
    CHECK(at.write("/sparse", std::uint64_t{1} << 39, "x"));
    CHECK(used(at).bytes == kBlock);
    CHECK(at.code(at.write("/moved", 0, "x")) == EDQUOT);
    constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    CHECK(at.fs->allocate(at.find("/sparse"), kPunch, std::uint64_t{1} << 39, 1));
    CHECK(used(at).bytes == 0);
}

TEST_CASE("each inode that is new or changed counts, and removing is never refused",
          "[fuse][quota][quota.refused][quota.removing]") {
    UnionFixture at(small_image);
    REQUIRE(at.create("/one"));  // The root has changed too.
    CHECK(used(at).inodes == 2);
    REQUIRE(at.fs->set_quota({.inodes = 2}));
    const auto before = test::dump(*at.changes);
    CHECK(at.code(at.create("/two")) == EDQUOT);
    CHECK(at.code(at.mkdir("/two")) == EDQUOT);
    CHECK(at.code(at.make("/two", S_IFLNK | 0777, "one")) == EDQUOT);
    CHECK(at.code(at.fs->make_unnamed(kRootNode, {.mode = S_IFREG | 0600}, {})) == EDQUOT);
    CHECK(at.code(at.create("/etc/two")) == EDQUOT);
    CHECK(at.chmod("/etc/hosts", 0600) == EDQUOT);
    CHECK(at.link("/etc/hosts", "/two") == EDQUOT);
    CHECK(at.rename("/etc/hosts", "/two") == EDQUOT);
    CHECK(test::dump(*at.changes) == before);
    CHECK(at.link("/one", "/two") == 0);
    CHECK(at.rename("/two", "/three") == 0);
    CHECK(at.unlink("/etc/hosts") == 0);  // Leaves a record of the folder: over the limit, but done.
    CHECK(at.unlink("/etc/motd") == 0);
    CHECK(at.rmdir("/etc") == 0);
    CHECK(at.unlink("/three") == 0);
    CHECK(at.unlink("/one") == 0);
    CHECK(used(at).inodes == 1);
    CHECK(at.create("/four"));
}

TEST_CASE("names, xattrs and link targets count where they are more than 1 KiB for each inode",
          "[fuse][quota][quota.account]") {
    UnionFixture at(small_image);
    REQUIRE(at.fs->set_quota({.bytes = kBlock}));
    REQUIRE(at.create("/f"));
    REQUIRE(at.fs->set_xattr(at.find("/f"), "user.a", std::string(1024, 'v'), 0));
    CHECK(used(at).bytes == 0);
    CHECK(at.code(at.fs->set_xattr(at.find("/f"), "user.b", std::string(60'000, 'v'), 0)) == EDQUOT);
    CHECK(at.code(at.fs->xattr(at.find("/f"), "user.b")) == ENODATA);
    const std::string name(250, 'n');
    int links = 0;
    while (links < 100 && at.link("/f", "/" + std::to_string(100 + links) + name) == 0) ++links;
    CHECK(links > 10);
    CHECK(links < 100);
    CHECK(used(at).bytes <= kBlock);
    CHECK(used(at).bytes > kBlock - 300);
    CHECK(at.unlink("/100" + name) == 0);
    CHECK(at.link("/f", "/100" + name) == 0);
    REQUIRE(at.fs->remove_xattr(at.find("/f"), "user.a"));
}

TEST_CASE("a limit may be set below what is taken: nothing grows until enough is removed",
          "[fuse][quota][quota.live]") {
    UnionFixture at(small_image);
    REQUIRE(at.create("/a", std::string(3 * kBlock, 'a')));
    REQUIRE(at.create("/b", std::string(3 * kBlock, 'b')));
    REQUIRE(at.fs->set_quota({.bytes = 4 * kBlock}));
    CHECK(at.fs->quota().limits == QuotaLimits{.bytes = 4 * kBlock});
    CHECK(at.code(at.write("/a", 3 * kBlock, "x")) == EDQUOT);
    CHECK(at.write("/a", 0, "x"));
    CHECK(at.unlink("/b") == 0);
    CHECK(at.write("/a", 3 * kBlock, std::string(kBlock, 'x')));
    CHECK(at.code(at.write("/a", 4 * kBlock, "x")) == EDQUOT);
    REQUIRE(at.fs->set_quota({}));
    CHECK(at.write("/a", 4 * kBlock, "x"));
}

TEST_CASE("a file that was removed counts as long as it is known", "[fuse][quota][quota.account]") {
    UnionFixture at(small_image);
    REQUIRE(at.create("/open", std::string(kBlock, 'x')));
    const auto held = at.fs->lookup(kRootNode, "open");
    CHECK(at.unlink("/open") == 0);
    CHECK(used(at).bytes == kBlock);
    at.fs->forget((*held)->attributes.node, 1);
    CHECK(used(at).bytes == 0);
}

TEST_CASE("statfs shows a limit as the size, and what is taken as used", "[fuse][quota][quota.statfs]") {
    UnionFixture at(small_image);
    at.keeper.capacity_bytes = 100 * kBlock;
    CHECK(at.fs->usage().blocks == 100);
    REQUIRE(at.fs->set_quota({.bytes = 10 * kBlock, .inodes = 20}));
    REQUIRE(at.create("/a", std::string(3 * kBlock + 1, 'a')));
    auto usage = at.fs->usage();
    CHECK(usage.blocks == 10);
    CHECK(usage.free_blocks == 6);
    CHECK(usage.available_blocks == 6);
    CHECK(usage.inodes == 20);
    CHECK(usage.free_inodes == 18);
    at.keeper.capacity_bytes = at.keeper.usage().extent_bytes + 2 * kBlock;
    CHECK(at.fs->usage().available_blocks == 2);
    CHECK(at.fs->usage().free_blocks == 6);
    REQUIRE(at.fs->set_quota({.bytes = kBlock, .inodes = 1}));
    usage = at.fs->usage();
    CHECK(usage.blocks == 1);
    CHECK(usage.free_blocks == 0);
    CHECK(usage.free_inodes == 0);
}

TEST_CASE("limits are kept with the mount; what is none is told", "[fuse][quota][quota.kept]") {
    const test::TempDir folder;
    CHECK(!read_quota(folder.path()));
    write_quota(folder.path(), {.bytes = 123'456, .inodes = 7});
    CHECK(read_quota(folder.path()) == QuotaLimits{.bytes = 123'456, .inodes = 7});
    CHECK(test::read_text(folder / "quota") == "lamina-quota 1\n123456:7\n");
    write_quota(folder.path(), {});
    CHECK(read_quota(folder.path()) == QuotaLimits{});
    const std::string sound = "lamina-quota 1\n123456:7\n";
    for (std::size_t size = 0; size < sound.size(); ++size) {
        test::write_text(folder / "quota", sound.substr(0, size));
        CHECK(test::error_of([&] { static_cast<void>(read_quota(folder.path())); }).starts_with("malformed: "));
    }
    test::write_text(folder / "quota", std::string(100'000, '1'));
    CHECK(test::error_of([&] { static_cast<void>(read_quota(folder.path())); }).starts_with("malformed: "));
}

namespace {

/// A union with a log, as a mount that Lamina keeps has it.
class LoggedUnion : public test::UnionPaths {
public:
    LoggedUnion(const std::string& folder, const View& view) {
        state_ = MountState::open(folder, {store::Digest::of({})}, view,
                                  {.log = {.sync_interval = std::chrono::milliseconds(0)}, .boot = {}});
        fs = std::make_unique<UnionFs>(view, state_->changes(), &state_->keeper());
    }
    void close() {
        fs.reset();
        state_->close();
    }
    MountState& state() { return *state_; }

private:
    std::unique_ptr<MountState> state_;
};

/// One random step with its error number, on names of one folder.
int random_step(test::UnionPaths& at, std::mt19937& random, bool& removes) {
    const auto pick = [&](std::uint32_t below) { return random() % below; };
    const std::string path = "/" + std::string(1, static_cast<char>('a' + pick(6)));
    const std::string other = "/" + std::string(1, static_cast<char>('a' + pick(6)));
    removes = false;
    switch (pick(9)) {
        case 0:
            return at.code(at.create(path));
        case 1:
            removes = true;
            return at.unlink(path);
        case 2:
            return at.rename(path, other);
        case 3:
            return at.link(path, other);
        case 4:
            return at.truncate(path, pick(30'000));
        case 5:
            return at.code(at.fs->set_xattr(at.find(path), "user.x", std::string(pick(3000), 'x'), 0));
        case 6:
            return at.code(
                at.fs->allocate(at.find(path), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, pick(20'000), 5000));
        default:
            return at.code(at.write(path, pick(20'000), std::string(1 + pick(9000), 'w')));
    }
}

}  // namespace

TEST_CASE("random changes never pass a limit, what is refused changes nothing, and a remount finds the same account",
          "[fuse][quota][random][quota.account]") {
    test::MemoryView view;
    view.add(kRootNode, "a", S_IFREG | 0644, std::string(20'000, 'v'));
    view.add_xattr(view.add(kRootNode, "b", S_IFREG | 0644, "small"), "user.below", std::string(2000, 'b'));
    for (unsigned seed = 1; seed <= 12; ++seed) {
        const test::TempDir folder("/dev/shm");
        std::mt19937 random(seed);
        int refused = 0;
        for (int mount = 0; mount < 3; ++mount) {
            LoggedUnion at(folder.path(), view);
            for (int step = 0; step < 150; ++step) {
                if (step % 40 == 0)
                    REQUIRE(at.fs->set_quota({.bytes = random() % 60'000 + 1, .inodes = random() % 8 + 1}));
                const auto [limits, before] = at.fs->quota();
                const auto state = test::dump(at.state().changes());
                bool removes = false;
                const int error = random_step(at, random, removes);
                const QuotaUsage after = at.fs->quota().used;
                CAPTURE(seed, mount, step, error, limits.bytes, limits.inodes, before.bytes, before.inodes, after.bytes,
                        after.inodes);
                if (error == EDQUOT) {
                    ++refused;
                    REQUIRE(!removes);
                    REQUIRE(test::dump(at.state().changes()) == state);
                }
                if (!removes) REQUIRE(after.bytes <= std::max(limits.bytes, before.bytes));
                if (!removes) REQUIRE(after.inodes <= std::max(limits.inodes, before.inodes));
            }
            if (mount == 1) REQUIRE(*at.state().log_keeper()->write_checkpoint());
            const QuotaUsage account = at.fs->quota().used;
            at.close();
            LoggedUnion again(folder.path(), view);
            REQUIRE(again.fs->quota().used == account);
            again.close();
        }
        CHECK(refused > 0);
    }
}
