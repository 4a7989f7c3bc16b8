#pragma once

#include "fuse/kernel_protocol.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace lamina::unionfs {

/// What the holder and the servers of a mount tell each other: one page of the arena, mapped by both (fuse/FORMAT.md,
/// "Arena"). Zeros at first. Words are stored one by one, so that a kill tears nothing; each says who writes it.
struct SessionPage {
    using Word = std::atomic<std::uint64_t>;
    static_assert(Word::is_always_lock_free);
    static constexpr std::uint64_t kVersion = 1;
    static constexpr std::size_t kThreads = 16;
    static constexpr std::size_t kSuspects = 16;

    enum class State : std::uint64_t { starting, serving, ended };
    enum class Death : std::uint64_t {
        none,
        killed,   ///< By somebody outside, as far as one can tell.
        crashed,  ///< By a signal of its own making, or it gave up by itself.
        stuck     ///< By the holder, because it made no progress.
    };

    Word version;  ///< By the first server, last of what it fills in.
    Word since;    ///< By the first server: time(2).
    Word can_resend;
    Word init_unique;
    std::array<std::byte, sizeof(fuse_init_in)> init_request;  ///< What was agreed on with the kernel, ...
    std::array<std::byte, sizeof(fuse_init_out)> init_reply;   ///< ... by the first server.

    Word holder;      ///< By the holder: its process.
    Word restarts;    ///< By the holder.
    Word death;       ///< By the holder: of the last server that died.
    Word died_at_ns;  ///< By the holder: when it noticed that. CLOCK_MONOTONIC.
    Word wants_end;   ///< By the holder: 1 when it was asked to end the mount.

    Word state;                          ///< By the server; the holder says `starting`.
    Word server;                         ///< By the server: its process.
    Word last_gap_ns;                    ///< By the server: from `died_at_ns` to its first reply.
    Word progress;                       ///< By the server: replies so far.
    std::array<Word, kThreads> in_hand;  ///< By the server's threads: `unique` of the request that each works on.
    struct Suspect {
        Word unique;  ///< Of a request that was in hand when a server died.
        Word deaths;  ///< So many of them.
    };
    std::array<Suspect, kSuspects> suspects;            ///< By the server, before it serves.
    std::array<Word, kernel::kOpLimit> request_counts;  ///< By the server: requests of each kind.
};
static_assert(sizeof(SessionPage) <= 4096);
static_assert(offsetof(SessionPage, init_request) == 32 && offsetof(SessionPage, holder) == 160);

/// A request that has killed so many servers is answered EIO.
inline constexpr std::uint64_t kDeathsOfPoison = 3;
/// Bit of `unique` in a request that the kernel sends again.
inline constexpr std::uint64_t kResentBit = std::uint64_t{1} << 63;

}  // namespace lamina::unionfs
