#include "fuse/folder_lock.h"
#include "fuse/holder_watch.h"
#include "fuse/locked_buffer.h"
#include "fuse/mount_server.h"
#include "fuse/request_counts.h"
#include "fuse/server_log.h"
#include "fuse/transport.h"
#include "fuse/waiting_call.h"
#include "fuse/worker_pool.h"
#include "store/error.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/temp_dir.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <future>
#include <thread>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

void write_text(const std::string& path, std::string_view text) {
    store::write_file_atomically(path, std::as_bytes(std::span(text)));
}

}  // namespace

TEST_CASE("workers run every task before they end, also those that come late", "[worker_pool]") {
    std::atomic<int> done{0};
    {
        WorkerPool pool(3);
        for (int i = 0; i < 100; ++i) pool.run([&] { ++done; });
        pool.finish();
        CHECK(done == 100);
        pool.run([&] { ++done; });  // Here and now.
        CHECK(done == 101);
        CHECK(pool.task_count() == 101);
    }
}

TEST_CASE("a task that waits does not hold up the others", "[worker_pool]") {
    WorkerPool pool(2);
    std::promise<void> gate;
    std::promise<void> reached;
    pool.run([&] { gate.get_future().wait(); });
    pool.run([&] { reached.set_value(); });
    reached.get_future().wait();
    gate.set_value();
}

TEST_CASE("a buffer pool lends no more than its limit", "[locked_buffer]") {
    BufferPool pool(4096, 2);
    auto one = pool.take();
    auto two = pool.take();
    REQUIRE(one);
    REQUIRE(two);
    CHECK(one->bytes().size() == 4096);
    CHECK(one->bytes().data() != two->bytes().data());
    CHECK_FALSE(pool.take());
    pool.give_back(std::move(one));
    CHECK(pool.take());
}

TEST_CASE("requests are counted by kind, unknown ones together", "[request_counts]") {
    RequestCounts::Counts memory{};
    RequestCounts counts(memory);
    counts.count(FUSE_LOOKUP);
    counts.count(FUSE_LOOKUP);
    counts.count(kernel::kOpStatx);
    counts.count(63);
    counts.count(1'000'000);
    CHECK(counts.total() == 5);
    CHECK(counts.of(FUSE_LOOKUP) == 2);
    const std::vector<std::pair<std::string_view, std::uint64_t>> expected = {
        {"lookup", 2}, {"statx", 1}, {"other", 2}};
    CHECK(counts.list() == expected);
}

TEST_CASE("a server is stuck when it answers nothing while a request waits, or was taken", "[holder]") {
    SessionPage page{};
    page.state = static_cast<std::uint64_t>(SessionPage::State::serving);
    std::array<int, 2> ends{-1, -1};
    REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
    const store::UniqueFd from(ends[0]);
    const store::UniqueFd to(ends[1]);
    const auto is_found_stuck = [&](bool answers) {
        ServerWatch watch;
        watch.start(30);
        for (int look = 0; look < 5; ++look) {
            if (answers) page.progress = page.progress + 1;
            if (watch.is_stuck(page, from.get(), ::getpid())) return true;
        }
        return false;
    };
    CHECK_FALSE(is_found_stuck(false));  // Nobody asks for anything.
    page.in_hand[5] = 7;
    CHECK(is_found_stuck(false));
    CHECK_FALSE(is_found_stuck(true));
    page.in_hand[5] = 0;
    REQUIRE(::write(to.get(), "x", 1) == 1);
    CHECK(is_found_stuck(false));
    CHECK_FALSE(is_found_stuck(true));
}

TEST_CASE("a server's log is bounded and keeps one line a line", "[server_log][errors.log]") {
    const test::TempDir folder;
    ServerLog log(folder / "server.log");
    log.line("first\nline \x1b[31m");
    const auto bytes = store::read_file(folder / "server.log", 1000);
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    CHECK(text.ends_with("Z first?line ?[31m\n"));
    for (int i = 0; i < 1500; ++i) log.line(std::string(900, 'x'));
    CHECK(store::file_size(folder / "server.log") <= ServerLog::kLimitBytes);
    CHECK(store::file_size(folder / "server.log.old") <= ServerLog::kLimitBytes);
}

TEST_CASE("a log that cannot be written disturbs nobody", "[server_log]") {
    ServerLog log("/no/such/folder/server.log");
    log.line("lost");
}

TEST_CASE("a mount's folder is locked by one server at a time", "[folder_lock]") {
    const test::TempDir folder;
    const std::chrono::milliseconds none{0};
    {
        const FolderLock lock(folder.path(), none);
        CHECK_THROWS_AS(FolderLock(folder.path(), none), store::Error);
    }
    CHECK_NOTHROW(FolderLock(folder.path(), none));
}

TEST_CASE("a mount point is a folder outside the store", "[mount_server]") {
    const test::TempDir folder;
    store::make_folders(folder / "store/mounts/1");
    store::make_folder(folder / "mnt");
    write_text(folder / "file", "");
    REQUIRE(::symlink("mnt", (folder / "link").c_str()) == 0);
    REQUIRE(::symlink("store/mounts", (folder / "inward").c_str()) == 0);
    store::make_folder(folder / "store2");
    const std::string mount_folder = folder / "store/mounts/1";
    CHECK(checked_mountpoint(folder / "mnt", mount_folder) == folder / "mnt");
    CHECK(checked_mountpoint(folder / "link", mount_folder) == folder / "mnt");
    CHECK(checked_mountpoint(folder / "store2", mount_folder) == folder / "store2");
    for (const char* const bad : {"none", "file", "store", "store/mounts/1", "inward", "", "store/.."}) {
        CAPTURE(bad);
        CHECK_THROWS_AS(checked_mountpoint(folder / bad, mount_folder), store::Error);
    }
}

TEST_CASE("ordinary users share their mounts only where fuse.conf lets them", "[transport]") {
    const test::TempDir folder;
    const std::string conf = folder / "fuse.conf";
    CHECK_FALSE(user_may_allow_others(conf));
    write_text(conf, "# user_allow_other\nmount_max = 10\n");
    CHECK_FALSE(user_may_allow_others(conf));
    write_text(conf, "mount_max = 10\n \tuser_allow_other \r\n");
    CHECK(user_may_allow_others(conf));
    write_text(conf, "user_allow_other");
    CHECK(user_may_allow_others(conf));
}

TEST_CASE("a thread that waits in a write is told from others", "[waiting_call][attributes.late-set-id]") {
    std::array<int, 2> pipe{};
    REQUIRE(::pipe2(pipe.data(), O_CLOEXEC) == 0);
    const auto while_waiting = [](auto&& wait, auto&& end) {
        std::promise<std::uint32_t> id;
        std::thread thread([&] {
            id.set_value(static_cast<std::uint32_t>(::syscall(SYS_gettid)));
            wait();
        });
        const bool writes = waits_in_write(id.get_future().get());
        end();
        thread.join();
        return writes;
    };
    std::array<char, 1> byte{};
    CHECK_FALSE(while_waiting([&] { (void)!::read(pipe[0], byte.data(), 1); },
                              [&] { (void)!::write(pipe[1], byte.data(), 1); }));
    const int room = ::fcntl(pipe[1], F_GETPIPE_SZ);
    const std::string all(static_cast<std::size_t>(room) + 1, 'x');
    std::string sink(all.size(), '\0');
    CHECK(while_waiting([&] { (void)!::write(pipe[1], all.data(), all.size()); },
                        [&] { (void)!::read(pipe[0], sink.data(), sink.size()); }));
    CHECK_FALSE(waits_in_write(0));
    ::close(pipe[0]);
    ::close(pipe[1]);
}
