#pragma once

#include "store/store.h"
#include "store/store_core.h"

#include <cstdint>
#include <string>
#include <vector>

namespace lamina::store {

/// Of all files at or below a path, by st_size.
std::uint64_t bytes_below(const std::string& path);

/// What each image takes in the packs.
std::vector<DiskUsage::Image> measure_images(StoreCore& core);

/// What lies where, by st_size of every file below the root, and what each image has of it (Store::disk_usage).
DiskUsage measure_usage(StoreCore& core);

}  // namespace lamina::store
