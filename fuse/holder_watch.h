#pragma once

#include "fuse/session_page.h"

#include <sys/types.h>

#include <cstdint>

namespace lamina::unionfs {

/// Whether a server still answers, for the holder: allocates nothing.
class ServerWatch {
public:
    void start(unsigned limit_ms) noexcept;
    /// How long to wait until the next is_stuck(), for poll(2); -1: for ever.
    int tick_ms() const noexcept { return limit_ms_ == 0 ? -1 : static_cast<int>(limit_ms_ / kLooks + 1); }
    /// To be asked each tick_ms(). True when the server has answered nothing for the whole limit while requests waited
    /// or it had some in hand (or it was stopped by a signal, or did not come to serve), and none of its threads waits
    /// for a disk: that no other server would do better.
    bool is_stuck(const SessionPage& page, int fuse_fd, pid_t server) noexcept;
    bool has_found_stuck() const noexcept { return has_found_stuck_; }

private:
    static constexpr unsigned kLooks = 3;
    unsigned limit_ms_ = 0;
    unsigned looks_ = 0;
    std::uint64_t progress_ = 0;
    bool has_found_stuck_ = false;
};

/// Whether a thread of a process is in a wait that cannot be interrupted.
bool waits_for_disk(pid_t process) noexcept;
/// How many processes the kernel has killed since it started because memory was short.
std::uint64_t out_of_memory_kills() noexcept;
std::uint64_t monotonic_ns() noexcept;

}  // namespace lamina::unionfs
