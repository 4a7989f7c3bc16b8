#pragma once

#include "fuse/kernel_protocol.h"

#include <cstdint>

/// What we agree on with the kernel when a mount begins: the table of fuse/SEMANTICS.md, "The INIT reply". A flag is
/// sent only when the kernel offers it.
namespace lamina::unionfs::init {

inline constexpr std::uint64_t kWantedFlags =
    FUSE_ASYNC_READ |           // Read-ahead of one file in parallel.
    FUSE_BIG_WRITES |           // More than a page in one WRITE.
    FUSE_DONT_MASK |            // The umask is ours to apply: a default ACL of the parent replaces it.
    FUSE_ASYNC_DIO |            // One big O_DIRECT read in parallel requests.
    FUSE_PARALLEL_DIROPS |      // Look-ups and listings of one directory at once.
    FUSE_POSIX_ACL |            // ACLs are enforced, and cached by the kernel.
    FUSE_MAX_PAGES |            // Requests of up to kMaxPages pages.
    FUSE_CACHE_SYMLINKS |       // A link is read once.
    FUSE_EXPLICIT_INVAL_DATA |  // Pages stay until we say otherwise.
    FUSE_HANDLE_KILLPRIV_V2 |   // We clear set-id bits; else each write asks for security.capability first.
    FUSE_SETXATTR_EXT |         // Tells when setting an ACL takes the set-gid bit away.
    FUSE_DO_READDIRPLUS |       // Attributes with the names, where the kernel finds that it pays:
    FUSE_READDIRPLUS_AUTO |     // for the first part of a listing, then if the attributes were used.
    (std::uint64_t{1} << 30) |  // INIT_EXT: flags2 is valid.
    kernel::kHasResend;         // A new server may ask for the unanswered requests of a killed one.

// Off, and why: ATOMIC_O_TRUNC (with no-open a truncation would be lost), WRITEBACK_CACHE (SEEK_DATA misses dirty pages
// and each close costs a GETATTR), AUTO_INVAL_DATA (nothing changes behind us), POSIX_LOCKS and FLOCK_LOCKS (the
// kernel's own locks do), SPLICE_* (requests are small, buffers are locked), HANDLE_KILLPRIV (superseded by V2).

inline constexpr std::uint32_t kMaxPages = 256;
inline constexpr std::uint32_t kMaxWriteBytes = kMaxPages * 4096;
inline constexpr std::uint16_t kMaxBackground = 64;
inline constexpr std::uint16_t kCongestionThreshold = 48;
inline constexpr std::uint32_t kTimeGranularityNs = 1;
/// Room for the largest request: header, the body's fixed part, and data.
inline constexpr std::size_t kRequestBytes = kMaxWriteBytes + 4096;

/// The reply to `request`; libfuse's own is `reply` and gives what is not in the table (versions).
inline fuse_init_out make_reply(const fuse_init_in& request, fuse_init_out reply) {
    const std::uint64_t offered = request.flags | std::uint64_t{request.flags2} << 32;
    const std::uint64_t agreed = offered & kWantedFlags;
    reply.flags = static_cast<std::uint32_t>(agreed);
    reply.flags2 = static_cast<std::uint32_t>(agreed >> 32);
    reply.max_readahead = request.max_readahead;
    reply.max_background = kMaxBackground;
    reply.congestion_threshold = kCongestionThreshold;
    reply.max_write = (agreed & FUSE_MAX_PAGES) != 0 ? kMaxWriteBytes : 32 * 4096;
    reply.max_pages = (agreed & FUSE_MAX_PAGES) != 0 ? kMaxPages : 0;
    reply.time_gran = kTimeGranularityNs;
    reply.map_alignment = 0;
    return reply;
}

}  // namespace lamina::unionfs::init
