#pragma once

#include "store/store.h"

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>

namespace lamina::daemon {

/// Does the store's upkeep while nothing else is asked of it: begins when no work has been under way for
/// a while and something has changed since the last time, and stops as soon as work comes. Thread-safe.
class IdleUpkeep {
public:
    using Upkeep = std::function<store::UpkeepReport(const std::stop_token& stop)>;
    /// `after`: of idle time; 0: never.
    IdleUpkeep(Upkeep upkeep, std::chrono::milliseconds after);
    ~IdleUpkeep();  ///< Stops, and waits for that.
    IdleUpkeep(const IdleUpkeep&) = delete;
    IdleUpkeep& operator=(const IdleUpkeep&) = delete;

    /// Work is under way while one of these lives.
    class Work {
    public:
        explicit Work(IdleUpkeep& upkeep);
        ~Work();
        Work(const Work&) = delete;
        Work& operator=(const Work&) = delete;

    private:
        IdleUpkeep& upkeep_;
    };

private:
    using Clock = std::chrono::steady_clock;

    void run(const std::stop_token& ending);
    bool wait_until_idle(const std::stop_token& ending);
    void do_upkeep(const std::stop_token& stop) const;

    const Upkeep upkeep_;
    const std::chrono::milliseconds after_;
    std::mutex mutex_;  // Guards all below but the thread; not held while the store works.
    std::condition_variable_any changed_;
    unsigned work_count_ = 0;
    Clock::time_point idle_since_ = Clock::now();
    bool has_changed_ = true;  ///< Since the last upkeep that came to its end.
    std::stop_source current_;
    std::jthread thread_;
};

}  // namespace lamina::daemon
