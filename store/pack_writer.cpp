#include "store/pack_writer.h"

#include "store/checksum.h"
#include "store/compression_pool.h"
#include "store/error.h"
#include "store/file.h"
#include "store/pack_format.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

// add() hashes a chunk, asks the pack under construction and then the store whether it is known, and copies new bytes
// into the open frame. A full frame goes to the compression pool; the frames in flight stand in a queue in pack order,
// and whoever calls add() appends those at its front that are ready, waiting for the first when too many are in flight.
// So only one thread touches the file, errors are thrown where the caller sees them, and memory is some frames and 72
// bytes a chunk. Until a frame is appended its chunks have no place; finish() hands them out when all have one.

namespace lamina::store {

namespace format = pack_format;

namespace {

/// Chunk IDs of this pack: an open-addressed table of positions in the list of chunks, at most half full.
class ChunkPositions {
public:
    explicit ChunkPositions(const std::vector<NewChunk>& chunks) : chunks_(chunks), slots_(kFirstSlots, kEmpty) {}

    bool contains(const ChunkId& id) const { return slots_[slot_of(id)] != kEmpty; }

    /// `position`: of a chunk that has just been put into the list.
    void insert(std::uint32_t position) {
        if ((std::uint64_t{position} + 1) * 2 > slots_.size()) {
            slots_.assign(slots_.size() * 2, kEmpty);
            for (std::uint32_t i = 0; i < position; ++i) slots_[slot_of(chunks_[i].id)] = i;
        }
        slots_[slot_of(chunks_[position].id)] = position;
    }

private:
    static constexpr std::uint32_t kEmpty = 0xFFFFFFFF;
    static constexpr std::size_t kFirstSlots = 1024;

    std::size_t slot_of(const ChunkId& id) const {
        std::size_t slot = std::hash<ChunkId>{}(id) & (slots_.size() - 1);
        while (slots_[slot] != kEmpty && chunks_[slots_[slot]].id != id) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }

    const std::vector<NewChunk>& chunks_;
    std::vector<std::uint32_t> slots_;
};

}  // namespace

class PackWriter::Impl {
public:
    Impl(const Options& options, ChunkStore& known)
        : options_(options),
          known_(known),
          staging_path_(options.staging_folder + "/pack-" + std::to_string(options.pack_number) + ".tmp"),
          final_path_(pack_path(options.packs_folder, options.pack_number)),
          positions_(chunks_),
          pool_(std::max(1U, options.thread_count), options.compression_level) {}

    ~Impl() {
        pool_.stop();
        if (!is_created_ || is_finished_) return;
        remove_quietly(staging_path_);
        if (is_publishing_) remove_quietly(final_path_);
    }

    ChunkId add(std::span<const std::byte> data) {
        if (data.empty() || data.size() > kMaxChunkBytes) throw Error(Errc::internal, "chunk of an impossible size");
        if (is_broken_ || is_finished_) throw Error(Errc::internal, "this pack takes no more chunks");
        const ChunkId id{Digest::of(data)};
        if (positions_.contains(id) || known_.find(id)) return id;
        guarded([&] { add_new(id, data); });
        return id;
    }

    std::optional<FinishedPack> finish() {
        if (is_broken_ || is_finished_) throw Error(Errc::internal, "this pack is finished");
        if (chunks_.empty()) {
            is_finished_ = true;
            return std::nullopt;
        }
        guarded([&] {
            send_frame();
            append_ready(0);
            write_footer();
            publish();
        });
        is_finished_ = true;
        return FinishedPack{options_.pack_number, file_.size_bytes(), raw_bytes_, std::move(chunks_)};
    }

private:
    struct InFlight {
        std::unique_ptr<FrameJob> job;
        std::size_t first_chunk;
    };

    template <class Step>
    void guarded(Step&& step) {
        is_broken_ = true;  // Stays so when the step throws: a pack with a gap must not go on.
        step();
        is_broken_ = false;
    }

    void add_new(const ChunkId& id, std::span<const std::byte> data) {
        if (open_ && (open_->raw.size() + data.size() > format::kMaxFrameRawBytes ||
                      open_->rows.size() == format::kMaxFrameChunks)) {
            send_frame();
        }
        if (!open_) open_ = spare_job();
        const auto size_bytes = static_cast<std::uint32_t>(data.size());
        if (chunks_.size() == 0xFFFFFFFF) throw Error(Errc::unsupported, "more than 4294967295 chunks in one pack");
        chunks_.push_back({id,
                           {.pack = options_.pack_number,
                            .offset_in_frame_bytes = static_cast<std::uint32_t>(open_->raw.size()),
                            .size_bytes = size_bytes}});
        positions_.insert(static_cast<std::uint32_t>(chunks_.size() - 1));
        auto& row = open_->rows.emplace_back();
        std::copy(id.digest.bytes().begin(), id.digest.bytes().end(), row.digest.begin());
        row.size_bytes = size_bytes;
        open_->raw.insert(open_->raw.end(), data.begin(), data.end());
        raw_bytes_ += size_bytes;
    }

    std::unique_ptr<FrameJob> spare_job() {
        if (spare_.empty()) return std::make_unique<FrameJob>();
        auto job = std::move(spare_.back());
        spare_.pop_back();
        return job;
    }

    void send_frame() {
        if (!open_) return;
        const std::size_t first_chunk = chunks_.size() - open_->rows.size();
        in_flight_.push_back({std::move(open_), first_chunk});
        ++frame_count_;
        pool_.submit(*in_flight_.back().job);
        append_ready(2 * std::size_t{std::max(1U, options_.thread_count)});
    }

    /// Appends what is ready at the front, and waits while more than `allowed` frames are in flight.
    void append_ready(std::size_t allowed) {
        while (!in_flight_.empty() && (in_flight_.size() > allowed || pool_.is_done(*in_flight_.front().job))) {
            pool_.wait(*in_flight_.front().job);
            append_frame(in_flight_.front());
            spare_.push_back(std::move(in_flight_.front().job));
            in_flight_.pop_front();
        }
    }

    void append_frame(InFlight& frame) {
        if (!is_created_) create_file();
        const std::uint64_t offset_bytes = file_.size_bytes();
        const std::vector<std::byte>& packed = frame.job->packed;
        if (offset_bytes + packed.size() > format::kMaxPackBytes) throw Error(Errc::unsupported, "pack beyond 1 TiB");
        file_.append(packed);
        for (std::size_t i = 0; i < frame.job->rows.size(); ++i) {
            ChunkPlace& place = chunks_[frame.first_chunk + i].place;
            place.frame_offset_bytes = offset_bytes;
            place.frame_size_bytes = static_cast<std::uint32_t>(packed.size());
        }
        frame.job->clear();
    }

    void create_file() {
        file_ = File::create(staging_path_);
        is_created_ = true;
        format::PackHeader header{format::kPackMagic, format::kVersion, options_.pack_number, 0};
        header.checksum = format::header_checksum(header);
        file_.append(format::bytes_of(header));
    }

    void write_footer() {
        constexpr std::size_t kPieceBytes = 1024 * 1024;
        Checksum checksum;
        std::vector<std::byte> piece;
        const auto put = [&](std::span<const std::byte> bytes) {
            piece.insert(piece.end(), bytes.begin(), bytes.end());
        };
        const auto flush = [&] {
            checksum.update(piece);
            file_.append(piece);
            piece.clear();
        };
        format::PackTrailer trailer{.footer_offset_bytes = file_.size_bytes(),
                                    .frame_count = frame_count_,
                                    .chunk_count = static_cast<std::uint32_t>(chunks_.size()),
                                    .raw_bytes = raw_bytes_,
                                    .checksum = 0,
                                    .magic = format::kTrailerMagic};
        for (std::size_t from = 0; from < chunks_.size();) {
            const ChunkPlace& first = chunks_[from].place;
            std::size_t to = from;
            while (to < chunks_.size() && chunks_[to].place.frame_offset_bytes == first.frame_offset_bytes) ++to;
            put(format::bytes_of(format::FooterFrame{first.frame_size_bytes, static_cast<std::uint32_t>(to - from)}));
            for (; from < to; ++from) {
                put(chunks_[from].id.digest.bytes());
                put(format::bytes_of(chunks_[from].place.size_bytes));
            }
            if (piece.size() >= kPieceBytes) flush();
        }
        put(format::bytes_of(trailer).first(format::kTrailerCheckedBytes));
        checksum.update(piece);
        trailer.checksum = checksum.value();
        put(format::bytes_of(trailer).subspan(format::kTrailerCheckedBytes));
        file_.append(piece);
    }

    void publish() {
        // A number that was used before would replace a pack that others rely on.
        if (exists(final_path_)) throw Error(Errc::already_exists, final_path_ + ": already exists");
        is_publishing_ = true;
        file_.publish(final_path_);
    }

    static void remove_quietly(const std::string& path) {
        try {
            remove_file(path);
        } catch (const Error&) {
            // A destructor cannot report it; what stays in staging goes when the store is opened next.
        }
    }

    const Options options_;
    ChunkStore& known_;
    const std::string staging_path_;
    const std::string final_path_;
    File file_;
    bool is_created_ = false;
    bool is_publishing_ = false;
    bool is_finished_ = false;
    bool is_broken_ = false;
    std::vector<NewChunk> chunks_;
    ChunkPositions positions_;
    std::uint64_t raw_bytes_ = 0;
    std::uint32_t frame_count_ = 0;
    std::unique_ptr<FrameJob> open_;
    std::deque<InFlight> in_flight_;
    std::vector<std::unique_ptr<FrameJob>> spare_;
    CompressionPool pool_;  // Last: its threads work on the jobs above and end first.
};

PackWriter::PackWriter(const Options& options, ChunkStore& known) : impl_(std::make_unique<Impl>(options, known)) {}
PackWriter::~PackWriter() = default;

ChunkId PackWriter::add(std::span<const std::byte> data) {
    return impl_->add(data);
}

std::optional<FinishedPack> PackWriter::finish() {
    return impl_->finish();
}

}  // namespace lamina::store
