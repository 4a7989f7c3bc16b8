#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

namespace lamina::daemon {

/// Completes the lazy images that are mounted, once nobody has waited for bytes of them for a while; what fails is
/// tried again, later each time. A daemon that ends stops it at once, and the next one goes on where it was.
/// Thread-safe.
class BackgroundCompletion {
public:
    struct Work {
        std::function<std::vector<std::string>()> images;  ///< That are mounted now.
        /// Returns at once when there is nothing to do.
        std::function<void(const std::string& image, const std::stop_token& stop)> complete;
    };
    /// `after` nobody has read; nullopt: never.
    BackgroundCompletion(Work work, std::optional<std::chrono::milliseconds> after);
    ~BackgroundCompletion();
    BackgroundCompletion(const BackgroundCompletion&) = delete;
    BackgroundCompletion& operator=(const BackgroundCompletion&) = delete;

    void look();  ///< An image was mounted.
    /// Somebody waits for bytes while one of these lives.
    class Reading {
    public:
        explicit Reading(BackgroundCompletion& completion);
        ~Reading();
        Reading(const Reading&) = delete;
        Reading& operator=(const Reading&) = delete;

    private:
        BackgroundCompletion& completion_;
    };

private:
    using Clock = std::chrono::steady_clock;
    void run(const std::stop_token& ending);
    bool wait_until_due(const std::stop_token& ending);
    bool complete_all(const std::stop_token& ending) const;

    const Work work_;
    const std::optional<std::chrono::milliseconds> after_;
    std::mutex mutex_;  // Guards what follows, but the thread; not held over work.
    std::condition_variable_any changed_;
    unsigned readers_ = 0;
    Clock::time_point quiet_since_ = Clock::now();
    Clock::time_point not_before_{};  ///< After a failure.
    bool is_news_ = true;             ///< Since all was done.
    std::jthread thread_;
};

}  // namespace lamina::daemon
