#include "store/recipe_file.h"

#include "store/chunker.h"
#include "store/error.h"

#include <fmt/format.h>
#include <xxhash.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <utility>

// A recipe file is three streams cut into blocks (literals, steps, chunk records), the records of the blocks, and a
// footer. Opening reads footer and block records and checks that they fit together, so that later code may trust
// offsets, sizes and counts; each block's bytes are checked when it is read. Cursors hold one block of each stream.

namespace lamina::store {

using namespace recipe_format;

namespace {

constexpr std::size_t kMaxCachedPages = 8;

ContentPart content_part(const ChunkRecord& record) {
    return {.chunk = ChunkId{Digest::from_bytes(record.digest)}, .size_bytes = record.size_bytes, .is_hole = false};
}

}  // namespace

RecipeFile::RecipeFile(const std::string& path) : path_(path), fd_(open_read(path)) {
    const std::uint64_t size = file_size(path);
    if (size < sizeof(FileHeader) + sizeof(Footer)) fail("too short");
    FileHeader header;
    read_exact(fd_.get(), 0, std::as_writable_bytes(std::span(&header, 1)), path_);
    if (header.magic != kMagic) fail("not a recipe");
    if (header.version != kVersion) {
        throw Error(Errc::unsupported, fmt::format("recipe {}: has version {}, this program reads version {}", path_,
                                                   header.version, kVersion));
    }
    read_footer(size);
}

void RecipeFile::fail(const std::string& problem) const {
    throw Error(Errc::corrupt, fmt::format("recipe {}: {}", path_, problem));
}

void RecipeFile::read_footer(std::uint64_t file_bytes) {
    const std::uint64_t footer_offset = file_bytes - sizeof(Footer);
    read_exact(fd_.get(), footer_offset, std::as_writable_bytes(std::span(&footer_, 1)), path_);
    if (footer_.magic != kMagic || footer_.checksum != XXH3_64bits(&footer_, offsetof(Footer, checksum))) {
        fail("footer is damaged");
    }
    const std::uint64_t room = footer_offset - sizeof(FileHeader);
    if (footer_.block_count > room / sizeof(BlockRecord)) fail("more blocks than fit");
    blocks_.resize(footer_.block_count);
    const auto records = std::as_writable_bytes(std::span(blocks_));
    const std::uint64_t records_offset = footer_offset - records.size();
    if (!records.empty()) read_exact(fd_.get(), records_offset, records, path_);
    if (XXH3_64bits(records.data(), records.size()) != footer_.blocks_checksum) fail("block records are damaged");
    check_blocks(records_offset);
}

void RecipeFile::check_blocks(std::uint64_t end_bytes) {
    std::uint64_t offset = sizeof(FileHeader);
    std::uint64_t literal_bytes = 0;
    std::uint64_t chunk_count = 0;
    for (const BlockRecord& block : blocks_) {
        const bool is_chunks = block.kind == std::to_underlying(BlockKind::chunks);
        if (block.kind < std::to_underlying(BlockKind::literals) ||
            block.kind > std::to_underlying(BlockKind::chunks)) {
            fail("block of unknown kind");
        }
        if (block.offset_bytes != offset || block.stored_bytes > end_bytes - offset) fail("blocks do not fit together");
        if (block.raw_bytes == 0 || block.raw_bytes > kMaxBlockBytes) fail("block of a wrong size");
        if (block.stored_bytes > ZSTD_compressBound(kMaxBlockBytes)) fail("block of a wrong size");
        if (is_chunks) {
            if (chunk_count % kChunksPerPage != 0) fail("chunk page that is not full");
            if (block.raw_bytes != block.stored_bytes || block.raw_bytes % sizeof(ChunkRecord) != 0) {
                fail("chunk page of a wrong size");
            }
            if (block.raw_bytes / sizeof(ChunkRecord) > kChunksPerPage) fail("chunk page of a wrong size");
            chunk_count += block.raw_bytes / sizeof(ChunkRecord);
        }
        if (block.kind == std::to_underlying(BlockKind::literals)) literal_bytes += block.raw_bytes;
        offset += block.stored_bytes;
    }
    if (offset != end_bytes) fail("bytes that belong to no block");
    if (literal_bytes != footer_.literal_bytes || literal_bytes > footer_.tar_bytes) fail("literals do not add up");
    if (chunk_count != footer_.chunk_count) fail("chunks do not add up");
    std::ranges::stable_sort(blocks_, {}, &BlockRecord::kind);
}

std::span<const BlockRecord> RecipeFile::blocks(BlockKind kind) const {
    const std::uint32_t wanted = std::to_underlying(kind);
    const auto is_before = [&](const BlockRecord& block) { return block.kind < wanted; };
    const auto is_not_after = [&](const BlockRecord& block) { return block.kind <= wanted; };
    return {std::partition_point(blocks_.begin(), blocks_.end(), is_before),
            std::partition_point(blocks_.begin(), blocks_.end(), is_not_after)};
}

std::vector<std::byte> RecipeFile::read(const BlockRecord& block) const {
    std::vector<std::byte> stored(block.stored_bytes);
    read_exact(fd_.get(), block.offset_bytes, stored, path_);
    if (XXH3_64bits(stored.data(), stored.size()) != block.checksum) {
        fail(fmt::format("block at offset {} is damaged", block.offset_bytes));
    }
    if (block.kind == std::to_underlying(BlockKind::chunks)) return stored;
    std::vector<std::byte> raw(block.raw_bytes);
    const std::size_t size = ZSTD_decompress(raw.data(), raw.size(), stored.data(), stored.size());
    if (ZSTD_isError(size) || size != raw.size()) {
        fail(fmt::format("block at offset {} does not decompress", block.offset_bytes));
    }
    return raw;
}

std::span<const std::byte> BlockStream::peek(std::size_t want_bytes) {
    while (data_.size() - begin_ < want_bytes && next_block_ < blocks_.size()) {
        std::vector<std::byte> block = file_.read(blocks_[next_block_++]);
        if (begin_ == data_.size()) {
            data_ = std::move(block);
        } else {
            data_.erase(data_.begin(), data_.begin() + static_cast<std::ptrdiff_t>(begin_));
            data_.insert(data_.end(), block.begin(), block.end());
        }
        begin_ = 0;
    }
    return std::span(data_).subspan(begin_);
}

void BlockStream::consume(std::size_t bytes) {
    begin_ += bytes;
    consumed_bytes_ += bytes;
}

std::uint64_t RecipeSteps::read_number() {
    std::uint64_t number = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        const auto data = numbers_.peek(1);
        if (data.empty()) file_.fail("steps end within a number");
        const auto byte = std::to_integer<std::uint64_t>(data[0]);
        numbers_.consume(1);
        if (shift == 63 && byte > 1) break;
        number |= (byte & 0x7f) << shift;
        if (byte < 0x80) return number;
    }
    file_.fail("step of more than 64 bits");
}

std::optional<RecipeStep> RecipeSteps::next() {
    if (numbers_.peek(1).empty()) {
        if (used_chunks_ != file_.footer().chunk_count) file_.fail("has chunks that no step uses");
        return std::nullopt;
    }
    const std::uint64_t number = read_number();
    if (number == kLiteralStep) {
        const RecipeStep step{.literal_bytes = read_number(), .chunk = std::nullopt};
        if (step.literal_bytes == 0) file_.fail("empty step");
        return step;
    }
    if (number == kNewChunk) return RecipeStep{.literal_bytes = 0, .chunk = chunk_at(used_chunks_++)};
    if (number - kNewChunk > used_chunks_) file_.fail("step to a chunk before the first");
    return RecipeStep{.literal_bytes = 0, .chunk = chunk_at(used_chunks_ - (number - kNewChunk))};
}

ContentPart RecipeSteps::chunk_at(std::uint64_t index) {
    if (index >= file_.footer().chunk_count) file_.fail("step to a chunk after the last");
    ChunkRecord record;
    const Page& found = page(index / kChunksPerPage);
    std::memcpy(&record, found.data.data() + index % kChunksPerPage * sizeof record, sizeof record);
    if (record.size_bytes == 0 || record.size_bytes > kMaxChunkBytes) file_.fail("chunk of a wrong size");
    return content_part(record);
}

const RecipeSteps::Page& RecipeSteps::page(std::uint64_t number) {
    const auto found = std::ranges::find(pages_, number, &Page::number);
    if (found == pages_.begin() && !pages_.empty()) return pages_.front();
    if (found != pages_.end()) {
        std::rotate(pages_.begin(), found, found + 1);
        return pages_.front();
    }
    if (pages_.size() == kMaxCachedPages) pages_.pop_back();
    pages_.push_front({number, file_.read(file_.blocks(BlockKind::chunks)[number])});
    return pages_.front();
}

}  // namespace lamina::store
