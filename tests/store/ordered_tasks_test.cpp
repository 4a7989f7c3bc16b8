#include "store/ordered_tasks.h"

#include "store/error.h"
#include "support/catch.h"
#include "support/oci_archive.h"

#include <atomic>
#include <condition_variable>
#include <mutex>

using namespace lamina;
using store::OrderedTasks;

namespace {

/// Opened once; whoever waits before, or afterwards, goes through.
class Gate {
public:
    void open() {
        const std::lock_guard lock(mutex_);
        is_open_ = true;
        changed_.notify_all();
    }
    void wait() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return is_open_; });
    }
    /// False: stopped.
    bool wait(const std::stop_token& stop) {
        std::unique_lock lock(mutex_);
        return changed_.wait(lock, stop, [&] { return is_open_; });
    }

private:
    std::mutex mutex_;
    std::condition_variable_any changed_;
    bool is_open_ = false;
};

[[noreturn]] void fail(const std::string& text) {
    throw store::Error(store::Errc::corrupt, text);
}

}  // namespace

TEST_CASE("tasks run side by side, each once", "[store][import]") {
    constexpr std::size_t kCount = 50;
    std::atomic<int> runs[kCount] = {};
    Gate both;
    std::atomic<int> begun{0};
    OrderedTasks tasks(kCount, 2,
                       [&](std::size_t number, const std::stop_token&) {
                           if (++begun == 2) both.open();
                           if (number < 2) both.wait();  // Ends only when two run at once.
                           ++runs[number];
                       },
                       {});
    for (std::size_t number = 0; number < kCount; ++number) {
        tasks.wait(number);
        CHECK(runs[number] == 1);
    }
}

TEST_CASE("a task that fails stops those behind it and lets those before it come to their end", "[store][import]") {
    Gate failed;
    Gate third_runs;
    std::atomic<bool> is_first_done{false};
    std::atomic<bool> is_third_stopped{false};
    std::atomic<std::size_t> last{0};
    const auto work = [&](std::size_t number, const std::stop_token& stop) {
        last = std::max(last.load(), number);
        if (number == 0) {
            failed.wait();
            is_first_done = !stop.stop_requested();
        } else if (number == 1) {
            third_runs.wait();
            fail("the second");
        } else if (number == 2) {
            third_runs.open();
            Gate never;
            is_third_stopped = !never.wait(stop);
            failed.open();
            fail("the third, because it was stopped");
        }
    };
    OrderedTasks tasks(9, 3, work, {});
    tasks.wait(0);
    CHECK(is_first_done);
    CHECK(is_third_stopped);
    CHECK(test::error_of([&] { tasks.wait(1); }) == "corrupt: the second");
    CHECK(test::error_of([&] { tasks.wait(2); }) == "corrupt: the second");
    CHECK(test::error_of([&] { tasks.wait(8); }) == "corrupt: the second");
    CHECK(last == 2);
}

TEST_CASE("of two tasks that fail the first one counts, whenever it does", "[store][import]") {
    Gate second_failed;
    OrderedTasks tasks(2, 2,
                       [&](std::size_t number, const std::stop_token&) {
                           if (number == 1) {
                               second_failed.open();
                               fail("the second");
                           }
                           second_failed.wait();
                           fail("the first");
                       },
                       {});
    CHECK(test::error_of([&] { tasks.wait(0); }) == "corrupt: the first");
    CHECK(test::error_of([&] { tasks.wait(1); }) == "corrupt: the first");
}

TEST_CASE("a stop ends all tasks, those that had not begun too", "[store][import]") {
    std::stop_source source;
    Gate first_runs;
    std::atomic<int> begun{0};
    OrderedTasks tasks(
        3, 1,
        [&](std::size_t, const std::stop_token& stop) {
            ++begun;
            first_runs.open();
            Gate never;
            if (!never.wait(stop)) throw store::Error(store::Errc::cancelled, "stopped");
        },
        source.get_token());
    first_runs.wait();
    source.request_stop();
    CHECK(test::error_of([&] { tasks.wait(0); }) == "cancelled: stopped");
    CHECK(test::error_of([&] { tasks.wait(2); }) == "cancelled: stopped");
    CHECK(begun == 1);
}

TEST_CASE("tasks that nobody waits for are stopped when their owner goes", "[store][import]") {
    std::atomic<bool> is_stopped{false};
    Gate runs;
    {
        OrderedTasks tasks(1, 1,
                           [&](std::size_t, const std::stop_token& stop) {
                               runs.open();
                               Gate never;
                               is_stopped = !never.wait(stop);
                           },
                           {});
        runs.wait();
    }
    CHECK(is_stopped);
}
