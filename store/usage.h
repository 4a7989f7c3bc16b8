#pragma once

#include "store/store.h"
#include "store/store_core.h"

namespace lamina::store {

/// What lies where, by st_size of every file below the root, and what each image has of it (Store::disk_usage).
DiskUsage measure_usage(StoreCore& core);

}  // namespace lamina::store
