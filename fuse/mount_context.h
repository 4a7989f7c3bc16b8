#pragma once

#include "fuse/server_log.h"
#include "fuse/transport.h"
#include "fuse/union_fs.h"
#include "fuse/worker_pool.h"

namespace lamina::unionfs {

/// Who owns what the image says is root's. In a mount of an ordinary user that is the user: else he could change
/// nothing in it, and he could not give his own files away either. All other numbers are shown as they are.
struct OwnerMap {
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::uint32_t shown_uid(std::uint32_t kept) const noexcept { return kept == 0 ? uid : kept; }
    std::uint32_t shown_gid(std::uint32_t kept) const noexcept { return kept == 0 ? gid : kept; }
    std::uint32_t kept_uid(std::uint32_t shown) const noexcept { return shown == uid ? 0 : shown; }
    std::uint32_t kept_gid(std::uint32_t shown) const noexcept { return shown == gid ? 0 : shown; }
};

/// What an operation works with; lives as long as the mount. Owns nothing.
struct MountContext {
    UnionFs* fs = nullptr;
    WorkerPool* workers = nullptr;
    ServerLog* log = nullptr;
    Transport* transport = nullptr;
    OwnerMap owners;
    bool has_no_xattrs = false;  ///< And never will: the kernel need not ask.
    /// What lost its capabilities last, maybe by a write of root's, until an attribute is set. Of the reading thread.
    NodeId stripped_node = 0;
};

}  // namespace lamina::unionfs
