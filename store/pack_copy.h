#pragma once

#include "store/frame_compressor.h"
#include "store/liveness.h"
#include "store/pack_file.h"
#include "store/pack_reader.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <vector>

namespace lamina::store {

/// A new pack with what is needed of others: a frame of which everything is needed is taken over as it is, the rest is
/// compressed anew, as at import. The same input gives the same bytes, so a copy that is only measured tells the size
/// of a real one. One thread. Borrows `liveness`.
class PackCopy {
public:
    PackCopy(const PackFile::Options& options, const Liveness& liveness, std::stop_token stop);
    /// False when something that is needed cannot be read: then that pack must stay.
    bool add(std::uint32_t pack);
    std::optional<FinishedPack> finish();

private:
    bool add_frame(std::span<const NewChunk> chunks);
    void add_chunk(const ChunkId& id, std::span<const std::byte> bytes);
    void flush();

    const PackFile::Options options_;
    const Liveness& liveness_;
    const std::stop_token stop_;
    PackFiles sources_;
    PackFile file_;
    FrameCompressor compressor_;
    FrameJob open_;
};

}  // namespace lamina::store
