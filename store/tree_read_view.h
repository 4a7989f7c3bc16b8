#pragma once

#include "store/chunk_sink.h"
#include "store/read_view.h"

#include <memory>

namespace lamina::store {

/// A ReadView of a tree that is open, with its bytes from anywhere: what ReadView::open() returns, and what tests use.
std::unique_ptr<ReadView> make_read_view(std::shared_ptr<const ImageTree> tree, std::unique_ptr<ChunkSource> chunks);

}  // namespace lamina::store
