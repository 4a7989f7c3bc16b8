#pragma once

#include "store/store.h"
#include "store/store_core.h"

#include <functional>
#include <stop_token>

namespace lamina::store {

/// Brings the store below a limit: what nothing needs goes first, then image after image, each time the one that was
/// used longest ago. Images stay that are pinned, mounted, or in the hands of a job, and those that were used as late
/// as one of `request.keep`, or, without these, the one that was used last. `collect` is called to free what is no
/// longer needed.
SizeLimitReport limit_size(StoreCore& core, const SizeLimitRequest& request, const std::function<void()>& collect,
                           const std::stop_token& stop);

}  // namespace lamina::store
