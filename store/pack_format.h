#pragma once

#include "store/chunker.h"
#include "store/digest.h"

#include <xxhash.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

/// Byte layout of a pack (FORMAT.md, "Packs"). Structs are copied to and from disk as they are.
namespace lamina::store::pack_format {

static_assert(std::endian::native == std::endian::little, "the structs below are little-endian on disk");

inline constexpr std::uint64_t kPackMagic = 0x314B4341504D4C89;     // 89 "LMPACK1"
inline constexpr std::uint64_t kTrailerMagic = 0x31444E45504D4C89;  // 89 "LMPEND1"
inline constexpr std::uint32_t kFrameMagic = 0x4D52464C;            // "LFRM"
inline constexpr std::uint32_t kVersion = 1;                        ///< No frame tells its level.
inline constexpr std::uint32_t kLevelVersion = 2;                   ///< Frames may tell their level.

inline constexpr std::uint32_t kMaxFrameRawBytes = kMaxChunkBytes;
inline constexpr std::uint32_t kMaxFrameChunks = 4096;
inline constexpr std::uint64_t kMaxPackBytes = std::uint64_t{1} << 40;
inline constexpr int kWindowLog = 18;  ///< zstd: 256 KiB, a whole frame.
inline constexpr std::uint8_t kMaxLevel = 22;

struct PackHeader {
    std::uint64_t magic;
    std::uint32_t version;
    std::uint32_t pack_number;
    std::uint64_t checksum;  ///< XXH3-64 of the 16 bytes before it.
};
static_assert(sizeof(PackHeader) == 24);

enum class Codec : std::uint8_t { stored = 0, zstd = 1 };

struct FrameHeader {
    std::uint32_t magic;
    std::uint32_t frame_size_bytes;  ///< Header, table and payload.
    std::uint64_t checksum;          ///< frame_checksum()
    std::uint32_t raw_size_bytes;    ///< Of the payload when unpacked; the sum of the table's sizes.
    std::uint16_t chunk_count;
    Codec codec;
    std::uint8_t level;  ///< zstd's, of a frame that upkeep has compressed; 0: as at import.
};
static_assert(sizeof(FrameHeader) == 24);

/// Follows a FrameHeader, or a FooterFrame, chunk_count times.
struct ChunkRow {
    std::array<std::byte, Digest::kSizeBytes> digest;
    std::uint32_t size_bytes;
};
static_assert(sizeof(ChunkRow) == 36 && alignof(ChunkRow) == 4);

struct FooterFrame {
    std::uint32_t frame_size_bytes;
    std::uint32_t chunk_count;
};
static_assert(sizeof(FooterFrame) == 8);

struct PackTrailer {
    std::uint64_t footer_offset_bytes;
    std::uint32_t frame_count;
    std::uint32_t chunk_count;
    std::uint64_t raw_bytes;
    std::uint64_t checksum;  ///< XXH3-64 of the footer and the 24 bytes before it.
    std::uint64_t magic;
};
static_assert(sizeof(PackTrailer) == 40);
inline constexpr std::size_t kTrailerCheckedBytes = offsetof(PackTrailer, checksum);

inline constexpr std::uint32_t kMaxFrameBytes =
    sizeof(FrameHeader) + kMaxFrameChunks * sizeof(ChunkRow) + kMaxFrameRawBytes;

template <class T>
T load(std::span<const std::byte> data, std::size_t offset_bytes) {
    T value;
    std::memcpy(&value, data.data() + offset_bytes, sizeof value);
    return value;
}

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
    return std::as_bytes(std::span(&value, 1));
}

inline std::uint64_t header_checksum(const PackHeader& header) {
    return XXH3_64bits(&header, offsetof(PackHeader, checksum));
}

/// Covers every byte of the frame but the checksum itself: the eight bytes before it are the seed.
inline std::uint64_t frame_checksum(std::span<const std::byte> frame) {
    constexpr std::size_t kFrom = offsetof(FrameHeader, raw_size_bytes);
    return XXH3_64bits_withSeed(frame.data() + kFrom, frame.size() - kFrom, load<std::uint64_t>(frame, 0));
}

}  // namespace lamina::store::pack_format
