#pragma once

#include "store/chunk_sink.h"
#include "store/chunk_store.h"
#include "store/pack_builder.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace lamina::store {

/// Writes one pack from one thread: chunks that are not known yet gather in frames (pack_builder.h), compressed by a
/// pool of its own (zstd level 3, tuned, or another level). A known chunk is one that `known` holds, or an earlier one
/// of this pack. add() is for one thread.
class PackWriter : public ChunkSink {
public:
    struct Options {
        std::string packs_folder;
        std::string staging_folder;
        std::uint32_t pack_number = 0;  ///< From Index::allocate_packs(): never used before.
        int compression_level = 3;
        unsigned thread_count = 2;
    };
    PackWriter(const Options& options, ChunkStore& known);
    ChunkId add(std::span<const std::byte> data) override;
    /// nullopt when nothing was new: then there is no pack file.
    std::optional<FinishedPack> finish() { return pack_.finish(); }

private:
    ChunkStore& known_;
    CompressionPool pool_;
    PackBuilder pack_;
    PackBuilder::Lane& lane_;
};

}  // namespace lamina::store
