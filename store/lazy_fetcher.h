#pragma once

#include "store/digest.h"
#include "store/progress.h"

#include <memory>
#include <stop_token>
#include <vector>

namespace lamina::store {

struct StoreCore;

/// Gets the chunks of lazy layers from registries, in parts (lazy_parts.h) and in the order that fetch_queue.h says. A
/// chunk is stored only when its digest is right; of many who want the same part at once all wait for one request.
/// Thread-safe. Has threads of its own as soon as something is fetched.
class LazyFetcher {
public:
    explicit LazyFetcher(StoreCore& core);
    ~LazyFetcher();  ///< Ends what is on its way.
    LazyFetcher(const LazyFetcher&) = delete;
    LazyFetcher& operator=(const LazyFetcher&) = delete;

    bool is_lazy(const DiffId& layer) const;
    void forget(const DiffId& layer);  ///< Its file was written or removed.
    /// Makes the chunk be stored, when it is not; it must belong to one of `layers`. not_found: to none of them that is
    /// lazy. Else what registries fail with; corrupt when the bytes that came are not the chunk's.
    void fetch(const ChunkId& chunk, const std::vector<DiffId>& layers, const std::stop_token& stop);
    /// Fetches all that is missing of a layer, gives back its tar and compares it with the diff ID, which proves the
    /// recipe too; then the layer is like any other. Nothing happens to one that is not lazy.
    void complete(const DiffId& layer, const ProgressFunction& progress, const std::stop_token& stop);

private:
    class Impl;
    const std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::store
