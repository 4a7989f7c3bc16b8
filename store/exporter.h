#pragma once

#include "store/store.h"
#include "store/store_core.h"

#include <stop_token>

namespace lamina::store {

/// Writes an image to a target outside the store (Store::save); each layer has the diff ID that it came with.
void save_image(StoreCore& core, const SaveRequest& request, const std::stop_token& stop);

}  // namespace lamina::store
