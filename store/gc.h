#pragma once

#include "store/store.h"
#include "store/store_core.h"

#include <stop_token>

namespace lamina::store {

/// Removes what no name, pin, mount or running job reaches (Store::gc). Throws corrupt when it cannot know what is in
/// use: then nothing was removed. Stopped or failed, it leaves what it has not removed yet to the next.
GcReport collect(StoreCore& core, const GcRequest& request, const std::stop_token& stop);

}  // namespace lamina::store
