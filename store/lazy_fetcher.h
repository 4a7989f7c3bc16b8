#pragma once

#include "store/digest.h"
#include "store/progress.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::store {

struct LazyLayer;
struct StartBundle;
struct StoreCore;

/// How far a layer, or an image, has come: lazy, bytes are missing; complete, all are there, and not compared with the
/// layer's digests yet; verified; quarantined, what was published of it is not true.
enum class LayerState : std::uint8_t { verified, complete, lazy, quarantined };

struct Completion {
    bool is_background = false;          ///< Readers, and what is read ahead for them, go first.
    std::uint64_t bytes_per_second = 0;  ///< Of the blob; 0: no limit.
    ProgressFunction progress = {};
};

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
    LayerState state(const DiffId& layer);
    std::string why_quarantined(const DiffId& layer) const;  ///< With the layer's name; empty: it is not.
    /// corrupt, saying why, when it is.
    void check_not_quarantined(const DiffId& layer) const;
    void forget(const DiffId& layer);  ///< Its file was written or removed.
    struct Wanted {
        std::string mount_id;  ///< That somebody waited is noted as of this mount.
        ChunkId chunk;
        std::vector<DiffId> layers;  ///< It must belong to one of them.
        bool takes_bytes = false;    ///< Before they are stored.
    };
    struct Fetched {
        std::vector<std::byte> bytes;  ///< Of the chunk, when it is not stored yet; only for who takes them.
        /// What the reader is known to want by now: the chunk, and of each part that was read ahead for him and that he
        /// has passed the first one.
        std::vector<ChunkId> wanted;
    };
    /// Returns when the chunk is stored, or here. not_found: it is of no layer that is lazy. Else what registries fail
    /// with; corrupt when the bytes that came are not the chunk's.
    Fetched fetch(const Wanted& wanted, const std::stop_token& stop);
    /// Whether one of these layers that are lazy has the chunk.
    bool knows(const ChunkId& chunk, const std::vector<DiffId>& layers);
    /// Makes these be fetched ahead of whoever reads them, in few requests; returns at once.
    void prefetch(const std::vector<ChunkId>& chunks, const std::vector<DiffId>& layers);
    /// Begins to fetch the chunks of a start bundle, as far as they are missing; returns at once. They are to belong to
    /// `layers`, from which they come when the bundle fails. `blob` says where the bundle is; it has no points. Nothing
    /// is stored before decide() says that the bundle may be trusted; what it returns names it. nullopt: none is
    /// missing.
    std::optional<DiffId> bring(const StartBundle& bundle, LazyLayer blob, const std::vector<DiffId>& layers);
    void decide(const DiffId& bundle, bool is_trusted);
    /// Fetches all that is missing of a layer, and compares it with what it should be: its tar with the diff ID, which
    /// proves the recipe too, and its blob with the blob's digest; then the layer is like any other. Nothing happens to
    /// one that is not lazy. corrupt: the layer is, or has just been, quarantined, or the registry gives wrong bytes.
    void complete(const DiffId& layer, const Completion& completion, const std::stop_token& stop);

private:
    class Impl;
    const std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::store
