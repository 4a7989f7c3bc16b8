#pragma once

#include "store/store.h"
#include "store/store_core.h"

#include <stop_token>

namespace lamina::store {

/// Removes what no name, mount or running job reaches (Store::gc). A dry run changes nothing and tells what would go;
/// of packs that would be rewritten it tells the dead share. Throws corrupt when it cannot know what is in use.
GcReport collect(StoreCore& core, bool is_dry_run, const std::stop_token& stop);

}  // namespace lamina::store
