#pragma once

#include "fuse/keeper.h"
#include "fuse/log_buffer.h"
#include "fuse/log_format.h"
#include "fuse/log_reader.h"
#include "fuse/space_map.h"
#include "store/file.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace lamina::unionfs {

struct LogOptions {
    std::chrono::milliseconds flush_interval{100};  ///< A record reaches the log file at the latest so long after.
    std::chrono::milliseconds sync_interval{5000};  ///< And the disk. Zero: no timer; only sync() does.
    std::size_t buffer_bytes = 48 * 1024;           ///< Or when so much waits.
    std::uint64_t checkpoint_log_bytes = std::uint64_t{64} << 20;  ///< Below it the log is not shortened.
    std::uint64_t checkpoint_factor = 4;                           ///< Nor below so many times the checkpoint.
    std::uint64_t close_log_bytes = std::uint64_t{8} << 20;        ///< At a clean end, the first of the two.
};

/// The state that a replay ended with, and where the log goes on (mount_state.h makes it).
struct LogStart {
    std::string folder;
    store::TreeDigest tree;
    log_format::BootId boot{};
    std::uint64_t generation = 1;
    std::uint64_t checkpoint_bytes = 0;
    LogScan scan;
    SpaceMap space;
    std::vector<SpaceMap::Range> held;  ///< Of the space: free when a sync has made the state durable.
};

/// Calls back with the Put changes that make up the mount's state now; under the union's lock.
using EmitState = std::function<void(const std::function<void(const change::Change&)>&)>;

/// The keeper of mounts that Lamina keeps: a log of records and a file of extents in the mount's folder, shortened now
/// and then by a checkpoint (fuse/FORMAT.md, "Log", "Extents", "Checkpoint").
///
/// File data is written at once (into the page cache), records in batches; sync() makes all of it durable. After a kill
/// of the process the mount is as after all but the last flush_interval of its changes, after a power cut as after all
/// that was synced and perhaps more, and always as after a prefix of them. Files are made at the first reserve().
///
/// What the union calls under its lock is called by one thread at a time; the rest may come from any. Disk errors after
/// reserve() are remembered. Lock order: sync, then log, then state.
///
/// Where the log ends, and what its file does not have yet, is in the arena (log_buffer.h): a next server goes on from
/// there, and does not replay.
class LogKeeper : public Keeper {
public:
    /// In an arena without a log: cuts a torn tail off the log, makes durable what replay took. In one with a log: goes
    /// on with that; of `start` only the space counts, which it takes for free after the next sync. Starts the timer
    /// thread.
    LogKeeper(LogStart start, Arena& arena, EmitState state, const LogOptions& options);
    ~LogKeeper() override;  ///< Writes what is buffered to the file. For a clean end call close() before.

    Result<void> reserve(std::uint64_t record_bytes, std::uint64_t data_bytes) override;
    Result<void> reserve_to_free(std::uint64_t record_bytes) override;
    Result<std::uint64_t> place(std::span<const std::byte> data, std::uint64_t previous_end) override;
    Result<void> overwrite(std::uint64_t extent_offset_bytes, std::span<const std::byte> data) override;
    bool may_overwrite(std::uint64_t extent_offset_bytes, std::uint64_t size_bytes) const override;
    Result<void> load(std::uint64_t extent_offset_bytes, std::span<std::byte> out) const override;
    unsigned begin_reading() noexcept override;
    void end_reading(unsigned ticket) noexcept override;
    void release(std::uint64_t extent_offset_bytes, std::uint64_t size_bytes) override;
    void append(const change::Change& change) noexcept override;
    void appended(bool is_committed) noexcept override;
    Result<void> sync() override;
    Usage usage() const override;

    std::uint64_t generation() const;  ///< Of the log that is written now.
    /// Writes the buffered records to the log file, so that they survive the process. Any thread.
    Result<void> flush();
    /// No more changes come: syncs, writes a checkpoint if that pays, gives unused space back.
    Result<void> close();

    struct Cut {
        std::uint64_t generation = 0;
        std::uint64_t log_bytes = 0;
    };
    /// A point between two changes that another process may replay. Until end_cut(), nothing that it names is written
    /// over or used again, and no checkpoint replaces the log. Any thread; cuts may overlap.
    Result<Cut> begin_cut();
    void end_cut();

    /// Puts a checkpoint in the place of the log. False: a cut is held. Under the union's lock, or after the last
    /// change.
    Result<bool> write_checkpoint();

private:
    struct Files {
        store::File log;
        store::File extents;
        std::uint64_t log_allocated_bytes = 0;
        std::uint64_t extents_allocated_bytes = 0;
    };

    // Opening and closing (log_keeper.cpp).
    std::string log_path(std::uint64_t generation) const;
    void open_files();
    void continue_log(const LogScan& scan);
    void resume();
    void resume_after_checkpoint();
    void run_timer();

    // The log (log_keeper.cpp).
    LogPosition seal(std::vector<std::byte>& record, bool is_change) const;
    void stage(const change::Change& change);
    void append_mark(std::uint8_t kind, std::span<const std::byte> boot, std::uint64_t number);
    void flush_or_throw();
    bool has_unflushed() const { return has_files_ && !buffer_.is_empty(position_); }
    bool is_dirty() const { return position_.last_change > durable_ || !released_.empty(); }
    void sync_or_throw(std::uint64_t wanted_sequence);
    void run_sync();
    void wait_until_between_changes(std::unique_lock<std::mutex>& lock);
    void checkpoint_or_throw();
    void fail_for_good() noexcept;

    // Space (log_keeper_space.cpp).
    struct Room {
        std::uint64_t record_bytes = 0;
        std::uint64_t data_bytes = 0;
        bool frees = false;
    };
    Result<void> reserve_room(const Room& room);
    void reserve_log(const Room& room);
    void give_back_all();
    void reserve_extents(std::uint64_t data_bytes);
    void allocate_ahead(store::File& file, std::uint64_t& allocated_bytes, std::uint64_t needed_end,
                        std::uint64_t wanted_end);
    void note_fresh(std::uint64_t offset_bytes, std::uint64_t size_bytes);
    bool is_fresh(std::uint64_t offset_bytes, std::uint64_t size_bytes) const;
    void reclaim();
    std::vector<SpaceMap::Range> drained_ranges();
    void trim_extents(std::uint64_t slack_bytes);

    const std::string folder_;
    const store::TreeDigest tree_;
    const log_format::BootId boot_;
    const EmitState state_;
    const LogOptions options_;

    std::vector<std::byte> record_;  // Of the change that is appended. Under the union's lock.

    std::mutex sync_mutex_;     // One sync, cut or checkpoint at a time; those that wait find their sync done.
    std::mutex log_mutex_;      // The log file: one writer at a time.
    mutable std::mutex mutex_;  // All below. The log is replaced under sync_mutex_, log_mutex_ and mutex_.
    std::condition_variable timer_wakes_;
    std::condition_variable change_ended_;
    unsigned waiting_for_change_ = 0;

    bool has_files_ = false;
    bool is_new_ = false;  // The files' names are not yet durable.
    Files files_;
    bool can_allocate_ = true;
    std::uint64_t generation_;
    std::uint64_t checkpoint_bytes_;
    std::uint64_t checkpoint_at_bytes_ = 0;  // Log size at which the next checkpoint is tried.
    LogBuffer buffer_;                       // Its position changes with position_, or with staged_.
    LogPosition position_{};                 // Of the last change that was committed.
    LogPosition staged_{};                   // Of the one that is being committed.
    bool is_staged_ = false;                 // Between append() and appended().
    std::uint64_t durable_ = 0;              // Sequence.
    SpaceMap space_;
    std::map<std::uint64_t, std::uint64_t> fresh_;  // Start to end: placed since the last sync or cut began.
    bool has_new_data_ = false;
    bool is_overwriting_ = false;  // Between overwrite() and the appended() that follows it.
    unsigned cuts_ = 0;
    std::vector<SpaceMap::Range> released_;  // Since the last sync began.
    std::vector<SpaceMap::Range> synced_;    // The records that dropped them are durable.
    std::vector<SpaceMap::Range> draining_;  // Free when the readers of the other slot are gone.
    bool is_stopping_ = false;

    std::atomic<unsigned> reader_slot_{0};
    std::atomic<std::uint64_t> readers_[2] = {};
    std::atomic<int> broken_{0};  // The errno of a disk error that came too late to be anybody's answer.
    std::thread timer_;
};

}  // namespace lamina::unionfs
