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
};

}  // namespace lamina::unionfs
