#pragma once

#include "store/liveness.h"
#include "store/store_core.h"

#include <cstdint>
#include <vector>

namespace lamina::store {

/// Makes `pack`, which was finished and has copies of chunks of `sources`, part of the store, and takes those of the
/// sources out of it of which nothing else is needed: one index transaction, then the chunk index. A source that a
/// running job keeps, or of which something is needed that is not in `pack`, stays. Returns those that are out; their
/// files are strays now. The caller holds `collecting` and keeps the new pack by a lease. `liveness` is marked further.
std::vector<std::uint32_t> swap_packs(StoreCore& core, Liveness& liveness, const FinishedPack& pack,
                                      const std::vector<std::uint32_t>& sources);

}  // namespace lamina::store
