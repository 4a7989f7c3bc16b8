#pragma once

#include "store/lazy_layer.h"
#include "store/progress.h"
#include "store/registry_blob.h"

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

namespace lamina::store {

struct StoreCore;

/// Gets the chunks of lazy layers from registries: what is wanted, and what else lies between the same two access
/// points. A chunk is stored only when its digest is right; of many who want the same part at once one fetches it.
/// Thread-safe.
class LazyFetcher {
public:
    explicit LazyFetcher(StoreCore& core) : core_(core) {}

    bool is_lazy(const DiffId& layer) const;
    /// Makes the chunk be stored, when it is not; it must belong to one of `layers`. not_found: to none of them that is
    /// lazy. Else what registries fail with; corrupt when the bytes that came are not the chunk's.
    void fetch(const ChunkId& chunk, const std::vector<DiffId>& layers, const std::stop_token& stop);
    /// Fetches all that is missing of a layer, gives back its tar and compares it with the diff ID, which proves the
    /// recipe too; then the layer is like any other. Nothing happens to one that is not lazy.
    void complete(const DiffId& layer, const ProgressFunction& progress, const std::stop_token& stop);

private:
    struct Open {
        LazyLayer layer;
        ChunkMap chunks;
    };
    std::shared_ptr<const Open> open(const DiffId& layer);
    RegistryPlaces places_of(const LazyLayer& lazy, const std::stop_token& stop) const;
    void fetch_part(const Open& open, const AccessPoints::Span& part, const std::stop_token& stop);
    void store_chunks(const Open& open, const AccessPoints::Span& part, std::span<const ChunkMap::Part> chunks,
                      std::span<const std::byte> tar);

    StoreCore& core_;
    std::mutex mutex_;  // Guards all below; not held across I/O.
    std::condition_variable_any changed_;
    std::map<DiffId, std::shared_ptr<const Open>> open_;
    std::set<std::pair<DiffId, std::size_t>> fetching_;  ///< Layer and access point.
};

}  // namespace lamina::store
