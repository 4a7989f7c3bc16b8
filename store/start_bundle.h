#pragma once

#include "store/access_points.h"
#include "store/byte_stream.h"
#include "store/chunk_store.h"
#include "store/lazy_layer.h"
#include "store/oci.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lamina::store {

/// What programs want first when an image is mounted, as bytes: the chunks of its start trace, in that order, in zstd
/// frames that lie one behind the other in a blob of their own. So a node that starts the image gets in one request
/// what it needs and nothing else, whatever lies beside it in the layers. This is the blob's directory (FORMAT.md,
/// "Start bundle"); what it says is believed as far as the chunks have their digests.
struct StartBundle {
    static constexpr std::uint64_t kMaxFrameBytes = 1 << 20;  ///< Of chunks.
    static constexpr std::uint64_t kMaxBlobBytes = 64 << 20;
    static constexpr std::size_t kMaxChunks = 65'536;

    struct Chunk {
        ChunkId id;
        std::uint64_t size_bytes = 0;
        bool operator==(const Chunk&) const = default;
    };
    struct Frame {
        std::uint64_t blob_bytes = 0;
        std::vector<Chunk> chunks;
        bool operator==(const Frame&) const = default;
    };
    std::vector<Frame> frames;
    bool operator==(const StartBundle&) const = default;

    std::string write() const;
    static StartBundle parse(std::span<const std::byte> file);  ///< malformed.

    std::uint64_t blob_bytes() const;
    std::vector<ChunkId> chunks() const;
    /// As of a layer whose tar is the chunks, one behind the other.
    AccessPoints points(const BlobDigest& blob) const;
    ChunkMap map() const;
};

struct WrittenBundle {
    StartBundle directory;
    BlobDigest blob;
};
/// Writes the blob of these chunks: whole frames, as many as `limit_bytes` hold. What the store has not is left out.
/// The same chunks give the same bytes.
WrittenBundle write_start_bundle(ChunkStore& store, const std::vector<ChunkId>& chunks, std::uint64_t limit_bytes,
                                 ByteSink& out);

}  // namespace lamina::store
