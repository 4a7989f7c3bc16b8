#pragma once

#include "fuse/server_log.h"
#include "fuse/stack_options.h"
#include "fuse/transport.h"
#include "fuse/union_fs.h"
#include "fuse/worker_pool.h"

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

namespace lamina::unionfs {

/// Numbers of users, or of groups, as they are kept and as they are shown.
struct IdMap {
    static constexpr std::uint32_t kOverflow = 65534;  ///< For what no range holds, where `is_closed`.

    std::vector<IdRange> ranges;  ///< None: all are shown as they are kept.
    bool is_closed = false;       ///< What lies in no range is nobody's, instead of being shown as it is kept.
    std::optional<std::uint32_t> squashed_to;  ///< All are shown as this one; this one is kept as `own`.
    std::uint32_t own = 0;

    std::uint32_t shown(std::uint32_t kept) const noexcept {
        if (squashed_to) return *squashed_to;
        for (const IdRange& range : ranges) {
            if (kept - range.kept < range.count) return range.shown + (kept - range.kept);
        }
        return is_closed ? kOverflow : kept;
    }
    std::uint32_t kept(std::uint32_t shown) const noexcept {
        if (squashed_to && shown == *squashed_to) return own;
        for (const IdRange& range : ranges) {
            if (shown - range.shown < range.count) return range.kept + (shown - range.shown);
        }
        return is_closed ? kOverflow : shown;
    }
    /// What the image says is root's is this one's. In a mount of an ordinary user that is the user: else he could
    /// change nothing in it, and he could not give his own files away either. All others are shown as they are.
    static IdMap root_as(std::uint32_t id) { return {.ranges = {{.kept = 0, .shown = id, .count = 1}}}; }
};

struct OwnerMap {
    IdMap uids;
    IdMap gids;
    std::uint32_t shown_uid(std::uint32_t kept) const noexcept { return uids.shown(kept); }
    std::uint32_t shown_gid(std::uint32_t kept) const noexcept { return gids.shown(kept); }
    std::uint32_t kept_uid(std::uint32_t shown) const noexcept { return uids.kept(shown); }
    std::uint32_t kept_gid(std::uint32_t shown) const noexcept { return gids.kept(shown); }
};

/// How long a call that finds the disk full waits for removed files to be gone.
inline constexpr std::chrono::milliseconds kForgetPatience{500};

/// What an operation works with; lives as long as the mount. Owns nothing.
struct MountContext {
    UnionFs* fs = nullptr;
    WorkerPool* workers = nullptr;
    ServerLog* log = nullptr;
    Transport* transport = nullptr;
    OwnerMap owners;
    bool has_no_xattrs = false;  ///< And never will: the kernel need not ask.
};

}  // namespace lamina::unionfs
