#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

/// Byte layout of a recipe file (FORMAT.md, "Recipe"). Little-endian.
namespace lamina::store::recipe_format {

static_assert(std::endian::native == std::endian::little, "structures are written as they lie in memory");

inline constexpr std::array<char, 8> kMagic = {'L', 'M', 'N', 'R', 'E', 'C', 'P', '\n'};
inline constexpr std::uint32_t kVersion = 1;

/// At most this much of a stream is in one block, before compression.
inline constexpr std::uint32_t kMaxBlockBytes = 1024 * 1024;
/// A chunk page holds this many, but the last.
inline constexpr std::uint32_t kChunksPerPage = 1820;
inline constexpr int kCompressionLevel = 6;

struct FileHeader {
    std::array<char, 8> magic;
    std::uint32_t version;
    std::uint32_t reserved;  ///< 0
};
static_assert(sizeof(FileHeader) == 16 && std::is_trivially_copyable_v<FileHeader>);

enum class BlockKind : std::uint32_t {
    literals = 1,  ///< zstd: bytes of the tar that are no file bodies.
    steps = 2,     ///< zstd: how literals and chunks alternate.
    chunks = 3,    ///< Not compressed: ChunkRecords.
};

/// One block of the file; blocks of one kind are in order.
struct BlockRecord {
    std::uint64_t offset_bytes;
    std::uint64_t checksum;  ///< XXH3-64 of the stored bytes.
    std::uint32_t stored_bytes;
    std::uint32_t raw_bytes;  ///< After decompression; equal to stored_bytes for chunks.
    std::uint32_t kind;
    std::uint32_t reserved;  ///< 0
};
static_assert(sizeof(BlockRecord) == 32 && std::is_trivially_copyable_v<BlockRecord>);

#pragma pack(push, 4)
struct ChunkRecord {
    std::array<std::byte, 32> digest;
    std::uint32_t size_bytes;
};
#pragma pack(pop)
static_assert(sizeof(ChunkRecord) == 36 && std::is_trivially_copyable_v<ChunkRecord>);

/// The last bytes of the file; the block records stand right before it.
struct Footer {
    std::array<std::byte, 32> diff_id;
    std::uint64_t tar_bytes;
    std::uint64_t literal_bytes;
    std::uint64_t entry_count;
    std::uint64_t chunk_count;  ///< Of all chunk pages.
    std::uint64_t block_count;
    std::uint64_t blocks_checksum;  ///< XXH3-64 of the block records.
    std::array<char, 8> magic;
    std::uint64_t checksum;  ///< XXH3-64 of the footer before this field.
};
static_assert(sizeof(Footer) == 96 && std::is_trivially_copyable_v<Footer>);

/// Steps are a sequence of LEB128 numbers: kLiteralStep is followed by a count of literal bytes (at least 1); kNewChunk
/// is the first chunk of the table that no step has used yet; n > kNewChunk the one that stands n - kNewChunk before
/// it.
inline constexpr std::uint64_t kLiteralStep = 0;
inline constexpr std::uint64_t kNewChunk = 1;

}  // namespace lamina::store::recipe_format
