#include "store/pack_builder.h"

#include "store/checksum.h"
#include "store/error.h"
#include "store/file.h"
#include "store/pack_format.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <utility>
#include <vector>

// A chunk is put into the set of known ones and then copied into its lane's open frame, under the lane's lock; a full
// frame goes to the compression pool and into a queue in pack order. The thread of the pool that finishes the frame at
// the front appends it, and all behind it that are ready; so the file has one writer at a time and no thread of its
// own. An error is kept and thrown by whoever comes next. A chunk has no place until its frame is appended.
//
// finish() first refuses further chunks, then takes each lane's lock to send what lies in its frame: a chunk that was
// known by then is in a frame by then.

namespace lamina::store {

namespace format = pack_format;

namespace {

constexpr std::size_t kMaxFramesInFlight = 96;

/// Chunk IDs of one pack: an open-addressed table of positions in a list, at most half full.
class ChunkSet {
public:
    bool contains(const ChunkId& id) const { return slots_[slot_of(id)] != kEmpty; }
    std::size_t size() const noexcept { return ids_.size(); }

    bool insert(const ChunkId& id) {
        if ((ids_.size() + 1) * 2 > slots_.size()) grow();
        std::uint32_t& slot = slots_[slot_of(id)];
        if (slot != kEmpty) return false;
        slot = static_cast<std::uint32_t>(ids_.size());
        ids_.push_back(id);
        return true;
    }

private:
    static constexpr std::uint32_t kEmpty = 0xFFFFFFFF;
    static constexpr std::size_t kFirstSlots = 1024;

    void grow() {
        slots_.assign(slots_.size() * 2, kEmpty);
        for (std::uint32_t i = 0; i < ids_.size(); ++i) slots_[slot_of(ids_[i])] = i;
    }
    std::size_t slot_of(const ChunkId& id) const {
        std::size_t slot = std::hash<ChunkId>{}(id) & (slots_.size() - 1);
        while (slots_[slot] != kEmpty && ids_[slots_[slot]] != id) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }

    std::vector<ChunkId> ids_;
    std::vector<std::uint32_t> slots_ = std::vector<std::uint32_t>(kFirstSlots, kEmpty);
};

}  // namespace

class PackBuilder::Lane {
public:
    std::mutex mutex;  // Guards open. Taken before the builder's.
    std::unique_ptr<FrameJob> open;
};

class PackBuilder::Impl : public FrameOwner {
public:
    Impl(const Options& options, CompressionPool& pool)
        : options_(options),
          staging_path_(options.staging_folder + "/pack-" + std::to_string(options.pack_number) + ".tmp"),
          final_path_(pack_path(options.packs_folder, options.pack_number)),
          pool_(pool),
          most_in_flight_(std::min<std::size_t>(2 * pool.thread_count() + 2, kMaxFramesInFlight)) {}

    ~Impl() override {
        pool_.forget(*this);
        if (!is_created_ || is_finished_) return;
        remove_quietly(staging_path_);
        if (is_publishing_) remove_quietly(final_path_);
    }

    Lane& add_lane() {
        const std::lock_guard lock(mutex_);
        return lanes_.emplace_back();
    }

    bool add(Lane& lane, const ChunkId& id, std::span<const std::byte> data) {
        if (data.empty() || data.size() > kMaxChunkBytes) throw Error(Errc::internal, "chunk of an impossible size");
        const std::lock_guard adding(lane.mutex);
        const auto size_bytes = static_cast<std::uint32_t>(data.size());
        {
            const std::lock_guard lock(mutex_);
            if (failure_) std::rethrow_exception(failure_);
            if (is_closed_) return false;
            if (known_.size() == 0xFFFFFFFF) throw Error(Errc::unsupported, "more than 4294967295 chunks in one pack");
            if (!known_.insert(id)) return true;
            raw_bytes_ += size_bytes;
        }
        try {
            append_chunk(lane, id, data);
        } catch (...) {  // It counts as known and is in no frame: others must not rely on this pack.
            const std::lock_guard lock(mutex_);
            fail(std::current_exception());
            throw;
        }
        return true;
    }

    bool contains(const ChunkId& id) const {
        const std::lock_guard lock(mutex_);
        return known_.contains(id);
    }
    std::uint64_t raw_bytes() const {
        const std::lock_guard lock(mutex_);
        return raw_bytes_;
    }
    std::uint64_t chunk_count() const {
        const std::lock_guard lock(mutex_);
        return known_.size();
    }
    std::uint32_t number() const noexcept { return options_.pack_number; }

    std::optional<FinishedPack> finish() {
        close();
        {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [&] { return failure_ || (in_flight_.empty() && !is_appending_); });
            if (failure_) std::rethrow_exception(failure_);
        }
        if (!chunks_.empty()) {  // All frames are appended: the file is this thread's.
            write_footer();
            publish();
        }
        is_finished_ = true;
        if (chunks_.empty()) return std::nullopt;
        return FinishedPack{options_.pack_number, file_.size_bytes(), raw_bytes_, std::move(chunks_)};
    }

    void frame_done(FrameJob& job, std::exception_ptr failure) noexcept override;

private:
    struct InFlight {
        std::unique_ptr<FrameJob> job;
        bool is_packed = false;
    };

    void append_chunk(Lane& lane, const ChunkId& id, std::span<const std::byte> data);
    void send_frame(Lane& lane);
    void close();
    void fail(std::exception_ptr failure) {
        if (!failure_) failure_ = std::move(failure);
        changed_.notify_all();
    }
    void append_frame(FrameJob& job);
    void create_file();
    void write_footer();
    void publish();

    static void remove_quietly(const std::string& path) {
        try {
            remove_file(path);
        } catch (const Error&) {
            // A destructor cannot report it; what stays in staging goes when the store is opened next.
        }
    }

    const Options options_;
    const std::string staging_path_;
    const std::string final_path_;
    CompressionPool& pool_;
    const std::size_t most_in_flight_;

    mutable std::mutex mutex_;  // Guards all up to the empty line; never held while packing or writing.
    std::condition_variable changed_;
    std::deque<Lane> lanes_;
    ChunkSet known_;
    std::uint64_t raw_bytes_ = 0;
    std::deque<InFlight> in_flight_;  ///< In pack order.
    std::vector<std::unique_ptr<FrameJob>> spare_;
    std::exception_ptr failure_;
    bool is_closed_ = false;
    bool is_appending_ = false;  ///< A thread has what follows to itself; in the end finish() has.

    File file_;
    bool is_created_ = false;
    bool is_publishing_ = false;
    bool is_finished_ = false;
    std::vector<NewChunk> chunks_;  ///< Of the appended frames.
    std::uint32_t frame_count_ = 0;
};

void PackBuilder::Impl::append_chunk(Lane& lane, const ChunkId& id, std::span<const std::byte> data) {
    if (lane.open && (lane.open->raw.size() + data.size() > format::kMaxFrameRawBytes ||
                      lane.open->rows.size() == format::kMaxFrameChunks)) {
        send_frame(lane);
    }
    if (!lane.open) {
        const std::lock_guard lock(mutex_);
        if (spare_.empty()) {
            lane.open = std::make_unique<FrameJob>();
        } else {
            lane.open = std::move(spare_.back());
            spare_.pop_back();
        }
    }
    format::ChunkRow& row = lane.open->rows.emplace_back();
    std::ranges::copy(id.digest.bytes(), row.digest.begin());
    row.size_bytes = static_cast<std::uint32_t>(data.size());
    lane.open->raw.insert(lane.open->raw.end(), data.begin(), data.end());
}

/// Hands the lane's frame to the pool, and waits while too many are on their way.
void PackBuilder::Impl::send_frame(Lane& lane) {
    if (!lane.open) return;
    FrameJob& job = *lane.open;
    {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return failure_ || in_flight_.size() < most_in_flight_; });
        if (failure_) std::rethrow_exception(failure_);
        in_flight_.push_back({std::move(lane.open)});
    }
    pool_.submit(job, *this);
}

void PackBuilder::Impl::close() {
    std::vector<Lane*> lanes;
    {
        const std::lock_guard lock(mutex_);
        if (is_closed_) throw Error(Errc::internal, "this pack is finished");
        is_closed_ = true;
        for (Lane& lane : lanes_) lanes.push_back(&lane);  // One that comes later takes nothing.
    }
    for (Lane* const lane : lanes) {
        const std::lock_guard adding(lane->mutex);
        send_frame(*lane);
    }
}

void PackBuilder::Impl::frame_done(FrameJob& job, std::exception_ptr failure) noexcept {
    std::unique_lock lock(mutex_);
    if (failure) return fail(std::move(failure));
    std::ranges::find_if(in_flight_, [&](const InFlight& frame) { return frame.job.get() == &job; })->is_packed = true;
    if (is_appending_) return;  // Who appends comes to this one, too.
    is_appending_ = true;
    while (!failure_ && !in_flight_.empty() && in_flight_.front().is_packed) {
        FrameJob& front = *in_flight_.front().job;
        lock.unlock();
        try {
            append_frame(front);
        } catch (...) {  // A worker's entry: add() and finish() throw it.
            failure = std::current_exception();
        }
        lock.lock();
        if (failure) {
            fail(std::move(failure));
        } else {
            spare_.push_back(std::move(in_flight_.front().job));
            in_flight_.pop_front();
        }
        changed_.notify_all();
    }
    is_appending_ = false;
    changed_.notify_all();
}

void PackBuilder::Impl::append_frame(FrameJob& job) {
    if (!is_created_) create_file();
    ChunkPlace place{.pack = options_.pack_number,
                     .frame_offset_bytes = file_.size_bytes(),
                     .frame_size_bytes = static_cast<std::uint32_t>(job.packed.size())};
    if (place.frame_offset_bytes + job.packed.size() > format::kMaxPackBytes) {
        throw Error(Errc::unsupported, "pack beyond 1 TiB");
    }
    file_.append(job.packed);
    for (const format::ChunkRow& row : job.rows) {
        place.size_bytes = row.size_bytes;
        chunks_.push_back({ChunkId{Digest::from_bytes(row.digest)}, place});
        place.offset_in_frame_bytes += row.size_bytes;
    }
    ++frame_count_;
    job.clear();
}

void PackBuilder::Impl::create_file() {
    file_ = File::create(staging_path_);
    is_created_ = true;
    format::PackHeader header{format::kPackMagic, format::kVersion, options_.pack_number, 0};
    header.checksum = format::header_checksum(header);
    file_.append(format::bytes_of(header));
}

void PackBuilder::Impl::write_footer() {
    constexpr std::size_t kPieceBytes = 1024 * 1024;
    Checksum checksum;
    std::vector<std::byte> piece;
    const auto put = [&](std::span<const std::byte> bytes) { piece.insert(piece.end(), bytes.begin(), bytes.end()); };
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

void PackBuilder::Impl::publish() {
    // A number that was used before would replace a pack that others rely on.
    if (exists(final_path_)) throw Error(Errc::already_exists, final_path_ + ": already exists");
    is_publishing_ = true;
    file_.publish(final_path_);
}

PackBuilder::PackBuilder(const Options& options, CompressionPool& pool)
    : impl_(std::make_unique<Impl>(options, pool)) {}
PackBuilder::~PackBuilder() = default;

PackBuilder::Lane& PackBuilder::add_lane() {
    return impl_->add_lane();
}

bool PackBuilder::add(Lane& lane, const ChunkId& id, std::span<const std::byte> data) {
    return impl_->add(lane, id, data);
}

bool PackBuilder::contains(const ChunkId& id) const {
    return impl_->contains(id);
}

std::uint32_t PackBuilder::number() const noexcept {
    return impl_->number();
}

std::uint64_t PackBuilder::raw_bytes() const {
    return impl_->raw_bytes();
}

std::uint64_t PackBuilder::chunk_count() const {
    return impl_->chunk_count();
}

std::optional<FinishedPack> PackBuilder::finish() {
    return impl_->finish();
}

}  // namespace lamina::store
