#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

/// Byte layout of an arena (fuse/FORMAT.md, "Arena"). Host byte order: an arena never leaves its machine.
namespace lamina::unionfs::arena_format {

inline constexpr std::uint64_t kMagic = 0x31414e4552414d4cU;  // "LMARENA1", read as little endian.
inline constexpr std::uint32_t kVersion = 2;
inline constexpr std::uint64_t kUnitBytes = 16;                            ///< References count in these.
inline constexpr std::uint64_t kMaxBytes = kUnitBytes << 32;               ///< What a 32-bit reference reaches: 64 GiB.
inline constexpr std::uint64_t kAnswersOffset = 4096;                      ///< Sealed answers.
inline constexpr std::uint64_t kSessionOffset = 8192;                      ///< One page, see session_page.h.
inline constexpr std::uint64_t kSessionBytes = 4096;
inline constexpr std::uint64_t kLogOffset = std::uint64_t{64} << 10;       ///< Undo log; grows towards kDataOffset.
inline constexpr std::uint64_t kDataOffset = std::uint64_t{1} << 30;       ///< Blocks.
inline constexpr std::uint64_t kGrowUnitBytes = std::uint64_t{256} << 10;  ///< Log and data grow in these.
inline constexpr std::size_t kAnswerSlots = 64;
inline constexpr std::size_t kRoots = 4;

/// Blocks are 16, 32 ... 256 bytes, then four sizes for each doubling, up to 128 KiB.
inline constexpr std::size_t kSmallClasses = 16;
inline constexpr std::size_t kSizeClasses = kSmallClasses + 9 * 4;
inline constexpr std::uint64_t kMaxBlockBytes = std::uint64_t{128} << 10;

constexpr std::size_t size_class(std::uint64_t bytes) {
    if (bytes <= 256) return bytes == 0 ? 0 : (bytes - 1) / 16;
    const unsigned power = static_cast<unsigned>(std::bit_width(bytes - 1)) - 1;  // 2^power < bytes <= 2^(power+1)
    const std::uint64_t quarter = ((bytes - 1) >> (power - 2)) & 3;
    return kSmallClasses + (power - 8) * 4 + quarter;
}
constexpr std::uint64_t class_bytes(std::size_t size_class) {
    if (size_class < kSmallClasses) return (size_class + 1) * 16;
    const std::size_t power = (size_class - kSmallClasses) / 4 + 8;
    const std::size_t quarter = (size_class - kSmallClasses) % 4;
    return (std::uint64_t{1} << power) + (quarter + 1) * (std::uint64_t{1} << (power - 2));
}
static_assert(class_bytes(size_class(257)) == 320 && class_bytes(size_class(320)) == 320);
static_assert(class_bytes(size_class(321)) == 384 && class_bytes(size_class(512)) == 512);
static_assert(size_class(kMaxBlockBytes) == kSizeClasses - 1 && class_bytes(kSizeClasses - 1) == kMaxBlockBytes);

struct Header {
    std::uint64_t magic;
    std::uint32_t version;
    std::uint32_t reserved;
    std::uint64_t log_used_bytes;  ///< Not 0: a transaction is unfinished, and this much of the log undoes it.
    std::uint64_t log_end;         ///< Offset in the file up to which the log has room.
    std::uint64_t data_used_end;   ///< Offset of the first block that was never used.
    std::uint64_t data_end;        ///< Offset up to which blocks have room.
    std::array<std::uint32_t, kRoots> roots;             ///< References of the owners' first records.
    std::array<std::uint32_t, kSizeClasses> free_heads;  ///< First free block of each size; its first word is the next.
};
static_assert(sizeof(Header) == 64 + 4 * kSizeClasses && sizeof(Header) <= kAnswersOffset);
static_assert(offsetof(Header, log_used_bytes) == 16 && offsetof(Header, free_heads) == 64);

struct Answer {
    std::uint64_t unique;  ///< The request's number; 0: the slot is free.
    std::uint64_t value;
};
static_assert(sizeof(Answer) == 16);
static_assert(kAnswersOffset + kAnswerSlots * sizeof(Answer) <= kSessionOffset);
static_assert(kSessionOffset + kSessionBytes <= kLogOffset);

/// Behind the saved bytes (padded to 8) of each entry of the log, so that it is read from its end.
struct LogTrailer {
    std::uint64_t offset;
    std::uint64_t size_bytes;
};
static_assert(sizeof(LogTrailer) == 16);

}  // namespace lamina::unionfs::arena_format
