#pragma once

#include "store/digest.h"
#include "store/layer_stream.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace lamina::store {

/// A place in a layer blob where decompressing can begin.
struct AccessPoint {
    std::uint64_t tar_offset = 0;   ///< Of the first byte that comes out.
    std::uint64_t blob_offset = 0;  ///< Of the first whole byte that goes in.
    std::uint32_t bits = 0;         ///< How many bits of the byte before it go in first (gzip only).
    /// At most 32 KiB of the tar before it (gzip only), with zeros for what later bytes do not refer to; compressed, so
    /// that a file of many takes no more memory than it has bytes.
    std::vector<std::byte> window;
    bool operator==(const AccessPoint&) const = default;
};

/// Where the parts of a layer blob are, so that some of its tar can be had without all of the blob (FORMAT.md, "Access
/// points"). Points lie about 512 KiB of tar apart: in gzip at the ends of deflate blocks, in zstd at those of frames;
/// an uncompressed blob needs none.
struct AccessPoints {
    static constexpr std::uint64_t kSpacingBytes = 512 << 10;

    BlobDigest blob;
    std::uint64_t blob_bytes = 0;
    std::uint64_t tar_bytes = 0;
    Compression compression = Compression::none;
    std::vector<AccessPoint> points;  ///< By offset; the first is at tar offset 0.

    bool operator==(const AccessPoints&) const = default;
    std::vector<std::byte> write() const;
    /// malformed: anything else than write() gives: offsets in order and within, windows that are one.
    static AccessPoints parse(std::span<const std::byte> file);

    /// What must be fetched for a range of the tar, and what then comes out.
    struct Span {
        std::size_t point = 0;
        std::uint64_t blob_first = 0;  ///< Bytes of the blob...
        std::uint64_t blob_end = 0;
        std::uint64_t tar_first = 0;  ///< ...that hold these of the tar.
        std::uint64_t tar_end = 0;
    };
    /// The longest way between two neighbours: a fetch holds about as much tar in memory.
    std::uint64_t widest_gap_bytes() const;
    /// The range must lie within the tar and not be empty.
    Span span_of(std::uint64_t tar_first, std::uint64_t tar_end) const;
    /// Makes a span end later, within its second part: with as much of the blob as that can need, and no more.
    void extend(Span& span, std::uint64_t tar_end) const;
    /// The tar bytes of a span from its blob bytes; malformed when they do not give so many.
    std::vector<std::byte> decode(const Span& span, std::span<const std::byte> blob_part) const;
};

/// Makes the access points of a blob that passes by. One thread.
class AccessPointsMaker {
public:
    explicit AccessPointsMaker(Compression compression);
    ~AccessPointsMaker();
    void take(std::span<const std::byte> blob_bytes);  ///< malformed on a damaged stream.
    AccessPoints finish();                             ///< Call once, last.

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::store
