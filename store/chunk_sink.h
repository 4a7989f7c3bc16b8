#pragma once

#include "store/content.h"

#include <span>

namespace lamina::store {

/// Takes the bytes of chunks, in path order. What is already stored costs a hash and a look-up.
class ChunkSink {
public:
    virtual ~ChunkSink() = default;
    /// `data`: 1 to kMaxChunkBytes bytes, borrowed for the call. One thread at a time.
    virtual ChunkId add(std::span<const std::byte> data) = 0;
};

/// Gives the bytes of chunks back. Thread-safe. Throws not_found when no pack has the chunk, corrupt on a bad frame.
class ChunkSource {
public:
    virtual ~ChunkSource() = default;
    /// Copies out.size() bytes of the chunk, from `offset_bytes` on. The range lies inside the chunk.
    virtual void read(const ChunkId& chunk, std::uint32_t offset_bytes, std::span<std::byte> out) = 0;
    /// True when read() needs no disk and no decompression now: a reading thread may serve it itself.
    virtual bool is_warm(const ChunkId& chunk) = 0;
};

}  // namespace lamina::store
