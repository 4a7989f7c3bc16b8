#pragma once

#include "fuse/server_log.h"
#include "fuse/transport.h"
#include "fuse/union_fs.h"
#include "fuse/worker_pool.h"

namespace lamina::unionfs {

/// What an operation works with; lives as long as the mount. Owns nothing.
struct MountContext {
    UnionFs* fs = nullptr;
    WorkerPool* workers = nullptr;
    ServerLog* log = nullptr;
    Transport* transport = nullptr;
    bool has_no_xattrs = false;  ///< And never will: the kernel need not ask.
};

}  // namespace lamina::unionfs
