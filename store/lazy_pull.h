#pragma once

#include "store/index.h"
#include "store/lazy_index.h"
#include "store/registry_source.h"
#include "store/store.h"
#include "store/store_core.h"

#include <future>
#include <optional>
#include <stop_token>

namespace lamina::store {

/// Makes an image of `source` whose layers are fetched when they are read, from the index that somebody published
/// beside it (lazy_index.h). A layer that the store has stays whole. nullopt: there is no index, and `request` does not
/// insist on one. `beside` is what find_published() gives for the image, asked for when its manifest is known.
std::optional<ImageRow> pull_lazily(StoreCore& core, const PullRequest& request, RegistrySource& source,
                                    std::future<PublishedBeside>& beside, const std::stop_token& stop);

}  // namespace lamina::store
