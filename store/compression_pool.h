#pragma once

#include "store/pack_format.h"

#include <cstddef>
#include <memory>
#include <vector>

namespace lamina::store {

/// One frame on its way into a pack: `raw` and `rows` are given, `packed` (all of the frame's bytes) is made.
struct FrameJob {
    std::vector<std::byte> raw;
    std::vector<pack_format::ChunkRow> rows;
    std::vector<std::byte> packed;
    void clear();  ///< Keeps the memory.
};

/// Threads that turn raw frames into packed ones. They start with the first job. submit(), wait() and stop() are for
/// one thread; a job stays where it is, untouched by its owner, until it is done or stop() has returned.
class CompressionPool {
public:
    CompressionPool(unsigned thread_count, int level);
    ~CompressionPool();
    CompressionPool(const CompressionPool&) = delete;
    CompressionPool& operator=(const CompressionPool&) = delete;

    void submit(FrameJob& job);
    bool is_done(const FrameJob& job);
    void wait(const FrameJob& job);  ///< Until it is done; throws what its packing threw.
    void stop();                     ///< Drops what has not begun and waits for the rest.

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::store
