#pragma once

#include <algorithm>
#include <cstdint>

namespace lamina::store {

/// What is known of the way to a registry, from the requests that were made: how long a reply takes to begin, and how
/// many bytes a second follow. One thread at a time.
class LinkMeter {
public:
    static constexpr std::uint64_t kLeastBytes = 1 << 20;
    static constexpr std::uint64_t kMostBytes = 8 << 20;

    void note(double seconds_to_first, double seconds_after, std::uint64_t bytes) {
        const double rate = static_cast<double>(bytes) / std::max(seconds_after, 1e-6);
        const double old = is_known_ ? kKept : 0;
        first_seconds_ = old * first_seconds_ + (1 - old) * seconds_to_first;
        bytes_per_second_ = old * bytes_per_second_ + (1 - old) * rate;
        is_known_ = true;
    }
    /// How much one request should ask for: what would pass while nothing came, so that asking costs half the time.
    std::uint64_t request_bytes() const {
        const double product = std::min(first_seconds_ * bytes_per_second_, static_cast<double>(kMostBytes));
        return std::max(kLeastBytes, static_cast<std::uint64_t>(product));
    }

private:
    static constexpr double kKept = 0.75;
    bool is_known_ = false;
    double first_seconds_ = 0;
    double bytes_per_second_ = 0;
};

}  // namespace lamina::store
