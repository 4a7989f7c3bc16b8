#include "fuse/log_keeper.h"
#include "store/error.h"
#include "support/catch.h"
#include "support/kept_mount.h"
#include "support/loop_disk.h"
#include "support/prefixes.h"
#include "support/temp_dir.h"

#include <random>
#include <string>

// What only a real file system shows; root only.

using namespace lamina;
using namespace lamina::unionfs;
using lamina::test::KeptMount;

TEST_CASE("on a full file system a write fails, what was there stays, and the mount goes on", "[log_keeper][disk]") {
    if (!test::LoopDisk::is_possible()) {
        WARN("skipped: needs root and loop devices");
        return;
    }
    const test::LoopDisk disk(24);
    const test::MemoryView view;
    const std::string folder = disk.path() + "/mount";
    store::make_folder(folder);
    KeptMount mount(folder, view);
    const NodeId file = mount.make(kRootNode, "file", S_IFREG | 0644).value();
    const std::string megabyte(1 << 20, 'x');
    std::uint64_t written = 0;
    Result<void> last;
    while ((last = mount.write(file, written, megabyte))) written += megabyte.size();
    CHECK(last == fail(ENOSPC));
    CHECK(written > 8 << 20);
    CHECK(mount.keeper().sync());

    std::uint64_t names = 0;  // Small changes go on until the log finds no room either.
    for (; names < 200'000; ++names) {
        const auto made = mount.make(kRootNode, "n" + std::to_string(names) + std::string(200, 'n'), S_IFREG | 0644);
        if (made) continue;
        CHECK(made.error() == Errno{ENOSPC});
        break;
    }
    CHECK(mount.keeper().sync());
    std::string text = test::text_of(mount.state());
    {
        KeptMount reader(folder, view, {.boot = 2, .is_read_only = true});
        CHECK((test::text_of(reader.state()) == text));
    }
    REQUIRE(mount.remove(kRootNode, "file"));  // Half of the disk is free again.
    const NodeId next = mount.make(kRootNode, "next", S_IFREG | 0644).value();
    CHECK(mount.write(next, 0, std::string(2 << 20, 'y')));
    CHECK(mount.keeper().sync());
    text = test::text_of(mount.state());
    KeptMount reader(folder, view, {.boot = 2, .is_read_only = true});
    CHECK((test::text_of(reader.state()) == text));
}

TEST_CASE("after a real power cut a mount is a prefix with all that was synced",
          "[log_keeper][disk][crash][data.whole]") {
    if (!test::LoopDisk::is_possible()) {
        WARN("skipped: needs root and loop devices");
        return;
    }
    const auto view = test::small_view();
    const auto seed = GENERATE(range(60U, 63U));
    const test::Prefixes states(seed, 60, view);
    const test::LoopDisk disk(24);
    const std::string folder = disk.path() + "/mount";
    store::make_folder(folder);
    KeptMount::Options options;
    options.log.checkpoint_log_bytes = 8000;
    KeptMount mount(folder, view, options);
    test::RandomUser user(seed);
    std::mt19937 random(seed);
    std::size_t synced = 0;
    for (std::size_t step = 1; step <= 60; ++step) {
        REQUIRE(user.step(mount));
        if (random() % 4 == 0) {
            REQUIRE(mount.keeper().sync());
            synced = step;
        }
        if (random() % 6 != 0) continue;
        if (random() % 2 == 0) REQUIRE(mount.keeper().flush());
        CAPTURE(seed, step, synced);
        const test::TempDir scratch;
        const test::LoopDisk after(disk.power_cut(scratch / "image"));
        KeptMount replayed(after.path() + "/mount", view, {.boot = 2});
        const auto found = states.find(test::text_of(replayed.state()));
        REQUIRE(found.has_value());
        CHECK(*found >= synced);
        REQUIRE(replayed.make(kRootNode, "after the cut", S_IFREG | 0644));
        REQUIRE(replayed.keeper().sync());
    }
}
