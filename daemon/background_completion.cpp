#include "daemon/background_completion.h"

#include "daemon/log.h"
#include "store/error.h"

#include <algorithm>
#include <utility>

namespace lamina::daemon {

namespace {

constexpr std::chrono::seconds kFirstPause{10};
constexpr std::chrono::seconds kLongestPause{3600};

}  // namespace

BackgroundCompletion::BackgroundCompletion(Work work, std::optional<std::chrono::milliseconds> after)
    : work_(std::move(work)), after_(after) {
    if (after_) thread_ = std::jthread([this](const std::stop_token& ending) { run(ending); });
}

BackgroundCompletion::~BackgroundCompletion() = default;

void BackgroundCompletion::look() {
    const std::lock_guard lock(mutex_);
    is_news_ = true;
    changed_.notify_all();
}

BackgroundCompletion::Reading::Reading(BackgroundCompletion& completion) : completion_(completion) {
    const std::lock_guard lock(completion_.mutex_);
    ++completion_.readers_;
}

BackgroundCompletion::Reading::~Reading() {
    const std::lock_guard lock(completion_.mutex_);
    --completion_.readers_;
    completion_.quiet_since_ = Clock::now();
    completion_.changed_.notify_all();
}

void BackgroundCompletion::run(const std::stop_token& ending) {
    std::chrono::seconds pause = kFirstPause;
    while (wait_until_due(ending)) {
        const bool is_done = complete_all(ending);
        const std::lock_guard lock(mutex_);
        if (is_done) {
            pause = kFirstPause;
            continue;
        }
        is_news_ = true;
        not_before_ = Clock::now() + pause;
        pause = std::min(pause * 2, kLongestPause);
    }
}

/// False: the daemon ends.
bool BackgroundCompletion::wait_until_due(const std::stop_token& ending) {
    std::unique_lock lock(mutex_);
    while (!ending.stop_requested()) {
        if (!changed_.wait(lock, ending, [&] { return is_news_ && readers_ == 0; })) return false;
        const auto due = std::max(quiet_since_ + *after_, not_before_);
        if (Clock::now() >= due) {
            is_news_ = false;
            return true;
        }
        changed_.wait_until(lock, ending, due, [&, since = quiet_since_] { return quiet_since_ != since; });
    }
    return false;
}

/// False: something is left to be tried again.
bool BackgroundCompletion::complete_all(const std::stop_token& ending) const {
    bool is_done = true;
    for (const std::string& image : work_.images()) {
        try {
            work_.complete(image, ending);
        } catch (const store::Error& error) {
            if (error.code() == store::Errc::cancelled || error.code() == store::Errc::not_found) continue;
            log::warning("completing image " + image + ": " + error.what());
            is_done = is_done && error.code() == store::Errc::corrupt;
        } catch (const std::exception& error) {  // A thread's entry.
            log::error("completing image " + image + ": " + error.what());
            is_done = false;
        }
    }
    return is_done;
}

}  // namespace lamina::daemon
