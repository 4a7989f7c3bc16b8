#include "store/recipe_writer.h"

#include "store/error.h"

#include <unistd.h>

#include <xxhash.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace lamina::store {

namespace {

using namespace recipe_format;

constexpr std::size_t kMaxRecentChunks = 128 * 1024;  // About 10 MiB.

template <class Value>
void append_to(std::vector<std::byte>& out, const Value& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    out.insert(out.end(), bytes.begin(), bytes.end());
}

}  // namespace

void RecipeWriter::FreeContext::operator()(ZSTD_CCtx_s* context) const noexcept {
    ZSTD_freeCCtx(context);
}

RecipeWriter::RecipeWriter(const std::string& path)
    : file_(File::create(path)), unfinished_(path), context_(ZSTD_createCCtx()) {
    if (!context_) throw std::bad_alloc();
    std::vector<std::byte> header;
    append_to(header, FileHeader{.magic = kMagic, .version = kVersion, .reserved = 0});
    file_.append(header);
}

RecipeWriter::Unfinished::~Unfinished() {
    if (!is_kept) ::unlink(path.c_str());  // Not remove_file(): it may throw, and this is no change to keep.
}

void RecipeWriter::write(std::span<const std::byte> literals) {
    open_literal_bytes_ += literals.size();
    literal_bytes_ += literals.size();
    while (!literals.empty()) {
        const auto part = literals.first(std::min(literals.size(), kMaxBlockBytes - literals_.size()));
        literals_.insert(literals_.end(), part.begin(), part.end());
        literals = literals.subspan(part.size());
        if (literals_.size() == kMaxBlockBytes) flush(BlockKind::literals, literals_);
    }
}

void RecipeWriter::add_chunk(const ChunkId& chunk, std::uint32_t size_bytes) {
    end_literals();
    if (const auto known = recent_.find(chunk); known != recent_.end()) {
        add_step(kNewChunk + chunk_count_ - known->second);
        return;
    }
    add_step(kNewChunk);
    ChunkRecord record{.digest = {}, .size_bytes = size_bytes};
    std::ranges::copy(chunk.digest.bytes(), record.digest.begin());
    append_to(chunks_, record);
    if (chunks_.size() == kChunksPerPage * sizeof(ChunkRecord)) flush(BlockKind::chunks, chunks_);
    if (recent_.size() == kMaxRecentChunks) recent_.clear();
    recent_.emplace(chunk, chunk_count_++);
}

void RecipeWriter::end_literals() {
    if (open_literal_bytes_ == 0) return;
    add_step(kLiteralStep);
    add_step(std::exchange(open_literal_bytes_, 0));
}

void RecipeWriter::add_step(std::uint64_t number) {
    do {
        const auto low = static_cast<unsigned char>(number & 0x7f);
        number >>= 7;
        steps_.push_back(std::byte(number > 0 ? low | 0x80 : low));
        if (steps_.size() == kMaxBlockBytes) flush(BlockKind::steps, steps_);
    } while (number > 0);
}

void RecipeWriter::flush(BlockKind kind, std::vector<std::byte>& data) {
    if (data.empty()) return;
    BlockRecord record{};
    record.kind = std::to_underlying(kind);
    record.raw_bytes = static_cast<std::uint32_t>(data.size());
    if (kind == BlockKind::chunks) {
        append_block(record, data);
    } else {
        compressed_.resize(ZSTD_compressBound(data.size()));
        const std::size_t size = ZSTD_compressCCtx(context_.get(), compressed_.data(), compressed_.size(), data.data(),
                                                   data.size(), kCompressionLevel);
        if (ZSTD_isError(size)) throw Error(Errc::internal, std::string("compress recipe: ") + ZSTD_getErrorName(size));
        append_block(record, std::span(compressed_).first(size));
    }
    data.clear();
}

void RecipeWriter::append_block(BlockRecord record, std::span<const std::byte> stored) {
    record.offset_bytes = file_.size_bytes();
    record.stored_bytes = static_cast<std::uint32_t>(stored.size());
    record.checksum = XXH3_64bits(stored.data(), stored.size());
    file_.append(stored);
    blocks_.push_back(record);
}

void RecipeWriter::finish(const Totals& totals) {
    end_literals();
    flush(BlockKind::literals, literals_);
    flush(BlockKind::steps, steps_);
    flush(BlockKind::chunks, chunks_);
    const auto records = std::as_bytes(std::span(blocks_));
    Footer footer{};
    std::ranges::copy(totals.diff_id.digest.bytes(), footer.diff_id.begin());
    footer.tar_bytes = totals.tar_bytes;
    footer.literal_bytes = literal_bytes_;
    footer.entry_count = totals.entry_count;
    footer.chunk_count = chunk_count_;
    footer.block_count = blocks_.size();
    footer.blocks_checksum = XXH3_64bits(records.data(), records.size());
    footer.magic = kMagic;
    footer.checksum = XXH3_64bits(&footer, offsetof(Footer, checksum));
    std::vector<std::byte> tail(records.begin(), records.end());
    append_to(tail, footer);
    file_.append(tail);
    file_.sync();
    unfinished_.is_kept = true;
}

}  // namespace lamina::store
