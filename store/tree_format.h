#pragma once

#include "store/image_tree.h"

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

/// Byte layout of an image tree (FORMAT.md, "Image tree"): header, then the body, which is seven tables one after
/// another.
///
/// Records are copied from and to the file as they stand here, so the machine must be little-endian.
namespace lamina::store::tree_format {

static_assert(std::endian::native == std::endian::little, "image trees are read in place: little-endian only");

inline constexpr std::array<char, 8> kMagic = {'L', 'A', 'M', 'T', 'R', 'E', 'E', '\n'};
inline constexpr std::uint32_t kVersion = 1;
inline constexpr std::uint64_t kBlockBytes = 64 * 1024;   ///< Of the body; each has a digest in the header.
inline constexpr std::uint64_t kHeaderAlignBytes = 4096;  ///< The header is padded with zeros to a multiple of this.
inline constexpr std::uint64_t kMaxHeaderBytes = 64 << 20;
inline constexpr std::uint64_t kTableAlignBytes = 64;
inline constexpr std::uint64_t kMaxInodes = 1 << 24;
inline constexpr std::uint32_t kMaxNameBytes = 255;
inline constexpr std::uint32_t kMaxPathBytes = 4096;
inline constexpr std::uint32_t kMaxLinkTargetBytes = 4095;
inline constexpr std::uint32_t kMaxXattrNameBytes = 255;
inline constexpr std::uint32_t kMaxXattrValueBytes = 64 * 1024;

enum class Table : std::uint32_t { inodes, dirents, parts, part_ends, xattr_sets, xattrs, strings };
inline constexpr std::uint32_t kTableCount = 7;

struct TablePlace {
    std::uint64_t offset_bytes;  ///< From the start of the body; a multiple of kTableAlignBytes.
    std::uint64_t count;         ///< Records; for `strings` bytes.
};

/// The fixed part; the digests of the blocks follow, 32 bytes each, then zeros. The tree's digest is SHA-256 of all
/// `header_bytes`.
struct Header {
    std::array<char, 8> magic;
    std::uint32_t version;
    std::uint32_t header_bytes;
    std::uint64_t file_bytes;
    std::uint64_t logical_bytes;
    std::uint32_t block_count;
    std::uint32_t table_count;
    std::uint64_t reserved;
    std::array<TablePlace, kTableCount> tables;
};
static_assert(sizeof(TablePlace) == 16 && sizeof(Header) == 160);

/// Inode n is record n - 1. The meaning of the last five fields depends on the type.
struct Inode {
    std::uint16_t mode;  ///< 12 permission bits; above them the FileType.
    std::uint16_t reserved;
    std::uint32_t nlink;
    std::uint32_t uid;
    std::uint32_t gid;
    std::int64_t mtime_seconds;
    std::uint32_t mtime_nanoseconds;
    std::uint32_t xattr_set;   ///< 0: none; n: record n - 1 of the xattr sets.
    std::uint64_t size_bytes;  ///< Regular: of the file; symlink: of the target; else 0.
    std::uint64_t data;        ///< Regular: bytes without holes; device: major, minor << 32; else 0.
    std::uint32_t first;       ///< Regular: of its parts; directory: of its dirents; symlink: the target in strings.
    std::uint32_t count;       ///< Regular: of parts; directory: of dirents; else 0.
    std::uint32_t extra;       ///< Regular with 2 parts or more: first of its part ends; directory: parent inode.
    std::uint32_t reserved_2;
};
static_assert(sizeof(Inode) == 64);

struct Dirent {
    std::uint32_t name;  ///< In strings.
    std::uint32_t ino;
    std::uint8_t name_bytes;
    std::uint8_t type;
    std::uint16_t reserved;
};
static_assert(sizeof(Dirent) == 12);

struct Part {
    std::array<std::byte, Digest::kSizeBytes> chunk;  ///< All zeros: a hole.
};
static_assert(sizeof(Part) == 32);

/// Where a part of a file with two or more ends, from the file's start. A single part ends where its file does.
struct PartEnd {
    std::uint64_t offset_bytes;
};
static_assert(sizeof(PartEnd) == 8);

struct XattrSet {
    std::uint32_t first;  ///< Of its xattrs.
    std::uint32_t count;  ///< At least 1.
};
static_assert(sizeof(XattrSet) == 8);

struct Xattr {
    std::uint32_t name;  ///< In strings, like `value`.
    std::uint32_t name_bytes;
    std::uint32_t value;
    std::uint32_t value_bytes;
};
static_assert(sizeof(Xattr) == 16);

inline constexpr std::array<std::uint32_t, kTableCount> kRecordBytes = {
    sizeof(Inode), sizeof(Dirent), sizeof(Part), sizeof(PartEnd), sizeof(XattrSet), sizeof(Xattr), 1};

constexpr std::uint64_t aligned(std::uint64_t bytes, std::uint64_t to) {
    return (bytes + to - 1) / to * to;
}
constexpr std::uint64_t block_count(std::uint64_t body_bytes) {
    return aligned(body_bytes, kBlockBytes) / kBlockBytes;
}
constexpr std::uint64_t header_bytes(std::uint64_t blocks) {
    return aligned(sizeof(Header) + blocks * Digest::kSizeBytes, kHeaderAlignBytes);
}
constexpr std::uint16_t packed_mode(FileType type, std::uint32_t permissions) {
    return static_cast<std::uint16_t>(static_cast<std::uint32_t>(type) << 12 | permissions);
}

}  // namespace lamina::store::tree_format
