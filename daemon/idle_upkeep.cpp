#include "daemon/idle_upkeep.h"

#include "daemon/log.h"
#include "store/error.h"

#include <utility>

namespace lamina::daemon {

namespace {

/// Also when nothing changes: a scrub may have come due.
constexpr auto kLongestPause = std::chrono::hours(6);

}  // namespace

IdleUpkeep::IdleUpkeep(Upkeep upkeep, std::chrono::milliseconds after) : upkeep_(std::move(upkeep)), after_(after) {
    if (after_.count() == 0) return;
    thread_ = std::jthread([this](const std::stop_token& ending) { run(ending); });
}

IdleUpkeep::~IdleUpkeep() {
    thread_.request_stop();
    const std::lock_guard lock(mutex_);
    current_.request_stop();
}

IdleUpkeep::Work::Work(IdleUpkeep& upkeep) : upkeep_(upkeep) {
    const std::lock_guard lock(upkeep_.mutex_);
    ++upkeep_.work_count_;
    upkeep_.has_changed_ = true;
    upkeep_.current_.request_stop();
}

IdleUpkeep::Work::~Work() {
    const std::lock_guard lock(upkeep_.mutex_);
    --upkeep_.work_count_;
    upkeep_.idle_since_ = Clock::now();
    upkeep_.changed_.notify_all();
}

void IdleUpkeep::run(const std::stop_token& ending) {
    while (wait_until_idle(ending)) {
        std::stop_token stop;
        {
            const std::lock_guard lock(mutex_);
            if (work_count_ > 0) continue;
            if (ending.stop_requested()) return;
            current_ = std::stop_source();
            stop = current_.get_token();
            has_changed_ = false;
        }
        do_upkeep(stop);
        const std::lock_guard lock(mutex_);
        idle_since_ = Clock::now();
    }
}

/// False: the daemon ends.
bool IdleUpkeep::wait_until_idle(const std::stop_token& ending) {
    std::unique_lock lock(mutex_);
    while (!ending.stop_requested()) {
        const auto due = idle_since_ + (has_changed_ ? after_ : Clock::duration(kLongestPause));
        if (work_count_ == 0 && Clock::now() >= due) return true;
        if (work_count_ > 0) {
            changed_.wait(lock, ending, [&] { return work_count_ == 0; });
        } else {  // Until then, or until work has come and gone.
            changed_.wait_until(lock, ending, due, [&, since = idle_since_] { return idle_since_ != since; });
        }
    }
    return false;
}

void IdleUpkeep::do_upkeep(const std::stop_token& stop) const {
    try {
        const store::UpkeepReport report = upkeep_(stop);
        if (report.packs_written > 0) {
            log::info("upkeep: compressed " + std::to_string(report.compressed_bytes) + " bytes anew, freed " +
                      std::to_string(report.freed_bytes));
        }
        for (const std::string& problem : report.problems) log::error("scrub: " + problem);
    } catch (const store::Error& error) {  // Stopped by work; or a full disk, say: the next idle time tries again.
        if (error.code() != store::Errc::cancelled) log::warning(std::string("upkeep: ") + error.what());
    } catch (const std::exception& error) {  // A thread's entry.
        log::error(std::string("upkeep: ") + error.what());
    }
}

}  // namespace lamina::daemon
