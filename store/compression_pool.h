#pragma once

#include "store/pack_format.h"

#include <cstddef>
#include <exception>
#include <memory>
#include <vector>

namespace lamina::store {

/// zstd's level at import, tuned (compression_pool.cpp).
inline constexpr int kImportLevel = 3;

/// One frame on its way into a pack: `raw` and `rows` are given, `packed` (all of the frame's bytes) is made.
struct FrameJob {
    std::vector<std::byte> raw;
    std::vector<pack_format::ChunkRow> rows;
    std::vector<std::byte> packed;
    void clear();  ///< Keeps the memory.
};

/// Who gets frames back from the pool.
class FrameOwner {
public:
    virtual ~FrameOwner() = default;
    /// `job` is packed, or `failure` says why not. Called by a thread of the pool, for several frames at once.
    virtual void frame_done(FrameJob& job, std::exception_ptr failure) noexcept = 0;
};

/// Threads that turn raw frames into packed ones, for any number of owners. They start with the first jobs.
/// Thread-safe.
class CompressionPool {
public:
    CompressionPool(unsigned thread_count, int level);
    ~CompressionPool();  ///< No job may be waiting: forget() comes before.
    CompressionPool(const CompressionPool&) = delete;
    CompressionPool& operator=(const CompressionPool&) = delete;

    unsigned thread_count() const noexcept;
    /// The job stays where it is, untouched by its owner, until frame_done() or forget() has returned. Throws
    /// unavailable when no thread can be started.
    void submit(FrameJob& job, FrameOwner& owner);
    void forget(FrameOwner& owner);  ///< Drops what of its jobs has not begun and waits for the rest.

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::store
