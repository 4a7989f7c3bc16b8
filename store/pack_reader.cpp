#include "store/pack_reader.h"

#include "store/error.h"

#include <zstd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <string>

// A frame is read with one pread: the index knows its size. Whatever its bytes say is first bounded by what was read
// and by the limits of pack_format.h, then the checksum is compared, then it is unpacked into a buffer of exactly the
// size that the chunk table adds up to. A footer is the same tables once more, without payloads.

namespace lamina::store {

namespace format = pack_format;

namespace {

[[noreturn]] void corrupt(const std::string& why) {
    throw Error(Errc::corrupt, why);
}

struct FreeContext {
    void operator()(ZSTD_DCtx* context) const noexcept { ZSTD_freeDCtx(context); }
};

ZSTD_DCtx* decompressor() {
    thread_local const std::unique_ptr<ZSTD_DCtx, FreeContext> context(ZSTD_createDCtx());
    if (!context) throw std::bad_alloc();
    ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, format::kWindowLog);
    return context.get();
}

/// Reads `count` rows and returns the sum of their sizes.
std::uint32_t parse_rows(std::span<const std::byte> rows, std::uint32_t count, std::vector<Frame::Chunk>& chunks) {
    if (count == 0 || count > format::kMaxFrameChunks) corrupt("bad chunk count");
    if (rows.size() < count * sizeof(format::ChunkRow)) corrupt("chunk table ends early");
    chunks.reserve(count);
    std::uint32_t total_bytes = 0;
    for (std::uint32_t i = 0; i < count; ++i) {
        const auto row = format::load<format::ChunkRow>(rows, i * sizeof(format::ChunkRow));
        if (row.size_bytes == 0 || row.size_bytes > format::kMaxFrameRawBytes - total_bytes) corrupt("bad chunk size");
        chunks.push_back({ChunkId{Digest::from_bytes(row.digest)}, total_bytes, row.size_bytes});
        total_bytes += row.size_bytes;
    }
    return total_bytes;
}

void unpack(std::span<const std::byte> payload, format::Codec codec, std::span<std::byte> out) {
    if (codec == format::Codec::stored) {
        if (payload.size() != out.size()) corrupt("bad payload size");
        std::copy(payload.begin(), payload.end(), out.begin());
        return;
    }
    const std::size_t size =
        ZSTD_decompressDCtx(decompressor(), out.data(), out.size(), payload.data(), payload.size());
    if (ZSTD_isError(size)) corrupt(std::string("zstd: ") + ZSTD_getErrorName(size));
    if (size != out.size()) corrupt("bad unpacked size");
}

}  // namespace

FrameTable parse_frame_table(std::span<const std::byte> frame) {
    if (frame.size() < sizeof(format::FrameHeader)) corrupt("frame ends early");
    const auto header = format::load<format::FrameHeader>(frame, 0);
    if (header.magic != format::kFrameMagic) corrupt("no frame here");
    if (header.level > format::kMaxLevel || header.codec > format::Codec::zstd) corrupt("unknown kind of frame");
    const std::uint64_t least = sizeof(format::FrameHeader) + header.chunk_count * sizeof(format::ChunkRow) + 1;
    if (header.frame_size_bytes < least || header.frame_size_bytes > format::kMaxFrameBytes) corrupt("bad frame size");
    FrameTable table;
    table.frame_size_bytes = header.frame_size_bytes;
    table.level = header.level;
    table.raw_size_bytes = parse_rows(frame.subspan(sizeof header), header.chunk_count, table.chunks);
    if (table.raw_size_bytes != header.raw_size_bytes) corrupt("chunk sizes do not add up");
    return table;
}

std::shared_ptr<const Frame> parse_frame(std::span<const std::byte> frame) {
    FrameTable table = parse_frame_table(frame);
    if (table.frame_size_bytes != frame.size()) corrupt("bad frame size");
    const auto header = format::load<format::FrameHeader>(frame, 0);
    if (header.checksum != format::frame_checksum(frame)) corrupt("bad checksum");
    const auto out = std::make_shared<Frame>();
    out->data = std::make_unique_for_overwrite<std::byte[]>(table.raw_size_bytes);
    out->size_bytes = table.raw_size_bytes;
    out->chunks = std::move(table.chunks);
    const std::size_t payload_from = sizeof header + out->chunks.size() * sizeof(format::ChunkRow);
    unpack(frame.subspan(payload_from), header.codec, {out->data.get(), out->size_bytes});
    return out;
}

std::uint64_t parse_trailer(std::span<const std::byte> trailer, std::uint64_t file_bytes) {
    if (trailer.size() != sizeof(format::PackTrailer) || file_bytes < sizeof(format::PackHeader) + trailer.size()) {
        corrupt("too short for a pack");
    }
    const auto fields = format::load<format::PackTrailer>(trailer, 0);
    if (fields.magic != format::kTrailerMagic) corrupt("no footer");
    if (fields.footer_offset_bytes < sizeof(format::PackHeader) ||
        fields.footer_offset_bytes > file_bytes - trailer.size()) {
        corrupt("bad footer offset");
    }
    return fields.footer_offset_bytes;
}

std::vector<FrameTable> parse_footer(std::span<const std::byte> tail, std::uint64_t file_bytes) {
    if (tail.size() < sizeof(format::PackTrailer) || tail.size() > file_bytes) corrupt("too short for a pack");
    std::span<const std::byte> footer = tail.first(tail.size() - sizeof(format::PackTrailer));
    const std::uint64_t footer_offset = parse_trailer(tail.subspan(footer.size()), file_bytes);
    if (footer_offset != file_bytes - tail.size()) corrupt("bad footer offset");
    const auto trailer = format::load<format::PackTrailer>(tail, footer.size());
    if (trailer.checksum != XXH3_64bits(tail.data(), footer.size() + format::kTrailerCheckedBytes)) {
        corrupt("bad footer checksum");
    }
    std::vector<FrameTable> frames;
    std::uint64_t offset = sizeof(format::PackHeader);
    std::uint64_t chunk_count = 0;
    std::uint64_t raw_bytes = 0;
    while (!footer.empty()) {
        if (footer.size() < sizeof(format::FooterFrame)) corrupt("footer ends early");
        const auto row = format::load<format::FooterFrame>(footer, 0);
        footer = footer.subspan(sizeof row);
        FrameTable& frame = frames.emplace_back();
        frame.raw_size_bytes = parse_rows(footer, row.chunk_count, frame.chunks);
        footer = footer.subspan(row.chunk_count * sizeof(format::ChunkRow));
        frame.frame_size_bytes = row.frame_size_bytes;
        const std::uint64_t least = sizeof(format::FrameHeader) + row.chunk_count * sizeof(format::ChunkRow) + 1;
        if (row.frame_size_bytes < least || row.frame_size_bytes > format::kMaxFrameBytes) corrupt("bad frame size");
        if (row.frame_size_bytes > footer_offset - offset) corrupt("frames overlap the footer");
        offset += row.frame_size_bytes;
        chunk_count += row.chunk_count;
        raw_bytes += frame.raw_size_bytes;
    }
    if (offset != footer_offset) corrupt("frames do not reach the footer");
    if (frames.size() != trailer.frame_count || chunk_count != trailer.chunk_count || raw_bytes != trailer.raw_bytes) {
        corrupt("footer counts do not add up");
    }
    return frames;
}

std::string frame_name(std::uint32_t pack, std::uint64_t frame_offset_bytes) {
    return "pack " + std::to_string(pack) + ", frame at " + std::to_string(frame_offset_bytes);
}

void append_chunks(const FrameTable& frame, std::uint32_t pack, std::uint64_t frame_offset_bytes,
                   std::vector<NewChunk>& chunks) {
    for (const Frame::Chunk& chunk : frame.chunks) {
        chunks.push_back(
            {chunk.id, {pack, frame_offset_bytes, frame.frame_size_bytes, chunk.offset_bytes, chunk.size_bytes}});
    }
}

PackFiles::PackFiles(std::string packs_folder, std::size_t limit)
    : packs_folder_(std::move(packs_folder)), limit_(std::max<std::size_t>(1, limit)) {}

std::shared_ptr<const UniqueFd> PackFiles::open(std::uint32_t pack) {
    {
        const std::lock_guard lock(mutex_);
        const auto found =
            std::find_if(open_.begin(), open_.end(), [&](const auto& one) { return one.number == pack; });
        if (found != open_.end()) {
            open_.splice(open_.begin(), open_, found);
            return open_.front().fd;
        }
    }
    auto fd = std::make_shared<const UniqueFd>(open_read(pack_path(packs_folder_, pack)));
    const std::lock_guard lock(mutex_);
    open_.push_front({pack, fd});  // Two threads may open the same pack at once: the older one leaves in its turn.
    if (open_.size() > limit_) open_.pop_back();
    return fd;
}

std::size_t PackFiles::open_count() {
    const std::lock_guard lock(mutex_);
    return open_.size();
}

void PackFiles::read_packed(const ChunkPlace& place, std::span<std::byte> out) {
    const std::shared_ptr<const UniqueFd> fd = open(place.pack);
    try {
        read_exact(fd->get(), place.frame_offset_bytes, out, pack_path(packs_folder_, place.pack));
    } catch (const Error& error) {  // Which frame it is is known here only.
        throw with_context(error, frame_name(place.pack, place.frame_offset_bytes));
    }
}

std::uint32_t PackFiles::frame_size_bytes(const FrameKey& frame) {
    std::array<std::byte, sizeof(format::FrameHeader)> bytes;
    const std::shared_ptr<const UniqueFd> fd = open(frame.pack);
    const std::string path = pack_path(packs_folder_, frame.pack);
    if (read_some(fd->get(), frame.offset_bytes, bytes, path) < bytes.size()) return 0;
    const auto header = format::load<format::FrameHeader>(bytes, 0);
    const bool is_one = header.magic == format::kFrameMagic && header.frame_size_bytes <= format::kMaxFrameBytes;
    return is_one ? header.frame_size_bytes : 0;
}

std::shared_ptr<const Frame> PackFiles::read_frame(const ChunkPlace& place) {
    if (place.frame_size_bytes > format::kMaxFrameBytes) {
        corrupt(frame_name(place.pack, place.frame_offset_bytes) + ": bad frame size");
    }
    const auto bytes = std::make_unique_for_overwrite<std::byte[]>(place.frame_size_bytes);
    const std::span<std::byte> frame(bytes.get(), place.frame_size_bytes);
    read_packed(place, frame);
    try {
        return parse_frame(frame);
    } catch (const Error& error) {  // As above.
        throw with_context(error, frame_name(place.pack, place.frame_offset_bytes));
    }
}

}  // namespace lamina::store
