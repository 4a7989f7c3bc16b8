#pragma once

#include "store/store.h"
#include "store/store_core.h"

#include <stop_token>

namespace lamina::store {

/// Sends an image to a registry (Store::push): only the blobs that are neither in the repository nor, as far as the
/// store's names tell, in another one of the same registry. Layers that the registry has as they once came keep their
/// blob; the others are compressed again, to the same bytes each time. When all blobs are those of a manifest that the
/// store knows, that one is sent as it came, so that the digest stays; else a new one, which the store then knows too.
/// The tag is written last: what is cut off before leaves blobs that the registry collects.
PushReport push_image(StoreCore& core, const PushRequest& request, const std::stop_token& stop);

}  // namespace lamina::store
