#include "fuse/log_keeper.h"

#include "fuse/checkpoint.h"
#include "fuse/contain.h"
#include "store/error.h"

#include <algorithm>
#include <cstring>

/// Records are sealed (sequence, chained checksum) into a buffer under mutex_ and written from there in one piece, by
/// whoever finds the buffer full, by the timer, or by a sync. A sync notes the last sequence, makes the extents
/// durable, then writes a mark that says so and makes the log durable: so a mark in the log is the proof that all file
/// data of the records that it covers is on disk.
///
/// The buffer lies in the arena, and a record is put there by the transaction of its change. Until that is committed
/// (appended()), nobody may write the record to the file, nor put another behind it.
///
/// Data that no durable record names may be written over in place. Two things must then not come apart in a kill or a
/// power cut: the records before (they are flushed first) and the record of the change itself (it is flushed at once,
/// and no sync or cut begins between the two: wait_until_between_changes()).
///
/// Space that a change released waits in released_ until a sync begins, in synced_ when it has ended, and in draining_
/// until no reader is left that may have looked it up before, and no cut (log_keeper_space.cpp).
namespace lamina::unionfs {

namespace {

constexpr std::chrono::seconds kLongestChange{1};  // Only a change that failed half-way takes longer.
constexpr std::size_t kMarkBytes = 128;            // At most.

}  // namespace

LogKeeper::LogKeeper(LogStart start, Arena& arena, EmitState state, const LogOptions& options)
    : folder_(std::move(start.folder)),
      tree_(start.tree),
      boot_(start.boot),
      state_(std::move(state)),
      options_(options),
      generation_(start.generation),
      checkpoint_bytes_(start.checkpoint_bytes),
      buffer_(arena),
      space_(std::move(start.space)),
      released_(std::move(start.held)) {
    if (buffer_.is_begun()) {
        resume();
    } else if (!start.scan.is_absent) {
        continue_log(start.scan);
    }
    checkpoint_at_bytes_ = std::max(options_.checkpoint_log_bytes, options_.checkpoint_factor * checkpoint_bytes_);
    if (options_.sync_interval.count() > 0) timer_ = std::thread([this] { run_timer(); });
}

LogKeeper::~LogKeeper() {
    {
        const std::lock_guard lock(mutex_);
        is_stopping_ = true;
    }
    timer_wakes_.notify_all();
    if (timer_.joinable()) timer_.join();
    (void)flush();
}

std::string LogKeeper::log_path(std::uint64_t generation) const {
    return folder_ + "/log." + std::to_string(generation);
}

/// Nothing was ever synced: what is there of a log or of extents is not named by anything.
void LogKeeper::open_files() {
    if (has_files_) return;
    Files files;
    files.log = store::File::create_or_open(log_path(generation_));
    files.extents = store::File::create_or_open(folder_ + "/extents");
    if (files.log.size_bytes() != 0) files.log.truncate(0);
    if (files.extents.size_bytes() != 0) files.extents.truncate(0);
    const auto header = log_format::make_header(log_format::kLogMagic, tree_, generation_, boot_);
    files.log.append(log_format::bytes_of(header));
    const LogPosition position{.end_bytes = files.log.size_bytes(), .chain = header.checksum};
    buffer_.begin(generation_, checkpoint_bytes_, position);
    position_ = position;
    files_ = std::move(files);
    has_files_ = true;
    is_new_ = true;
}

void LogKeeper::continue_log(const LogScan& scan) {
    files_.log = store::File::open_append(log_path(generation_));
    files_.extents = store::File::create_or_open(folder_ + "/extents");
    if (files_.log.size_bytes() > scan.end_bytes) files_.log.truncate(scan.end_bytes);
    position_ = {.end_bytes = scan.end_bytes,
                 .chain = scan.chain,
                 .last_sequence = scan.last_sequence,
                 .last_change = scan.last_sequence};
    buffer_.begin(generation_, checkpoint_bytes_, position_);
    has_files_ = true;
    is_new_ = scan.covered_sequence == 0;
    durable_ = scan.last_sequence;
    if (!scan.is_same_boot) {
        append_mark(log_format::kSessionMark, boot_, scan.kept_sequence);
    } else if (scan.kept_sequence > scan.covered_sequence) {
        // The free space is that of the state which replay ended with; the disk must know this state before it is used.
        durable_ = scan.covered_sequence;
        has_new_data_ = true;
        run_sync();
    }
    if (!is_new_) buffer_.set_named();
    buffer_.set_durable(durable_);
    trim_extents(0);
}

/// Goes on with the log of a server that was killed. What its file has behind what was flushed is of changes that were
/// not made; what the disk knows of them must not become true when their space is used for others.
void LogKeeper::resume() {
    buffer_.check_version();
    resume_after_checkpoint();
    const LogStateRecord& state = buffer_.state();
    generation_ = state.generation;
    checkpoint_bytes_ = state.checkpoint_bytes;
    position_ = buffer_.position();
    durable_ = state.durable;
    is_new_ = state.is_named == 0;
    broken_ = static_cast<int>(state.error);
    has_new_data_ = true;
    files_.log = store::File::open_append(log_path(generation_));
    files_.extents = store::File::create_or_open(folder_ + "/extents");
    has_files_ = true;
    if (files_.log.size_bytes() > position_.end_bytes && broken_ == 0) files_.log.truncate(position_.end_bytes);
}

/// The checkpoint was put in the place of the log, but the arena does not say so yet.
void LogKeeper::resume_after_checkpoint() {
    const std::string path = folder_ + "/checkpoint";
    if (!store::exists(path)) return;
    const store::UniqueFd checkpoint = store::open_read(path);
    const auto header = read_header(checkpoint.get(), path, log_format::kCheckpointMagic, tree_);
    if (!header || header->generation != buffer_.state().generation + 1) return;
    const std::string log = log_path(header->generation);
    const store::UniqueFd next = store::open_read(log);
    const auto log_header = read_header(next.get(), log, log_format::kLogMagic, tree_);
    if (!log_header) throw store::Error(store::Errc::corrupt, log + ": its header is missing");
    store::sync_folder(folder_);
    buffer_.begin(header->generation, store::file_size(path),
                  {.end_bytes = log_format::kHeaderBytes, .chain = log_header->checksum});
}

Result<void> LogKeeper::reserve(std::uint64_t record_bytes, std::uint64_t data_bytes) {
    return reserve_room({.record_bytes = record_bytes, .data_bytes = data_bytes});
}

Result<void> LogKeeper::reserve_to_free(std::uint64_t record_bytes) {
    return reserve_room({.record_bytes = record_bytes, .frees = true});
}

Result<void> LogKeeper::reserve_room(const Room& room) {
    if (broken_ != 0) return fail(EROFS);
    bool wants_checkpoint = false;
    const auto try_once = [&] {
        const std::lock_guard lock(mutex_);
        is_overwriting_ = false;  // A change that was begun and failed.
        open_files();
        reserve_log(room);
        reserve_extents(room.data_bytes);
        wants_checkpoint = position_.end_bytes > checkpoint_at_bytes_ && cuts_ == 0;
    };
    auto reserved = contain(try_once);
    if (!reserved && (reserved.error() == Errno{ENOSPC} || reserved.error() == Errno{EDQUOT})) {
        (void)contain([&] {  // Space that was released may be used again after a sync.
            const std::lock_guard sync_lock(sync_mutex_);
            run_sync();
        });
        reclaim();
        if (room.data_bytes == 0) (void)contain([&] { give_back_all(); });  // The log is what needs it.
        reserved = contain(try_once);
    }
    if (reserved && wants_checkpoint) {
        (void)write_checkpoint();  // What fails before it counts changes nothing; what fails later is remembered.
        reserved = contain(try_once);
    }
    if (broken_ != 0) return fail(EROFS);
    return reserved;
}

Result<std::uint64_t> LogKeeper::place(std::span<const std::byte> data, std::uint64_t previous_end) {
    std::uint64_t offset_bytes = 0;
    const auto placed = contain([&] {
        const std::lock_guard lock(mutex_);
        if (data.empty() || !has_files_) throw store::Error(store::Errc::internal, "place() without reserve()");
        offset_bytes = space_.allocate(data.size(), previous_end);
        try {
            files_.extents.write_at(offset_bytes, data);
        } catch (...) {  // Nothing names the place.
            for (const auto& range : space_.release({offset_bytes, data.size()})) space_.add_free(range);
            throw;
        }
        note_fresh(offset_bytes, data.size());
        has_new_data_ = true;
    });
    if (!placed) return std::unexpected(placed.error());
    return offset_bytes;
}

Result<void> LogKeeper::overwrite(std::uint64_t extent_offset_bytes, std::span<const std::byte> data) {
    if (const auto flushed = flush(); !flushed) return flushed;
    Result<void> allowed;
    const auto written = contain([&] {
        const std::lock_guard lock(mutex_);
        if (!is_fresh(extent_offset_bytes, data.size())) {
            allowed = fail(EAGAIN);
            return;
        }
        is_overwriting_ = true;
        has_new_data_ = true;
        files_.extents.write_at(extent_offset_bytes, data);
    });
    return written ? allowed : written;
}

bool LogKeeper::may_overwrite(std::uint64_t extent_offset_bytes, std::uint64_t size_bytes) const {
    const std::lock_guard lock(mutex_);
    return is_fresh(extent_offset_bytes, size_bytes);
}

Result<void> LogKeeper::load(std::uint64_t extent_offset_bytes, std::span<std::byte> out) const {
    try {
        store::read_exact(files_.extents.fd(), extent_offset_bytes, out, files_.extents.path());
        return {};
    } catch (const store::Error& error) {
        return std::unexpected(errno_for(error.code()));
    } catch (const std::exception&) {
        return fail(EIO);
    }
}

/// Fills in the frame at the front of a record that comes behind all others. Under mutex_.
LogPosition LogKeeper::seal(std::vector<std::byte>& record, bool is_change) const {
    LogPosition next = position_;
    next.chain = log_format::seal(record, ++next.last_sequence, position_.chain);
    next.end_bytes += record.size();
    if (is_change) next.last_change = next.last_sequence;
    return next;
}

void LogKeeper::stage(const change::Change& change) {
    record_.resize(log_format::kFrameBytes);
    change::encode(change, record_);
    const auto payload = std::span<const std::byte>(record_).subspan(log_format::kFrameBytes);
    if (payload.size() > log_format::kMaxPayloadBytes || !change::decode(payload)) {
        throw store::Error(store::Errc::internal, "a change that could not be replayed");
    }
    std::unique_lock lock(mutex_);
    while (!buffer_.has_room(position_, record_.size())) {  // A sync may put its mark in what was made free.
        lock.unlock();
        flush_or_throw();
        lock.lock();
    }
    if (broken_ != 0) return;
    staged_ = seal(record_, true);
    buffer_.put(position_, record_, staged_);
    is_staged_ = true;
}

void LogKeeper::append(const change::Change& change) noexcept {
    if (broken_ != 0) return;
    if (const auto done = contain([&] { stage(change); }); !done) fail_for_good();
}

void LogKeeper::appended(bool is_committed) noexcept {
    bool should_flush = false;
    {
        const std::lock_guard lock(mutex_);
        if (std::exchange(is_staged_, false) && is_committed) {
            if (!has_unflushed() && !is_dirty()) timer_wakes_.notify_one();
            position_ = staged_;
            should_flush =
                is_overwriting_ || position_.end_bytes - buffer_.state().flushed_bytes >= options_.buffer_bytes;
        }
    }
    if (should_flush) (void)flush();
    const std::lock_guard lock(mutex_);
    is_overwriting_ = false;
    if (waiting_for_change_ != 0) change_ended_.notify_all();
}

/// Between changes, or before other threads exist. Under mutex_.
void LogKeeper::append_mark(std::uint8_t kind, std::span<const std::byte> boot, std::uint64_t number) {
    std::vector<std::byte> mark;
    mark.reserve(kMarkBytes);
    mark.resize(log_format::kFrameBytes);
    codec::Writer out(mark);
    out.byte(kind);
    for (const std::byte one : boot) out.byte(std::to_integer<std::uint8_t>(one));
    out.varint(number);
    if (!has_unflushed()) timer_wakes_.notify_one();
    const LogPosition next = seal(mark, false);
    buffer_.put_now(position_, mark, next);
    position_ = next;
}

void LogKeeper::fail_for_good() noexcept {
    broken_ = EIO;
    buffer_.set_error(EIO);
}

void LogKeeper::flush_or_throw() {
    const std::lock_guard log_lock(log_mutex_);
    LogPosition until;
    std::span<const std::byte> bytes;
    {
        const std::lock_guard lock(mutex_);
        if (!has_unflushed()) return;
        if (broken_ != 0) throw store::Error(store::Errc::corrupt, files_.log.path() + ": an earlier write failed");
        until = position_;
        bytes = buffer_.bytes(until);
    }
    try {
        files_.log.write_at(until.end_bytes - bytes.size(), bytes);
    } catch (...) {
        fail_for_good();
        throw;
    }
    const std::lock_guard lock(mutex_);
    buffer_.set_flushed(until.end_bytes);
}

std::uint64_t LogKeeper::generation() const {
    const std::lock_guard lock(mutex_);
    return generation_;
}

Result<void> LogKeeper::flush() {
    const auto flushed = contain([&] { flush_or_throw(); });
    return flushed ? flushed : fail(EIO);
}

void LogKeeper::wait_until_between_changes(std::unique_lock<std::mutex>& lock) {
    ++waiting_for_change_;
    change_ended_.wait_for(lock, kLongestChange, [&] { return !is_overwriting_ && !is_staged_; });
    change_ended_.wait(lock, [&] { return !is_staged_; });  // Which always ends.
    --waiting_for_change_;
}

/// Under sync_mutex_, or before other threads exist.
void LogKeeper::run_sync() {
    std::vector<SpaceMap::Range> released;
    std::uint64_t sequence = 0;
    bool has_new_data = false;
    {
        std::unique_lock lock(mutex_);
        wait_until_between_changes(lock);
        released.swap(released_);
        if (position_.last_change <= durable_ || broken_ != 0) {  // Inodes that were unlinked before are forgotten now.
            if (broken_ == 0) synced_.insert(synced_.end(), released.begin(), released.end());
            return;
        }
        sequence = position_.last_sequence;
        has_new_data = std::exchange(has_new_data_, false);
        fresh_.clear();
    }
    try {
        if (is_new_) files_.extents.sync();
        if (has_new_data && !is_new_) files_.extents.sync_data();
        {
            std::unique_lock lock(mutex_);
            wait_until_between_changes(lock);
            while (!buffer_.has_room(position_, kMarkBytes)) {
                lock.unlock();
                flush_or_throw();
                lock.lock();
                wait_until_between_changes(lock);
            }
            append_mark(log_format::kSyncMark, {}, sequence);
        }
        flush_or_throw();
        if (is_new_) {
            files_.log.sync();
            store::sync_folder(folder_);
        } else {
            files_.log.sync_data();
        }
    } catch (...) {  // After a failed sync nobody knows what is on disk; asking again would only seem to help.
        fail_for_good();
        throw;
    }
    is_new_ = false;
    const std::lock_guard lock(mutex_);
    durable_ = std::max(durable_, sequence);
    buffer_.set_named();
    buffer_.set_durable(durable_);
    synced_.insert(synced_.end(), released.begin(), released.end());
}

void LogKeeper::sync_or_throw(std::uint64_t wanted_sequence) {
    const std::lock_guard sync_lock(sync_mutex_);
    if (broken_ != 0) throw store::Error(store::Errc::corrupt, folder_ + ": an earlier write failed");
    {
        const std::lock_guard lock(mutex_);
        if (durable_ >= wanted_sequence && released_.empty()) return;
    }
    run_sync();
}

Result<void> LogKeeper::sync() {
    std::uint64_t wanted = 0;
    {
        const std::lock_guard lock(mutex_);
        wanted = position_.last_change;
        if (!is_dirty() && broken_ == 0) return {};
    }
    const auto synced = contain([&] { sync_or_throw(wanted); });
    if (!synced) return fail(EIO);
    reclaim();
    return {};
}

void LogKeeper::run_timer() {
    using Clock = std::chrono::steady_clock;
    std::optional<Clock::time_point> dirty_since;
    std::unique_lock lock(mutex_);
    while (!is_stopping_) {
        timer_wakes_.wait(lock, [&] { return is_stopping_ || ((has_unflushed() || is_dirty()) && broken_ == 0); });
        if (!dirty_since) dirty_since = Clock::now();
        timer_wakes_.wait_for(lock, options_.flush_interval, [&] { return is_stopping_; });
        if (is_stopping_) return;
        lock.unlock();
        (void)flush();
        if (Clock::now() - *dirty_since >= options_.sync_interval) {
            (void)sync();
            dirty_since.reset();
        }
        lock.lock();
    }
}

Result<LogKeeper::Cut> LogKeeper::begin_cut() {
    Cut cut;
    const auto begun = contain([&] {
        const std::lock_guard sync_lock(sync_mutex_);
        {
            std::unique_lock lock(mutex_);
            wait_until_between_changes(lock);
            if (broken_ != 0) throw store::Error(store::Errc::corrupt, folder_ + ": an earlier write failed");
            ++cuts_;
            fresh_.clear();
            cut = {.generation = generation_, .log_bytes = position_.end_bytes};
        }
        try {
            flush_or_throw();
        } catch (...) {
            end_cut();
            throw;
        }
    });
    if (!begun) return std::unexpected(begun.error());
    return cut;
}

void LogKeeper::end_cut() {
    const std::lock_guard lock(mutex_);
    if (cuts_ != 0) --cuts_;
}

Result<bool> LogKeeper::write_checkpoint() {
    bool is_written = false;
    const auto done = contain([&] {
        const std::lock_guard sync_lock(sync_mutex_);
        if (broken_ != 0) throw store::Error(store::Errc::corrupt, folder_ + ": an earlier write failed");
        run_sync();
        {
            const std::lock_guard lock(mutex_);
            checkpoint_at_bytes_ = 2 * position_.end_bytes;  // If this one fails.
            if (cuts_ != 0 || !has_files_) return;
        }
        checkpoint_or_throw();
        is_written = true;
    });
    if (!done) return std::unexpected(done.error());
    return is_written;
}

/// The checkpoint names the generation of the log that continues it: at every instant the folder holds a checkpoint (or
/// none, for generation 1) and the log that it names.
void LogKeeper::checkpoint_or_throw() {
    const std::uint64_t generation = generation_ + 1;
    const std::string temporary = folder_ + "/checkpoint.tmp";
    const std::string log = log_path(generation);
    store::File next_log;
    std::uint64_t checkpoint_bytes = 0;
    const auto header = log_format::make_header(log_format::kLogMagic, tree_, generation, boot_);
    try {
        checkpoint_bytes = write_checkpoint_file(temporary, {folder_, tree_, generation, boot_}, state_);
        store::remove_file(log);
        next_log = store::File::create(log);
        next_log.append(log_format::bytes_of(header));
        next_log.sync();
        store::sync_folder(folder_);
    } catch (...) {
        ::unlink(temporary.c_str());
        ::unlink(log.c_str());
        throw;
    }
    try {
        store::rename_durably(temporary, folder_ + "/checkpoint");
    } catch (...) {  // Whether the new pair counts is not known; writing to the old one could be in vain.
        fail_for_good();
        throw;
    }
    const std::lock_guard log_lock(log_mutex_);
    const std::lock_guard lock(mutex_);
    // What waits in the buffer is at most marks of the old log: the sync before wrote all changes.
    const LogPosition start{.end_bytes = next_log.size_bytes(), .chain = header.checksum};
    try {
        buffer_.begin(generation, checkpoint_bytes, start);
    } catch (...) {
        fail_for_good();
        throw;
    }
    files_.log = std::move(next_log);
    files_.log_allocated_bytes = 0;
    generation_ = generation;
    checkpoint_bytes_ = checkpoint_bytes;
    checkpoint_at_bytes_ = std::max(options_.checkpoint_log_bytes, options_.checkpoint_factor * checkpoint_bytes);
    position_ = start;
    durable_ = 0;
    ::unlink(log_path(generation - 1).c_str());  // What stays is removed at the next opening.
}

Result<void> LogKeeper::close() {
    if (const auto synced = sync(); !synced) return synced;
    bool pays = false;
    {
        const std::lock_guard lock(mutex_);
        if (!has_files_) return {};
        const auto bound = std::max(options_.close_log_bytes, options_.checkpoint_factor * checkpoint_bytes_);
        pays = position_.end_bytes > bound;
    }
    if (pays) (void)write_checkpoint();  // Without it the next opening takes longer.
    if (broken_ != 0) return fail(EIO);
    reclaim();
    return contain([&] {
        flush_or_throw();
        {
            const std::lock_guard lock(mutex_);
            space_.drop_tails();
        }
        trim_extents(0);
        const std::lock_guard log_lock(log_mutex_);
        files_.log.truncate(files_.log.size_bytes());
    });
}

}  // namespace lamina::unionfs
