#pragma once

#include "store/byte_stream.h"
#include "store/digest.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

namespace lamina::store {

enum class Compression { none, gzip, zstd };

/// Limits against bombs: `ratio` x compressed bytes + `slack_bytes`, and the zstd window. Compressed bytes are those
/// read so far and up to 16 MiB more of what the descriptor promises: a run of zeros at the front of a large layer
/// passes, and a false promise gains little.
struct StreamLimits {
    std::uint64_t ratio = 200;
    std::uint64_t slack_bytes = 64ull << 20;
    std::uint64_t zstd_window_bytes = 128ull << 20;
};

/// The uncompressed bytes of a layer blob. Reads `blob` to its end and checks its size and digest there: the last
/// read() (the one that would return 0) throws corrupt when they differ from what the descriptor promised. Decompresses
/// gzip (ISA-L; several members; trailing zeros) and zstd (several frames, skippable ones). Bombs, truncated and
/// damaged streams throw malformed. May inflate ahead in a thread of its own, bounded.
class LayerStream : public ByteSource {
public:
    struct Expected {
        BlobDigest digest;
        std::uint64_t size_bytes = 0;
    };
    /// `compression`: nullopt: as the first bytes say.
    static std::unique_ptr<LayerStream> open(std::unique_ptr<ByteSource> blob, std::optional<Compression> compression,
                                             const Expected& expected, const StreamLimits& limits);
    virtual std::uint64_t blob_bytes_read() const = 0;  ///< For progress; any thread.
};

/// Guesses from the first bytes of a blob (needs 4): for docker archives, whose layers do not say.
Compression compression_of(std::span<const std::byte> first_bytes);

}  // namespace lamina::store
