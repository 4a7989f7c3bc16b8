#include "store/pack_builder.h"

#include "store/error.h"
#include "store/pack_file.h"
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
        ids_.push_back(id);
        slot = static_cast<std::uint32_t>(ids_.size() - 1);
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
        : number_(options.pack_number),
          pool_(pool),
          most_in_flight_(std::min<std::size_t>(2 * pool.thread_count() + 2, kMaxFramesInFlight)),
          file_({.packs_folder = options.packs_folder,
                 .staging_folder = options.staging_folder,
                 .pack_number = options.pack_number,
                 .tells_levels = options.tells_levels}) {
        spare_.reserve(most_in_flight_);
    }

    ~Impl() override { pool_.forget(*this); }

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
    std::uint32_t number() const noexcept { return number_; }

    std::optional<FinishedPack> finish() {
        close();
        {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [&] { return failure_ || (in_flight_.empty() && !is_appending_); });
            if (failure_) std::rethrow_exception(failure_);
        }
        return file_.finish();  // All frames are appended: the file is this thread's.
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

    const std::uint32_t number_;
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

    PackFile file_;
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
    try {
        for (Lane* const lane : lanes) {
            const std::lock_guard adding(lane->mutex);
            send_frame(*lane);
        }
    } catch (...) {  // Threads that wait for their turn would wait for ever.
        const std::lock_guard lock(mutex_);
        fail(std::current_exception());
        throw;
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
            file_.append(front.packed);
            front.clear();
        } catch (...) {  // A worker's entry: add() and finish() throw it.
            failure = std::current_exception();
        }
        lock.lock();
        if (failure) {
            fail(std::move(failure));
        } else {
            if (spare_.size() < spare_.capacity()) spare_.push_back(std::move(in_flight_.front().job));
            in_flight_.pop_front();
        }
        changed_.notify_all();
    }
    is_appending_ = false;
    changed_.notify_all();
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
