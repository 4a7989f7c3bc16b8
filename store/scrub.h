#pragma once

#include "store/store.h"
#include "store/store_core.h"

#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::store {

/// A pass is under way, or the last one ended so long ago.
bool is_scrub_due(StoreCore& core, std::int64_t pause_seconds);

struct ScrubResult {
    std::uint64_t read_bytes = 0;
    std::uint64_t bad_frames = 0;
    std::vector<std::string> problems;  ///< One line each, naming the images that are hit.
};
/// Reads every frame of every pack and compares checksum and digests; begins a pass, or goes on with one. Other jobs go
/// on; a pack that goes meanwhile is passed over. Stopped, it remembers where it was.
ScrubResult scrub(StoreCore& core, const UpkeepRequest& request, const std::stop_token& stop);

}  // namespace lamina::store
