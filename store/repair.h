#pragma once

#include "store/store.h"
#include "store/store_core.h"

#include <stop_token>
#include <string>
#include <vector>

namespace lamina::store {

/// Mends what is damaged (Store::repair), as far as it can, and tells what it did, a line each; verify then tells what
/// is left. Stopped or failed, it leaves the store no worse than it was.
std::vector<std::string> repair_store(StoreCore& core, const RepairRequest& request, const std::stop_token& stop);

}  // namespace lamina::store
