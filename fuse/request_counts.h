#pragma once

#include "fuse/kernel_protocol.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace lamina::unionfs {

/// How many requests of each kind the kernel has sent since the mount; what shows that a cached operation costs none.
/// Thread-safe; counting is one relaxed addition.
class RequestCounts {
public:
    using Counts = std::array<std::atomic<std::uint64_t>, kernel::kOpLimit>;  ///< At 0: opcodes past the limit.
    explicit RequestCounts(Counts& counts) : counts_(counts) {}  ///< In memory that outlives it, and a server.
    void count(std::uint32_t opcode) noexcept {
        counts_[opcode < kernel::kOpLimit ? opcode : 0].fetch_add(1, std::memory_order_relaxed);
    }
    std::uint64_t of(std::uint32_t opcode) const noexcept {
        return opcode < kernel::kOpLimit ? counts_[opcode].load(std::memory_order_relaxed) : 0;
    }
    std::uint64_t total() const noexcept;
    /// Kinds that were asked for, with their counts; "lookup", "getattr" ...
    std::vector<std::pair<std::string_view, std::uint64_t>> list() const;

private:
    Counts& counts_;
};

/// Name of a request kind, as in counters and logs; "other" when unknown.
std::string_view opcode_name(std::uint32_t opcode);

}  // namespace lamina::unionfs
