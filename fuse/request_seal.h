#pragma once

#include "fuse/arena.h"
#include "fuse/kill_points.h"

#include <cstdint>

namespace lamina::unionfs {

/// The request that a thread has in hand. While one lives, a change that must not be made twice is sealed with it: the
/// change set puts the two into one transaction of the arena, so that a next server that is given the request again
/// knows. Ends when the kernel has the answer, and takes the seal away with it. One at a time in a thread.
class RequestSeal {
public:
    explicit RequestSeal(std::uint64_t unique) noexcept { unique_ = unique; }
    ~RequestSeal() {
        if (arena_) arena_->answered(slot_, unique_);
        unique_ = 0;
        arena_ = nullptr;
    }
    RequestSeal(const RequestSeal&) = delete;
    RequestSeal& operator=(const RequestSeal&) = delete;

    /// In the transaction that carries the request out; nothing where the thread has none. `node`: what was made, or
    /// lost a name (0: nothing).
    static void seal(Arena& arena, std::uint64_t node) {
        if (unique_ == 0 || arena_ || g_left_out.seals) return;
        slot_ = arena.seal(unique_, node);
        arena_ = &arena;
    }

    static bool is_sealed() noexcept { return arena_ != nullptr; }

private:
    static inline thread_local constinit std::uint64_t unique_ = 0;
    static inline thread_local constinit Arena* arena_ = nullptr;  // Where it is sealed; null: not yet.
    static inline thread_local constinit std::size_t slot_ = 0;
};

}  // namespace lamina::unionfs
