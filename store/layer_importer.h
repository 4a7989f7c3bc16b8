#pragma once

#include "store/byte_stream.h"
#include "store/chunk_sink.h"
#include "store/digest.h"

#include <cstdint>
#include <stop_token>
#include <string>

namespace lamina::store {

/// Limits of one layer; what lies beyond is refused with Errc::malformed, naming the entry and the limit.
struct LayerLimits {
    std::uint64_t entries = 4'000'000;
    std::uint32_t name_bytes = 255;
    std::uint32_t path_bytes = 4096;
    std::uint32_t xattr_bytes = 64 * 1024;     ///< Names and values of one entry together.
    std::uint32_t pax_bytes = 1024 * 1024;     ///< One extended header.
    std::uint64_t sparse_parts = 1'000'000;    ///< Of one file.
    std::uint64_t file_bytes = 1ull << 44;     ///< Of one file, with holes: 16 TiB, what ext4 has.
    std::uint64_t logical_bytes = 1ull << 50;  ///< Of all files together, with holes.
};

struct ImportedLayer {
    DiffId diff_id;
    std::uint64_t tar_bytes = 0;
    std::uint64_t entry_count = 0;
};

/// Reads one uncompressed layer tar to its end: bodies go to `chunks`, the recipe to `recipe_path` (a file in staging;
/// synced, not yet renamed). Throws malformed (with the offset), and what `tar` and `chunks` throw; a recipe file that
/// was begun is removed. `stop` is polled at least per MiB (cancelled).
ImportedLayer import_layer(ByteSource& tar, ChunkSink& chunks, const std::string& recipe_path,
                           const LayerLimits& limits, std::stop_token stop);

}  // namespace lamina::store
