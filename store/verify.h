#pragma once

#include "store/progress.h"
#include "store/store.h"
#include "store/store_core.h"

#include <stop_token>

namespace lamina::store {

/// Checks index, recipes, trees and packs against each other (Store::verify), and with `check_data` every byte.
VerifyReport verify_store(StoreCore& core, bool check_data, const ProgressFunction& progress,
                          const std::stop_token& stop);

}  // namespace lamina::store
