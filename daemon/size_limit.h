#pragma once

#include "daemon/mounts.h"
#include "store/store.h"

#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::daemon {

/// Keeps the store below the size that it may have (laminad --max-bytes). Thread-safe.
class SizeLimit {
public:
    /// Less is no store.
    static constexpr std::uint64_t kLeastBytes = 16ull << 20;

    /// Borrows both. 0: no limit.
    SizeLimit(store::Store& store, const Mounts& mounts, std::uint64_t max_bytes)
        : store_(store), mounts_(mounts), max_bytes_(max_bytes) {}
    std::uint64_t max_bytes() const noexcept { return max_bytes_; }

    /// After what may have made the store larger; `brought` stays. Lines for people and the log: what was removed, and
    /// when that was not enough. Never throws: what is done is done.
    std::vector<std::string> keep(const std::vector<store::ImageSummary>& brought, const std::stop_token& stop) const;

private:
    std::vector<std::string> lines_of(const store::SizeLimitReport& report) const;

    store::Store& store_;
    const Mounts& mounts_;
    const std::uint64_t max_bytes_;
};

}  // namespace lamina::daemon
