#pragma once

#include <chrono>
#include <cstdint>
#include <stop_token>

namespace lamina::store {

/// Lets through so many bytes a second on average, at most a second's worth at once. One thread.
class RateLimit {
public:
    explicit RateLimit(std::uint64_t bytes_per_second) : bytes_per_second_(bytes_per_second) {}  ///< 0: no limit.
    /// Returns when these bytes may pass. Throws cancelled on stop.
    void take(std::uint64_t bytes, const std::stop_token& stop);

private:
    const std::uint64_t bytes_per_second_;
    std::chrono::steady_clock::time_point free_at_{};  ///< When all that was taken has passed.
};

}  // namespace lamina::store
