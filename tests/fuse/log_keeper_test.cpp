#include "fuse/log_keeper.h"

#include "store/error.h"
#include "store/file_ops.h"
#include "support/catch.h"
#include "support/kept_mount.h"
#include "support/prefixes.h"
#include "support/temp_dir.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

using namespace lamina;
using namespace lamina::unionfs;
using lamina::test::KeptMount;

namespace {

class StepCounter : public store::FaultHook {
public:
    StepCounter() { store::g_fault_hook = this; }
    ~StepCounter() override { store::g_fault_hook = nullptr; }
    void before(std::string_view step, std::string_view path) override {
        if (step == "fsync" && path.find("/log.") != path.npos) ++log_syncs;
        if (step == "fsync" && path.ends_with("/extents")) ++extent_syncs;
    }
    std::atomic<int> log_syncs{0};
    std::atomic<int> extent_syncs{0};
};

std::uint64_t log_bytes(const test::TempDir& folder) {
    return store::file_size(folder / "log.1");
}

/// What a mount in that boot would begin with.
std::string text_after(const test::TempDir& folder, const View& view, std::uint8_t boot) {
    KeptMount mount(folder.path(), view, {.boot = boot, .is_read_only = true});
    return test::text_of(mount.state());
}

}  // namespace

TEST_CASE("a mount that changes nothing makes no file", "[log_keeper]") {
    const test::TempDir folder;
    const test::MemoryView view;
    {
        KeptMount mount(folder.path(), view);
        CHECK(mount.keeper().sync());
        mount.state().close();
    }
    CHECK(store::list_folder(folder.path()).empty());
}

TEST_CASE("records wait in the buffer until it is full, flushed or synced", "[log_keeper]") {
    const test::TempDir folder;
    const test::MemoryView view;
    KeptMount mount(folder.path(), view);
    REQUIRE(mount.make(kRootNode, "a", S_IFREG | 0644));
    CHECK(log_bytes(folder) == log_format::kHeaderBytes);
    REQUIRE(mount.keeper().flush());
    const std::uint64_t flushed = log_bytes(folder);
    CHECK(flushed > log_format::kHeaderBytes);
    for (int at = 0; at < 2000; ++at) REQUIRE(mount.make(kRootNode, "f" + std::to_string(at), S_IFREG | 0644));
    CHECK(log_bytes(folder) > flushed + 40 * 1024);
    const std::uint64_t written = log_bytes(folder);
    REQUIRE(mount.keeper().sync());
    CHECK(log_bytes(folder) > written);
}

TEST_CASE("a sync of what is durable already touches no disk", "[log_keeper]") {
    const test::TempDir folder;
    const test::MemoryView view;
    KeptMount mount(folder.path(), view);
    REQUIRE(mount.make(kRootNode, "a", S_IFREG | 0644));
    REQUIRE(mount.keeper().sync());
    const StepCounter counter;
    REQUIRE(mount.keeper().sync());
    CHECK(counter.log_syncs == 0);
    REQUIRE(mount.make(kRootNode, "b", S_IFREG | 0644));
    REQUIRE(mount.keeper().sync());
    CHECK(counter.log_syncs == 1);
    CHECK(counter.extent_syncs == 0);  // No data was written.
}

TEST_CASE("many threads that sync at once share the work", "[log_keeper]") {
    const test::TempDir folder;
    const test::MemoryView view;
    KeptMount mount(folder.path(), view);
    for (int round = 0; round < 20; ++round) {
        REQUIRE(mount.make(kRootNode, "f" + std::to_string(round), S_IFREG | 0644));
        const StepCounter counter;
        std::vector<std::thread> threads;
        std::atomic<int> failed{0};
        for (int at = 0; at < 8; ++at) threads.emplace_back([&] { failed += mount.keeper().sync() ? 0 : 1; });
        for (std::thread& thread : threads) thread.join();
        CHECK(failed == 0);
        CHECK(counter.log_syncs == 1);
    }
}

TEST_CASE("the timer writes and syncs without being asked", "[log_keeper]") {
    const test::TempDir folder;
    const test::MemoryView view;
    KeptMount::Options options;
    options.log.flush_interval = std::chrono::milliseconds(1);
    options.log.sync_interval = std::chrono::milliseconds(2);
    KeptMount mount(folder.path(), view, options);
    REQUIRE(mount.make(kRootNode, "a", S_IFREG | 0644));
    const std::string before = test::text_of(mount.state());
    const auto synced = [&] { return text_after(folder, view, 2); };
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (synced() != before && std::chrono::steady_clock::now() < until) std::this_thread::yield();
    CHECK(synced() == before);
}

TEST_CASE("after a kill all that was flushed is there, after a power cut all that was synced", "[log_keeper][crash]") {
    const test::TempDir folder;
    const test::MemoryView view;
    std::string synced, flushed;
    {
        KeptMount mount(folder.path(), view);
        const NodeId file = mount.make(kRootNode, "file", S_IFREG | 0644).value();
        REQUIRE(mount.write(file, 0, "synced"));
        REQUIRE(mount.keeper().sync());
        synced = test::text_of(mount.state());
        REQUIRE(mount.write(file, 0, "SYNCED"));
        REQUIRE(mount.make(kRootNode, "later", S_IFREG | 0644));
        flushed = test::text_of(mount.state());
    }
    SECTION("a kill") {
        CHECK(text_after(folder, view, 1) == flushed);
    }
    SECTION("a power cut, and work that goes on, and another") {
        CHECK(text_after(folder, view, 2) == synced);
        {
            KeptMount mount(folder.path(), view, {.boot = 2});
            REQUIRE(mount.make(kRootNode, "third", S_IFREG | 0644));
            flushed = test::text_of(mount.state());
        }
        CHECK(text_after(folder, view, 2) == flushed);
        CHECK(text_after(folder, view, 3) == synced);
        {
            KeptMount mount(folder.path(), view, {.boot = 3});
            REQUIRE(mount.make(kRootNode, "fourth", S_IFREG | 0644));
            REQUIRE(mount.keeper().sync());
            flushed = test::text_of(mount.state());
        }
        CHECK(text_after(folder, view, 4) == flushed);
    }
}

TEST_CASE("released space is not used again before a sync", "[log_keeper]") {
    const test::TempDir folder;
    const test::MemoryView view;
    KeptMount mount(folder.path(), view);
    const std::string block(4096, 'x');
    const NodeId first = mount.make(kRootNode, "first", S_IFREG | 0644).value();
    REQUIRE(mount.write(first, 0, block));
    const NodeId last = mount.make(kRootNode, "last", S_IFREG | 0644).value();
    REQUIRE(mount.write(last, 0, block));  // So that the first is not at the end.
    REQUIRE(mount.keeper().sync());
    REQUIRE(mount.remove(kRootNode, "first"));
    const auto place = [&] { return mount.keeper().place(std::as_bytes(std::span(block)), 0).value(); };
    CHECK(place() > 2 * 4096);
    REQUIRE(mount.keeper().sync());
    CHECK(place() == 4096);
}

TEST_CASE("space that somebody reads is not used again", "[log_keeper]") {
    const test::TempDir folder;
    const test::MemoryView view;
    KeptMount mount(folder.path(), view);
    const std::string block(4096, 'x');
    const NodeId first = mount.make(kRootNode, "first", S_IFREG | 0644).value();
    REQUIRE(mount.write(first, 0, block));
    const NodeId last = mount.make(kRootNode, "last", S_IFREG | 0644).value();
    REQUIRE(mount.write(last, 0, block));
    const unsigned ticket = mount.keeper().begin_reading();
    REQUIRE(mount.remove(kRootNode, "first"));
    REQUIRE(mount.keeper().sync());
    const auto place = [&] { return mount.keeper().place(std::as_bytes(std::span(block)), 0).value(); };
    CHECK(place() > 2 * 4096);
    const unsigned other = mount.keeper().begin_reading();  // Began after it was released: does not hold it.
    mount.keeper().end_reading(ticket);
    REQUIRE(mount.make(kRootNode, "more", S_IFREG | 0644));
    REQUIRE(mount.keeper().sync());
    CHECK(place() == 4096);
    mount.keeper().end_reading(other);
}

TEST_CASE("data may be written over only until a sync or a cut begins", "[log_keeper]") {
    const test::TempDir folder;
    const test::MemoryView view;
    KeptMount mount(folder.path(), view);
    REQUIRE(mount.keeper().reserve(100, 100));
    const std::string text = "0123456789";
    const auto bytes = std::as_bytes(std::span(text));
    const std::uint64_t place = mount.keeper().place(bytes, 0).value();
    CHECK(mount.keeper().may_overwrite(place, 10));
    CHECK(mount.keeper().may_overwrite(place + 3, 7));
    CHECK_FALSE(mount.keeper().may_overwrite(place, 11));
    CHECK_FALSE(mount.keeper().may_overwrite(place - 1, 2));
    if (GENERATE(true, false)) {
        REQUIRE(mount.make(kRootNode, "a", S_IFREG | 0644));
        REQUIRE(mount.keeper().sync());
    } else {
        REQUIRE(mount.keeper().begin_cut());
    }
    CHECK_FALSE(mount.keeper().may_overwrite(place, 10));
    CHECK(mount.keeper().overwrite(place, bytes).error() == Errno{EAGAIN});
    const std::uint64_t next = mount.keeper().place(bytes, 0).value();
    CHECK(mount.keeper().may_overwrite(next, 10));
}

TEST_CASE("a cut shows the mount as it was, whatever happens after it", "[log_keeper]") {
    const test::TempDir folder;
    const auto view = test::small_view();
    KeptMount::Options options;
    options.log.checkpoint_log_bytes = 5000;
    KeptMount mount(folder.path(), view, options);
    test::RandomUser user(GENERATE(11U, 12U, 13U));
    for (int step = 0; step < 150; ++step) user.step(mount);
    const auto cut = mount.keeper().begin_cut().value();
    const std::string at_cut = test::text_of(mount.state());
    for (int step = 0; step < 300; ++step) {
        user.step(mount);
        if (step % 20 == 0) REQUIRE(mount.keeper().sync());
        if (step % 50 == 0) CHECK(mount.keeper().write_checkpoint() == false);
    }
    {
        const auto seen = MountState::open_cut(folder.path(), KeptMount::tree(), view, cut);
        CHECK(test::text_of(*seen) == at_cut);
        CHECK(seen->keeper().reserve(1, 1).error() == Errno{EROFS});
    }
    mount.keeper().end_cut();
    CHECK(mount.keeper().write_checkpoint() == true);
    CHECK_THROWS_AS(MountState::open_cut(folder.path(), KeptMount::tree(), view, cut), store::Error);
}

TEST_CASE("a live mount and its replay are the same, over many sessions", "[log_keeper][random]") {
    const auto seed = GENERATE(range(1U, 13U));
    CAPTURE(seed);
    const test::TempDir folder;
    const auto view = test::small_view();
    test::RandomUser user(seed);
    std::mt19937 random(seed);
    std::string expected;
    std::uint8_t boot = 1;
    for (int session = 0; session < 8; ++session) {
        KeptMount::Options options{.boot = boot};
        options.log.buffer_bytes = random() % 2 == 0 ? 0 : 4000;
        options.log.checkpoint_log_bytes = random() % 2 == 0 ? 4000 : 1'000'000;
        options.log.close_log_bytes = 2000;
        KeptMount mount(folder.path(), view, options);
        if (session > 0) REQUIRE(test::text_of(mount.state()) == expected);
        for (int step = 0; step < 80; ++step) {
            REQUIRE(user.step(mount));
            if (random() % 15 == 0) REQUIRE(mount.keeper().sync());
        }
        if (random() % 3 == 0) REQUIRE(mount.keeper().write_checkpoint());
        expected = test::text_of(mount.state());
        switch (random() % 3) {
            case 0:  // A power cut after a sync.
                REQUIRE(mount.keeper().sync());
                ++boot;
                break;
            case 1:
                mount.state().close();
                break;
            default:
                break;  // A kill.
        }
    }
}

TEST_CASE("space of removed files is given back to the disk", "[log_keeper]") {
    const test::TempDir folder;
    const test::MemoryView view;
    KeptMount mount(folder.path(), view);
    const std::string megabyte(1 << 20, 'x');
    const NodeId big = mount.make(kRootNode, "big", S_IFREG | 0644).value();
    for (std::uint64_t at = 0; at < 20; ++at) REQUIRE(mount.write(big, at << 20, megabyte));
    const NodeId small = mount.make(kRootNode, "small", S_IFREG | 0644).value();
    REQUIRE(mount.write(small, 0, "x"));
    REQUIRE(mount.keeper().sync());
    const auto disk_bytes = [&] {
        struct stat st {};
        REQUIRE(::stat((folder / "extents").c_str(), &st) == 0);
        return st.st_blocks * 512;
    };
    CHECK(disk_bytes() >= 20 << 20);
    REQUIRE(mount.remove(kRootNode, "big"));
    REQUIRE(mount.make(kRootNode, "any", S_IFREG | 0644));
    REQUIRE(mount.keeper().sync());
    CHECK(disk_bytes() < 12 << 20);
    mount.state().close();
    CHECK(disk_bytes() < 1 << 20);
    CHECK(mount.keeper().usage().extent_bytes == 1);
}

TEST_CASE("how long a million changes take to replay", "[.][bench]") {
    const test::TempDir folder;
    const test::MemoryView view;
    using Clock = std::chrono::steady_clock;
    const auto seconds = [](Clock::time_point from) {
        return std::chrono::duration<double>(Clock::now() - from).count();
    };
    KeptMount::Options options;
    options.log.checkpoint_log_bytes = ~std::uint64_t{0} >> 1;
    {
        KeptMount mount(folder.path(), view, options);
        const auto start = Clock::now();
        for (int at = 0; at < 1'000'000; ++at) {
            const std::string name = "file-" + std::to_string(at);
            const change::Make make{.parent = kRootNode,
                                    .name = name,
                                    .node = kFirstNewNode + static_cast<NodeId>(at),
                                    .mode = S_IFREG | 0644,
                                    .time = {.seconds = at}};
            REQUIRE(mount.change(make));
        }
        WARN("a million changes: " << seconds(start) << " s");
        const auto sync_start = Clock::now();
        REQUIRE(mount.keeper().sync());
        WARN("sync: " << seconds(sync_start) << " s, log of " << log_bytes(folder) << " bytes");
    }
    const auto open_start = Clock::now();
    KeptMount mount(folder.path(), view, options);
    WARN("replay of the log: " << seconds(open_start) << " s");
    const auto checkpoint_start = Clock::now();
    REQUIRE(mount.keeper().write_checkpoint());
    WARN("checkpoint: " << seconds(checkpoint_start) << " s, " << store::file_size(folder / "checkpoint") << " bytes");
    const auto again_start = Clock::now();
    KeptMount reader(folder.path(), view, {.is_read_only = true});
    WARN("replay of the checkpoint: " << seconds(again_start) << " s");
}
