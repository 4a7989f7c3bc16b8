#pragma once

#include "store/index.h"
#include "store/store.h"
#include "store/store_core.h"

#include <stop_token>
#include <vector>

namespace lamina::store {

/// Every image of the source, made or found (Store::import). An image is there whole or not at all; layers that were
/// finished before a failure are used again by the next try. Blobs of layers that are known are not read. Throws what
/// the source, the layer reader and the disk throw, with "layer N of IMAGE" before it.
std::vector<ImageRow> import_images(StoreCore& core, const ImportRequest& request, const std::stop_token& stop);

/// One image of a registry (Store::pull). Nothing of a layer is transferred when the store has its diff ID.
ImageRow pull_image(StoreCore& core, const PullRequest& request, const std::stop_token& stop);

/// A new image: the base's layers and one more (Store::commit).
ImageRow commit_image(StoreCore& core, const CommitRequest& request, ByteSource& layer_tar,
                      const std::stop_token& stop);

ImageSummary summary_of(const ImageRow& image);

}  // namespace lamina::store
