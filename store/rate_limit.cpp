#include "store/rate_limit.h"

#include "store/error.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>

namespace lamina::store {

void RateLimit::take(std::uint64_t bytes, const std::stop_token& stop) {
    const auto check = [&] {
        if (stop.stop_requested()) throw Error(Errc::cancelled, "stopped");
    };
    check();
    if (bytes_per_second_ == 0) return;
    using Clock = std::chrono::steady_clock;
    const double seconds = static_cast<double>(bytes) / static_cast<double>(bytes_per_second_);
    free_at_ = std::max(free_at_, Clock::now() - std::chrono::seconds(1)) +
               std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    std::mutex mutex;  // Nobody else has it: the condition is only there to be woken by a stop.
    std::unique_lock lock(mutex);
    std::condition_variable_any().wait_until(lock, stop, free_at_, [] { return false; });
    check();
}

}  // namespace lamina::store
