#include "daemon/idle_upkeep.h"

#include "store/error.h"
#include "support/catch.h"

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

using namespace lamina;
using daemon::IdleUpkeep;
using namespace std::chrono_literals;

namespace {

/// An upkeep that runs until it is stopped, or ends at once.
class FakeUpkeep {
public:
    explicit FakeUpkeep(bool ends_at_once) : ends_at_once_(ends_at_once) {}

    store::UpkeepReport run(const std::stop_token& stop) {
        std::unique_lock lock(mutex_);
        ++begun_;
        changed_.notify_all();
        if (ends_at_once_) return {};
        changed_.wait(lock, stop, [] { return false; });
        ++stopped_;
        changed_.notify_all();
        throw store::Error(store::Errc::cancelled, "stopped");
    }
    IdleUpkeep::Upkeep function() {
        return [this](const std::stop_token& stop) { return run(stop); };
    }
    /// False after a time that no machine is too slow for.
    bool has_begun(unsigned times) {
        std::unique_lock lock(mutex_);
        return changed_.wait_for(lock, 60s, [&] { return begun_ >= times; });
    }
    bool has_stopped(unsigned times) {
        std::unique_lock lock(mutex_);
        return changed_.wait_for(lock, 60s, [&] { return stopped_ >= times; });
    }
    unsigned begun() {
        const std::lock_guard lock(mutex_);
        return begun_;
    }

private:
    const bool ends_at_once_;
    std::mutex mutex_;
    std::condition_variable_any changed_;
    unsigned begun_ = 0;
    unsigned stopped_ = 0;
};

}  // namespace

TEST_CASE("upkeep begins in idle time, stands back for work, and begins again after it", "[daemon][upkeep]") {
    FakeUpkeep fake(false);
    IdleUpkeep upkeep(fake.function(), 1ms);
    REQUIRE(fake.has_begun(1));
    std::optional<IdleUpkeep::Work> work(std::in_place, upkeep);
    REQUIRE(fake.has_stopped(1));
    std::this_thread::sleep_for(20ms);  // Nothing is waited for: it must not begin in any time.
    CHECK(fake.begun() == 1);
    work.reset();
    CHECK(fake.has_begun(2));
}

TEST_CASE("an upkeep that came to its end is not repeated until there was work", "[daemon][upkeep]") {
    FakeUpkeep fake(true);
    IdleUpkeep upkeep(fake.function(), 1ms);
    REQUIRE(fake.has_begun(1));
    std::this_thread::sleep_for(20ms);  // As above.
    CHECK(fake.begun() == 1);
    { const IdleUpkeep::Work work(upkeep); }
    CHECK(fake.has_begun(2));
}

TEST_CASE("the end of the daemon stops an upkeep", "[daemon][upkeep]") {
    FakeUpkeep fake(false);
    {
        const IdleUpkeep upkeep(fake.function(), 1ms);
        REQUIRE(fake.has_begun(1));
    }
    CHECK(fake.has_stopped(1));
}

TEST_CASE("without an idle time there is no upkeep", "[daemon][upkeep]") {
    FakeUpkeep fake(true);
    IdleUpkeep upkeep(fake.function(), 0ms);
    { const IdleUpkeep::Work work(upkeep); }
    std::this_thread::sleep_for(5ms);  // As above.
    CHECK(fake.begun() == 0);
}
