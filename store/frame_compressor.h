#pragma once

#include "store/pack_format.h"

#include <cstddef>
#include <memory>
#include <vector>

namespace lamina::store {

/// zstd's level at import, tuned (frame_compressor.cpp).
inline constexpr int kImportLevel = 3;

/// One frame on its way into a pack: `raw` and `rows` are given, `packed` (all of the frame's bytes) is made.
struct FrameJob {
    std::vector<std::byte> raw;
    std::vector<pack_format::ChunkRow> rows;
    std::vector<std::byte> packed;
    void clear();  ///< Keeps the memory.
};

/// Turns raw frames into packed ones. The same frame gives the same bytes. One thread.
class FrameCompressor {
public:
    explicit FrameCompressor(int level);  ///< A frame tells its level, unless that is the import's.
    ~FrameCompressor();
    FrameCompressor(const FrameCompressor&) = delete;
    FrameCompressor& operator=(const FrameCompressor&) = delete;
    /// Makes job.packed; stored as it is when zstd does not make it smaller.
    void pack(FrameJob& job);

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::store
