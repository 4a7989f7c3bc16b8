#pragma once

#include "store/store.h"
#include "store/store_core.h"

#include <cstdint>
#include <stop_token>
#include <vector>

namespace lamina::store {

inline constexpr int kUpkeepLevel = 19;

/// The packs that are worth being compressed anew: an eighth or more of them is compressed as at import.
std::vector<PackRow> packs_to_recompress(StoreCore& core);

struct RecompressResult {
    std::uint64_t raw_bytes = 0;  ///< What was compressed anew, unpacked.
    std::uint64_t packs_removed = 0;
    std::uint64_t packs_written = 0;
    std::int64_t freed_bytes = 0;
};
/// Writes these packs anew, at kUpkeepLevel, a part of the store after the other; each part is durable before the next
/// begins. What nothing needs is left out, the rest is put into frames in the order of layers and paths, wherever it
/// lay. Needs room for one part. Stopped, it drops the part that it is at. Other jobs go on.
RecompressResult recompress(StoreCore& core, const UpkeepRequest& request, const std::stop_token& stop);

}  // namespace lamina::store
