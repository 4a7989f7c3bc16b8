#pragma once

#include "store/digest.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace lamina::store {

/// One unpacked and checked frame. Immutable.
struct Frame {
    struct Chunk {
        ChunkId id;
        std::uint32_t offset_bytes = 0;
        std::uint32_t size_bytes = 0;
    };
    std::unique_ptr<std::byte[]> data;
    std::uint32_t size_bytes = 0;
    std::vector<Chunk> chunks;  ///< In order of offset, without gaps.

    /// The bytes of chunk `id` when it lies at `offset_bytes` here, else an empty span.
    std::span<const std::byte> bytes_at(const ChunkId& id, std::uint32_t offset_bytes) const;
    std::uint64_t memory_bytes() const noexcept;
};

struct FrameKey {
    std::uint32_t pack = 0;
    std::uint64_t offset_bytes = 0;
    bool operator==(const FrameKey&) const = default;
};

/// Unpacked frames, the least recently used of which go when they are more than `limit_bytes`. Thread-safe.
class FrameCache {
public:
    using Load = std::function<std::shared_ptr<const Frame>()>;

    explicit FrameCache(std::uint64_t limit_bytes);
    ~FrameCache();
    FrameCache(const FrameCache&) = delete;
    FrameCache& operator=(const FrameCache&) = delete;

    /// The frame, loaded by one of the callers when it is missing; the others wait for that one. What `load` throws,
    /// all of them throw, and the next caller loads again. A returned frame stays valid whatever the cache does.
    std::shared_ptr<const Frame> get(const FrameKey& key, const Load& load);
    bool contains(const FrameKey& key) const;
    std::uint64_t held_bytes() const;

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::store
