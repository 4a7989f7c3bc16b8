#include "store/start_bundle.h"

#include "store/chunker.h"
#include "store/error.h"
#include "store/text_line.h"

#include <zstd.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <new>
#include <string_view>
#include <unordered_set>
#include <utility>

// Frames begin small, so that what is wanted at once need not wait for much else, and become larger, for those compress
// better.
namespace lamina::store {

namespace {

constexpr const char* kFile = "start bundle";
constexpr std::string_view kMagic = "lamina start bundle 1";
constexpr std::string_view kFrame = "frame ";
constexpr std::uint64_t kFirstFrameBytes = 128 << 10;
constexpr int kLevel = 15;

[[noreturn]] void fail(const std::string& why) {
    throw Error(Errc::malformed, "start bundle: " + why);
}

std::uint64_t number_of(std::string_view text, std::uint64_t most) {
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size() || number == 0 || number > most) {
        fail("an impossible size");
    }
    return number;
}

StartBundle::Chunk chunk_of(std::string_view line) {
    const auto space = line.find(' ');
    if (space == std::string_view::npos) fail("a chunk without a size");
    return {.id = {Digest::parse(line.substr(0, space))},
            .size_bytes = number_of(line.substr(space + 1), kMaxChunkBytes)};
}

class FrameWriter {
public:
    explicit FrameWriter(ByteSink& out) : out_(out), compressor_(ZSTD_createCCtx(), ZSTD_freeCCtx) {
        if (!compressor_) throw std::bad_alloc();
    }
    /// False, and nothing is written: the frame would have more than `limit_bytes`.
    bool write(std::span<const std::byte> raw, std::uint64_t limit_bytes, StartBundle::Frame& frame) {
        packed_.resize(ZSTD_compressBound(raw.size()));
        const std::size_t size =
            ZSTD_compressCCtx(compressor_.get(), packed_.data(), packed_.size(), raw.data(), raw.size(), kLevel);
        if (ZSTD_isError(size)) throw Error(Errc::internal, std::string("zstd: ") + ZSTD_getErrorName(size));
        if (size > limit_bytes) return false;
        frame.blob_bytes = size;
        const auto packed = std::span(packed_).first(size);
        hasher_.update(packed);
        out_.write(packed);
        return true;
    }
    BlobDigest digest() { return {hasher_.finish()}; }

private:
    ByteSink& out_;
    const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> compressor_;
    std::vector<std::byte> packed_;
    Hasher hasher_;
};

}  // namespace

std::string StartBundle::write() const {
    std::string text = std::string(kMagic) + "\n";
    for (const Frame& frame : frames) {
        text += std::string(kFrame) + std::to_string(frame.blob_bytes) + "\n";
        for (const Chunk& chunk : frame.chunks)
            text += chunk.id.digest.text() + " " + std::to_string(chunk.size_bytes) + "\n";
    }
    return text;
}

StartBundle StartBundle::parse(std::span<const std::byte> file) {
    std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
    if (take_line(text, kFile) != kMagic) fail("not one of this version");
    StartBundle bundle;
    std::unordered_set<ChunkId> seen;
    std::uint64_t left_bytes = kMaxBlobBytes;
    std::uint64_t frame_bytes = 0;
    while (!text.empty()) {
        const std::string_view line = take_line(text, kFile);
        if (line.starts_with(kFrame)) {
            if (!bundle.frames.empty() && bundle.frames.back().chunks.empty()) fail("an empty frame");
            bundle.frames.push_back({.blob_bytes = number_of(line.substr(kFrame.size()), left_bytes), .chunks = {}});
            left_bytes -= bundle.frames.back().blob_bytes;
            frame_bytes = 0;
            continue;
        }
        if (bundle.frames.empty()) fail("a chunk of no frame");
        const Chunk chunk = chunk_of(line);
        frame_bytes += chunk.size_bytes;
        if (frame_bytes > kMaxFrameBytes) fail("a frame is too large");
        if (!seen.insert(chunk.id).second) fail("a chunk is there twice");
        if (seen.size() > kMaxChunks) fail("too many chunks");
        bundle.frames.back().chunks.push_back(chunk);
    }
    if (bundle.frames.empty() || bundle.frames.back().chunks.empty()) fail("an empty frame, or none");
    return bundle;
}

std::uint64_t StartBundle::blob_bytes() const {
    std::uint64_t bytes = 0;
    for (const Frame& frame : frames) bytes += frame.blob_bytes;
    return bytes;
}

std::vector<ChunkId> StartBundle::chunks() const {
    std::vector<ChunkId> all;
    for (const Frame& frame : frames) {
        for (const Chunk& chunk : frame.chunks) all.push_back(chunk.id);
    }
    return all;
}

AccessPoints StartBundle::points(const BlobDigest& blob) const {
    AccessPoints points{.blob = blob, .compression = Compression::zstd, .points = {}};
    for (const Frame& frame : frames) {
        points.points.push_back({.tar_offset = points.tar_bytes, .blob_offset = points.blob_bytes, .window = {}});
        points.blob_bytes += frame.blob_bytes;
        for (const Chunk& chunk : frame.chunks) points.tar_bytes += chunk.size_bytes;
    }
    return points;
}

ChunkMap StartBundle::map() const {
    std::vector<ChunkMap::Part> parts;
    std::uint64_t offset = 0;
    for (const Frame& frame : frames) {
        for (const Chunk& chunk : frame.chunks) {
            parts.push_back({chunk.id, offset, chunk.size_bytes});
            offset += chunk.size_bytes;
        }
    }
    return ChunkMap(std::move(parts));
}

WrittenBundle write_start_bundle(ChunkStore& store, const std::vector<ChunkId>& chunks, std::uint64_t limit_bytes,
                                 ByteSink& out) {
    StartBundle bundle;
    FrameWriter writer(out);
    StartBundle::Frame frame;
    std::vector<std::byte> raw;
    std::uint64_t left_bytes = std::min(limit_bytes, StartBundle::kMaxBlobBytes);
    std::uint64_t frame_bytes = kFirstFrameBytes;
    bool has_room = true;
    const auto end_frame = [&] {
        if (raw.empty()) return;
        has_room = writer.write(raw, left_bytes, frame);
        if (has_room) {
            left_bytes -= frame.blob_bytes;
            bundle.frames.push_back(std::move(frame));
        }
        frame = {};
        raw.clear();
        frame_bytes = std::min(2 * frame_bytes, StartBundle::kMaxFrameBytes);
    };
    std::unordered_set<ChunkId> seen;
    for (const ChunkId& chunk : chunks) {
        const auto place = store.find(chunk);
        if (!place || !seen.insert(chunk).second) continue;
        if (raw.size() + place->size_bytes > frame_bytes) end_frame();
        if (!has_room || seen.size() > StartBundle::kMaxChunks) break;
        const std::size_t at = raw.size();
        raw.resize(at + place->size_bytes);
        store.read(chunk, 0, std::span(raw).subspan(at));
        frame.chunks.push_back({chunk, place->size_bytes});
    }
    if (has_room) end_frame();
    return {.directory = std::move(bundle), .blob = writer.digest()};
}

}  // namespace lamina::store
