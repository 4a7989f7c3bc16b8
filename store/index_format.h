#pragma once

#include "store/chunk_store.h"
#include "store/pack_format.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

/// Byte layout of the chunk index: its segments and the list of them (FORMAT.md, "Chunk index").
namespace lamina::store::index_format {

using pack_format::bytes_of;
using pack_format::load;

inline constexpr std::uint64_t kSegmentMagic = 0x314745534D4C89;  // 89 "LMSEG1" 0
inline constexpr std::uint64_t kListMagic = 0x31545349'4C4D4C89;  // 89 "LMLIST1"
inline constexpr std::uint32_t kVersion = 1;

inline constexpr std::uint64_t kMaxEntries = 0xFFFFFFFF;  ///< In one segment: the fan-out counts in 32 bits.
inline constexpr std::uint32_t kMaxFanOutBits = 30;
inline constexpr std::uint32_t kMaxSegments = 64;
inline constexpr std::uint32_t kMaxPacks = 1U << 21;

/// A segment: header, fan-out of 2^fan_out_bits + 1 counts, zeros up to a multiple of 64 bytes, entries.
struct SegmentHeader {
    std::uint64_t magic;
    std::uint32_t version;
    std::uint32_t fan_out_bits;
    std::uint64_t entry_count;
    std::uint64_t number;            ///< As in the file's name.
    std::uint64_t entries_checksum;  ///< XXH3-64 of all entries.
    std::uint64_t zero[2];
    std::uint64_t checksum;  ///< head_checksum()
};
static_assert(sizeof(SegmentHeader) == 64);

/// A chunk and its place, in order of digest.
struct Entry {
    std::array<std::byte, Digest::kSizeBytes> digest;
    std::array<std::byte, 4> pack;
    std::array<std::byte, 5> frame_offset;
    std::array<std::byte, 7> sizes;  ///< 20 bits frame size on disk, 18 bits offset in the frame, 18 bits size - 1.
};
static_assert(sizeof(Entry) == 48 && alignof(Entry) == 1);
static_assert(pack_format::kMaxFrameBytes < 1U << 20 && pack_format::kMaxFrameRawBytes <= 1U << 18);
static_assert(pack_format::kMaxPackBytes <= std::uint64_t{1} << 40);

/// The list: header, segment rows from the oldest to the newest, pack rows sorted, XXH3-64 of all before it.
struct ListHeader {
    std::uint64_t magic;
    std::uint32_t version;
    std::uint32_t segment_count;
    std::uint64_t generation;
    std::uint32_t pack_count;
    std::uint32_t zero;
};
static_assert(sizeof(ListHeader) == 32);

struct SegmentRow {
    std::uint64_t number;
    std::uint64_t head_checksum;  ///< The segment's; so it cannot be another one of that name.
};
static_assert(sizeof(SegmentRow) == 16);

struct PackRow {
    std::uint32_t pack;
    std::uint32_t segment;  ///< Position of the segment row that covers the pack.
};
static_assert(sizeof(PackRow) == 8);

inline constexpr std::uint64_t kMaxListBytes = sizeof(ListHeader) + kMaxSegments * sizeof(SegmentRow) +
                                               std::uint64_t{kMaxPacks} * sizeof(PackRow) + sizeof(std::uint64_t);

inline std::uint64_t fan_out_bytes(std::uint32_t bits) {
    return ((std::uint64_t{1} << bits) + 1) * sizeof(std::uint32_t);
}
inline std::uint64_t entries_offset(std::uint32_t bits) {
    return (sizeof(SegmentHeader) + fan_out_bytes(bits) + 63) / 64 * 64;
}
/// Two to four entries share a count.
inline std::uint32_t fan_out_bits_for(std::uint64_t entry_count) {
    std::uint32_t bits = 0;
    while (bits < kMaxFanOutBits && entry_count >> bits > 4) ++bits;
    return bits;
}
/// Of the header before its checksum and everything from there to the entries. `head` ends at the entries.
inline std::uint64_t head_checksum(std::span<const std::byte> head) {
    constexpr std::size_t kBefore = offsetof(SegmentHeader, checksum);
    const std::uint64_t seed = XXH3_64bits(head.data(), kBefore);
    return XXH3_64bits_withSeed(head.data() + sizeof(SegmentHeader), head.size() - sizeof(SegmentHeader), seed);
}

/// The first eight bytes of a digest as a number whose order is that of the digests.
inline std::uint64_t key_of(const std::byte* digest) {
    std::uint64_t value;
    std::memcpy(&value, digest, sizeof value);
    return __builtin_bswap64(value);
}
inline std::uint64_t bucket_of(std::uint64_t key, std::uint32_t bits) {
    return bits == 0 ? 0 : key >> (64 - bits);
}

inline Entry encode(const NewChunk& chunk) {
    Entry entry;
    std::memcpy(entry.digest.data(), chunk.id.digest.bytes().data(), entry.digest.size());
    std::memcpy(entry.pack.data(), &chunk.place.pack, entry.pack.size());
    std::memcpy(entry.frame_offset.data(), &chunk.place.frame_offset_bytes, entry.frame_offset.size());
    const std::uint64_t sizes = std::uint64_t{chunk.place.frame_size_bytes} |
                                std::uint64_t{chunk.place.offset_in_frame_bytes} << 20 |
                                std::uint64_t{chunk.place.size_bytes - 1} << 38;
    std::memcpy(entry.sizes.data(), &sizes, entry.sizes.size());
    return entry;
}

inline ChunkPlace decode(const Entry& entry) {
    ChunkPlace place;
    std::uint64_t sizes = 0;
    std::memcpy(&place.pack, entry.pack.data(), entry.pack.size());
    std::memcpy(&place.frame_offset_bytes, entry.frame_offset.data(), entry.frame_offset.size());
    std::memcpy(&sizes, entry.sizes.data(), entry.sizes.size());
    place.frame_size_bytes = static_cast<std::uint32_t>(sizes & ((1U << 20) - 1));
    place.offset_in_frame_bytes = static_cast<std::uint32_t>(sizes >> 20 & ((1U << 18) - 1));
    place.size_bytes = static_cast<std::uint32_t>(sizes >> 38) + 1;
    return place;
}

}  // namespace lamina::store::index_format
