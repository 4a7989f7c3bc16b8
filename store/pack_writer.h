#pragma once

#include "store/chunk_sink.h"
#include "store/chunk_store.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace lamina::store {

/// Writes one pack: chunks that are not known yet gather in frames of up to 256 KiB, a pool of threads compresses them
/// (zstd level 3, tuned), frames are appended in order. A known chunk is one that `known` holds, or an earlier one of
/// this pack.
///
/// The pack lies in `staging_folder` until finish() has synced it and moved it into `packs_folder`; a writer that is
/// destroyed without finish() leaves nothing behind. add() is for one thread; memory is bounded.
class PackWriter : public ChunkSink {
public:
    struct Options {
        std::string packs_folder;
        std::string staging_folder;
        std::uint32_t pack_number = 0;  ///< From Index::allocate_pack(): never used before.
        int compression_level = 3;
        unsigned thread_count = 2;
    };
    PackWriter(const Options& options, ChunkStore& known);
    ~PackWriter() override;
    ChunkId add(std::span<const std::byte> data) override;
    /// nullopt when nothing was new: then there is no pack file.
    std::optional<FinishedPack> finish();

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::store
