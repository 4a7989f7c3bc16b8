#include "store/error.h"
#include "store/pack_reader.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

// A pack's table comes from its footer. Where that is damaged or was never written, the frames tell it themselves: they
// are walked from the front, and behind a damaged one the next is looked for by its magic. A file of an image may
// contain what looks like a frame, so here each chunk must have its digest too. The search is bounded, since a file may
// be made so that many of its bytes look like the start of a frame.

namespace lamina::store {

namespace format = pack_format;

namespace {

/// Bytes that may be read for frames that turn out to be none, per byte of the file.
constexpr std::uint64_t kSearchFactor = 16;

struct PlacedFrame {
    std::uint64_t offset_bytes = 0;
    FrameTable table;
};

/// The first chunk whose bytes do not have its digest.
const Frame::Chunk* bad_chunk_of(const Frame& frame) {
    const auto is_bad = [&](const Frame::Chunk& chunk) {
        return Digest::of({frame.data.get() + chunk.offset_bytes, chunk.size_bytes}) != chunk.id.digest;
    };
    const auto found = std::find_if(frame.chunks.begin(), frame.chunks.end(), is_bad);
    return found == frame.chunks.end() ? nullptr : &*found;
}

/// One pack opened to be looked through.
class PackScan {
public:
    PackScan(const std::string& packs_folder, std::uint32_t number)
        : number_(number),
          path_(pack_path(packs_folder, number)),
          fd_(open_read(path_)),
          size_bytes_(file_size(path_)) {}

    void check_header() const {
        std::vector<std::byte> bytes(sizeof(format::PackHeader));
        if (size_bytes_ < bytes.size()) throw Error(Errc::corrupt, "too short for a pack");
        read_exact(fd_.get(), 0, bytes, path_);
        const auto header = format::load<format::PackHeader>(bytes, 0);
        if (header.magic != format::kPackMagic || header.checksum != format::header_checksum(header)) {
            throw Error(Errc::corrupt, "bad header");
        }
        if (header.version != format::kVersion && header.version != format::kLevelVersion)
            throw Error(Errc::corrupt, "unknown version");
        if (header.pack_number != number_) throw Error(Errc::corrupt, "the header names another pack");
    }

    /// Throws corrupt.
    std::vector<PlacedFrame> from_footer() const {
        if (size_bytes_ < sizeof(format::PackHeader) + sizeof(format::PackTrailer)) {
            throw Error(Errc::corrupt, "too short for a pack");
        }
        std::vector<std::byte> tail(sizeof(format::PackTrailer));
        read_exact(fd_.get(), size_bytes_ - tail.size(), tail, path_);
        const std::uint64_t footer_offset = parse_trailer(tail, size_bytes_);
        tail.resize(static_cast<std::size_t>(size_bytes_ - footer_offset));
        read_exact(fd_.get(), footer_offset, tail, path_);
        std::vector<PlacedFrame> frames;
        std::uint64_t offset = sizeof(format::PackHeader);
        for (FrameTable& table : parse_footer(tail, size_bytes_)) {
            const std::uint32_t size = table.frame_size_bytes;
            frames.push_back({offset, std::move(table)});
            offset += size;
        }
        return frames;
    }

    std::vector<PlacedFrame> from_frames() const {
        std::vector<PlacedFrame> frames;
        std::uint64_t budget_bytes = size_bytes_ * kSearchFactor + format::kMaxFrameBytes;
        std::uint64_t at = sizeof(format::PackHeader);
        while (at + sizeof(format::FrameHeader) <= size_bytes_) {
            if (auto table = whole_frame(at, budget_bytes)) {
                const std::uint64_t next = at + table->frame_size_bytes;
                frames.push_back({at, std::move(*table)});
                at = next;
            } else {
                if (budget_bytes == 0) break;
                at = next_magic(at + 1);
            }
        }
        return frames;
    }

    std::vector<std::byte> read(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
        std::vector<std::byte> bytes(static_cast<std::size_t>(size_bytes));
        read_exact(fd_.get(), offset_bytes, bytes, path_);
        return bytes;
    }

private:
    /// The table of the frame at `at` if all of it is sound; takes what was read in vain from `budget_bytes`.
    std::optional<FrameTable> whole_frame(std::uint64_t at, std::uint64_t& budget_bytes) const {
        const auto header = format::load<format::FrameHeader>(read(at, sizeof(format::FrameHeader)), 0);
        if (header.magic != format::kFrameMagic || header.frame_size_bytes > format::kMaxFrameBytes ||
            header.frame_size_bytes < sizeof header || header.frame_size_bytes > size_bytes_ - at) {
            return std::nullopt;
        }
        const std::vector<std::byte> bytes = read(at, header.frame_size_bytes);
        try {
            const auto frame = parse_frame(bytes);
            if (!bad_chunk_of(*frame)) return parse_frame_table(bytes);
        } catch (const Error&) {
            // Not one of our frames, or not whole.
        }
        budget_bytes -= std::min<std::uint64_t>(budget_bytes, bytes.size());
        return std::nullopt;
    }

    /// Offset of the next frame magic from `at` on, or the file's size.
    std::uint64_t next_magic(std::uint64_t at) const {
        std::vector<std::byte> window(64 * 1024);
        const auto magic = format::bytes_of(format::kFrameMagic);
        while (at < size_bytes_) {
            const std::size_t got = read_some(fd_.get(), at, window, path_);
            const auto end = window.begin() + static_cast<std::ptrdiff_t>(got);
            const auto found = std::search(window.begin(), end, magic.begin(), magic.end());
            if (found != end) return at + static_cast<std::uint64_t>(found - window.begin());
            if (got < window.size()) break;
            at += got - (magic.size() - 1);
        }
        return size_bytes_;
    }

    const std::uint32_t number_;
    const std::string path_;
    const UniqueFd fd_;
    const std::uint64_t size_bytes_;
};

class PackCheck {
public:
    PackCheck(const std::string& packs_folder, std::uint32_t number, std::function<void(const ChunkId&)> on_bad_chunk)
        : number_(number), scan_(packs_folder, number), on_bad_chunk_(std::move(on_bad_chunk)) {}

    std::vector<std::string> run(bool check_data) {
        attempt([&] { scan_.check_header(); });
        std::vector<PlacedFrame> frames;
        attempt([&] { frames = scan_.from_footer(); });
        if (!problems_.empty() && frames.empty()) frames = scan_.from_frames();
        for (const PlacedFrame& frame : frames) check_frame(frame, check_data);
        return std::move(problems_);
    }

private:
    template <class Step>
    void attempt(Step&& step) {
        try {
            step();
        } catch (const Error& error) {
            if (error.code() != Errc::corrupt) throw;
            problems_.push_back("pack " + std::to_string(number_) + ": " + error.what());
        }
    }

    void check_frame(const PlacedFrame& frame, bool check_data) {
        try {
            if (check_data) {
                check_chunks(frame);
            } else {
                const std::uint64_t size =
                    sizeof(format::FrameHeader) + frame.table.chunks.size() * sizeof(format::ChunkRow);
                compare(frame, parse_frame_table(scan_.read(frame.offset_bytes, size)).chunks);
            }
        } catch (const Error& error) {  // A frame that is bad is what is looked for here.
            if (error.code() != Errc::corrupt) throw;
            problems_.push_back(frame_name(number_, frame.offset_bytes) + ": " + error.what());
            for (const Frame::Chunk& chunk : frame.table.chunks) report(chunk.id);
        }
    }

    void check_chunks(const PlacedFrame& placed) {
        const auto frame = parse_frame(scan_.read(placed.offset_bytes, placed.table.frame_size_bytes));
        compare(placed, frame->chunks);
        for (const Frame::Chunk& chunk : frame->chunks) {
            if (Digest::of({frame->data.get() + chunk.offset_bytes, chunk.size_bytes}) == chunk.id.digest) continue;
            problems_.push_back(frame_name(number_, placed.offset_bytes) + ": chunk " + chunk.id.digest.hex() +
                                " has other bytes than its digest names");
            report(chunk.id);
        }
    }

    static void compare(const PlacedFrame& frame, const std::vector<Frame::Chunk>& chunks) {
        const auto is_same = [](const Frame::Chunk& a, const Frame::Chunk& b) {
            return a.id == b.id && a.size_bytes == b.size_bytes;
        };
        if (!std::equal(chunks.begin(), chunks.end(), frame.table.chunks.begin(), frame.table.chunks.end(), is_same)) {
            throw Error(Errc::corrupt, "its table is not the footer's");
        }
    }

    void report(const ChunkId& chunk) const {
        if (on_bad_chunk_) on_bad_chunk_(chunk);
    }

    const std::uint32_t number_;
    const PackScan scan_;
    const std::function<void(const ChunkId&)> on_bad_chunk_;
    std::vector<std::string> problems_;
};

}  // namespace

std::string pack_path(const std::string& packs_folder, std::uint32_t number) {
    char name[32];
    std::snprintf(name, sizeof name, "/pack-%010u.lpk", number);
    return packs_folder + name;
}

std::vector<NewChunk> read_pack_table(const std::string& packs_folder, std::uint32_t number) {
    const PackScan scan(packs_folder, number);
    std::vector<PlacedFrame> frames;
    try {
        frames = scan.from_footer();
    } catch (const Error& error) {  // A damaged footer: the frames say the same.
        if (error.code() != Errc::corrupt) throw;
        frames = scan.from_frames();
        if (frames.empty()) throw with_context(error, "pack " + std::to_string(number));
    }
    std::vector<NewChunk> chunks;
    for (const PlacedFrame& frame : frames) append_chunks(frame.table, number, frame.offset_bytes, chunks);
    return chunks;
}

std::vector<std::string> check_pack(const std::string& packs_folder, std::uint32_t number, bool check_data,
                                    const std::function<void(const ChunkId&)>& on_bad_chunk) {
    try {
        return PackCheck(packs_folder, number, on_bad_chunk).run(check_data);
    } catch (const Error& error) {  // No file, or an unreadable one, is a finding like others.
        return {"pack " + std::to_string(number) + ": " + error.what()};
    }
}

}  // namespace lamina::store
