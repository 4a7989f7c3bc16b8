#pragma once

#include "fuse/byte_codec.h"
#include "store/read_view.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

/// Byte layout of a mount's log and checkpoint (fuse/FORMAT.md, "Log", "Checkpoint"): a header, then framed records.
namespace lamina::unionfs::log_format {

inline constexpr std::uint32_t kVersion = 1;
inline constexpr std::size_t kMagicBytes = 8;
inline constexpr char kLogMagic[kMagicBytes + 1] = "LAMLOG\r\n";
inline constexpr char kCheckpointMagic[kMagicBytes + 1] = "LAMCKP\r\n";

/// The machine's boot: file data that no sync covered is whole only as long as it lasts.
using BootId = std::array<std::byte, 16>;

/// Fields lie without gaps in this order; all numbers little-endian.
struct Header {
    std::array<char, kMagicBytes> magic{};
    std::uint32_t version = kVersion;
    std::uint32_t header_bytes = 0;
    std::array<std::byte, 32> tree{};  ///< Digest of the image tree that the changes are about.
    std::uint64_t generation = 0;      ///< Of the log. In a checkpoint: of the log that continues it.
    std::uint64_t salt = 0;            ///< Random, so that no record of another file fits.
    BootId boot{};                     ///< Of the session that wrote the header.
    std::uint64_t reserved = 0;
    std::uint64_t checksum = 0;  ///< XXH3-64 of all before it; the seed of the first record's checksum.
};
static_assert(sizeof(Header) == 96 && offsetof(Header, tree) == 16 && offsetof(Header, generation) == 48);
static_assert(offsetof(Header, boot) == 64 && offsetof(Header, checksum) == 88);
static_assert(std::is_trivially_copyable_v<Header>);
inline constexpr std::size_t kHeaderBytes = sizeof(Header);

/// Frame of a record: checksum u64, sequence u64, payload size u32; the payload follows. The checksum is XXH3-64 of all
/// after it, seeded with the checksum of the record before, so that a record is valid only where it was written.
inline constexpr std::size_t kFrameBytes = 20;
inline constexpr std::size_t kFrameChecksumBytes = 8;
inline constexpr std::size_t kMaxPayloadBytes = 256 * 1024;

// The first byte of a payload. Below kFirstMark a change (change.h); from there on what only the log itself means.
inline constexpr std::uint8_t kFirstMark = 0xf0;
inline constexpr std::uint8_t kSyncMark = 0xf0;  ///< varint: every record up to this sequence is durable.
inline constexpr std::uint8_t kSessionMark =
    0xf1;                                       ///< boot id; varint: records after this sequence, up to here, are void.
inline constexpr std::uint8_t kEndMark = 0xf2;  ///< Last in a checkpoint. varint: count of records before it.

std::uint64_t checksum_of(std::span<const std::byte> bytes, std::uint64_t seed);
Header make_header(const char* magic, const store::TreeDigest& tree, std::uint64_t generation, const BootId& boot);
std::span<const std::byte> bytes_of(const Header& header);
/// Fills in the frame at the front of `record`, whose payload stands behind it. Returns the checksum.
std::uint64_t seal(std::span<std::byte> record, std::uint64_t sequence, std::uint64_t previous_checksum);

BootId current_boot();  ///< /proc/sys/kernel/random/boot_id; throws unavailable.

}  // namespace lamina::unionfs::log_format
