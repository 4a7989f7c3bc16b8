#pragma once

#include "store/chunk_store.h"
#include "store/compression_pool.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace lamina::store {

/// One pack while it is written, by several threads at once: chunks gather in frames of up to 256 KiB, a pool
/// compresses them, and they are appended in the order in which they were full. Each thread adds through a lane of its
/// own, so that neighbours in a frame are neighbours in one layer.
///
/// The pack lies in `staging_folder` until finish() has synced it and moved it into `packs_folder`; a builder that is
/// destroyed without finish() leaves nothing behind. Memory is bounded but for 72 bytes a chunk: who adds waits while
/// too many frames are on their way. When one step fails, the pack is of no use: all that add or finish throw that.
class PackBuilder {
public:
    struct Options {
        std::string packs_folder;
        std::string staging_folder;
        std::uint32_t pack_number = 0;  ///< From Index::allocate_packs(): never used before.
        bool tells_levels = false;      ///< For a pool of another level than the import's.
    };
    /// Borrows `pool`.
    PackBuilder(const Options& options, CompressionPool& pool);
    ~PackBuilder();
    PackBuilder(const PackBuilder&) = delete;
    PackBuilder& operator=(const PackBuilder&) = delete;

    class Lane;
    Lane& add_lane();  ///< Lives as long as the builder. One thread at a time uses it.

    /// Adds a chunk that no pack has; nothing happens when this one has it. `data`: 1 to kMaxChunkBytes bytes, `id`
    /// their digest. False: finish() has begun, and the chunk is not in the pack.
    bool add(Lane& lane, const ChunkId& id, std::span<const std::byte> data);
    bool contains(const ChunkId& id) const;
    std::uint32_t number() const noexcept;
    std::uint64_t raw_bytes() const;  ///< Of the chunks that it contains.
    std::uint64_t chunk_count() const;

    /// Closes the pack for all threads and publishes it; nullopt when it has no chunk: then there is no file. Call
    /// once.
    std::optional<FinishedPack> finish();

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::store
