#include "fuse/contain.h"
#include "fuse/log_keeper.h"
#include "store/error.h"

#include <sys/statvfs.h>

#include <algorithm>

/// The space side of the log keeper: room made ahead with fallocate, so that a full disk is found before anything has
/// happened, and space that comes back. See log_keeper.cpp for the lists that it passes through.
namespace lamina::unionfs {

namespace {

constexpr std::uint64_t kMarkRoomBytes = 1024;          // For the marks of a sync or a new session.
constexpr std::uint64_t kFreeingRoomBytes = 64 * 1024;  // For changes that give space back, when the disk is full.
constexpr std::uint64_t kLogStepBytes = 64 * 1024;
constexpr std::uint64_t kMaxLogStepBytes = 4 * 1024 * 1024;
constexpr std::uint64_t kExtentStepBytes = 256 * 1024;
constexpr std::uint64_t kMaxExtentStepBytes = 64 * 1024 * 1024;
constexpr std::uint64_t kPunchBytes = 256 * 1024;            // Smaller runs are kept for what comes.
constexpr std::uint64_t kTrimSlackBytes = 16 * 1024 * 1024;  // So much may lie allocated behind the end.
constexpr std::size_t kMaxFreshRanges = 16384;

constexpr std::uint64_t round_up(std::uint64_t size_bytes) {
    return (size_bytes + SpaceMap::kBlockBytes - 1) / SpaceMap::kBlockBytes * SpaceMap::kBlockBytes;
}

struct statvfs file_system_of(const std::string& folder) {
    struct statvfs status {};
    if (::statvfs(folder.c_str(), &status) != 0) store::throw_errno(errno, "statvfs " + folder);
    return status;
}

bool is_full(const store::Error& error) {
    return error.code() == store::Errc::no_space || error.code() == store::Errc::quota;
}

}  // namespace

/// Room up to `needed_end`, and if the disk has it up to `wanted_end`.
void LogKeeper::allocate_ahead(store::File& file, std::uint64_t& allocated_bytes, std::uint64_t needed_end,
                               std::uint64_t wanted_end) {
    const std::uint64_t from =
        std::max(allocated_bytes, file.size_bytes() / SpaceMap::kBlockBytes * SpaceMap::kBlockBytes);
    if (needed_end <= from) return;
    if (can_allocate_) {
        try {
            can_allocate_ = file.allocate(from, wanted_end - from);
            if (can_allocate_) allocated_bytes = wanted_end;
        } catch (const store::Error& error) {
            if (!is_full(error) || wanted_end == needed_end) throw;
            can_allocate_ = file.allocate(from, needed_end - from);
            if (can_allocate_) allocated_bytes = needed_end;
        }
    }
    if (can_allocate_) return;
    const auto status = file_system_of(folder_);
    if (status.f_bavail * status.f_frsize < needed_end - from + kMaxLogStepBytes) {
        store::throw_errno(ENOSPC, "allocate " + file.path());
    }
}

void LogKeeper::reserve_log(const Room& room) {
    const std::uint64_t kept = kMarkRoomBytes + (room.frees ? 0 : kFreeingRoomBytes);
    const std::uint64_t needed = position_.end_bytes + room.record_bytes + log_format::kFrameBytes + kept;
    if (needed <= files_.log_allocated_bytes) return;
    const std::uint64_t step = std::clamp(position_.end_bytes, kLogStepBytes, kMaxLogStepBytes);
    allocate_ahead(files_.log, files_.log_allocated_bytes, round_up(needed), round_up(needed + step));
}

/// All free space to the disk, for the log: when there is nothing else left.
void LogKeeper::give_back_all() {
    {
        const std::lock_guard lock(mutex_);
        if (cuts_ != 0) return;
        space_.drop_tails();
        for (const SpaceMap::Range& run : space_.free_runs()) {
            files_.extents.punch_hole(run.offset_bytes, run.size_bytes);
        }
    }
    trim_extents(0);
}

void LogKeeper::reserve_extents(std::uint64_t data_bytes) {
    if (data_bytes == 0) return;
    const std::uint64_t needed = round_up(data_bytes) + SpaceMap::kBlockBytes;
    if (space_.largest_free_bytes() >= needed) return;
    const std::uint64_t end = space_.end_bytes();
    if (files_.extents_allocated_bytes >= end + needed) return;
    const std::uint64_t step = std::clamp(round_up(end / 8), kExtentStepBytes, kMaxExtentStepBytes);
    try {
        allocate_ahead(files_.extents, files_.extents_allocated_bytes, end + needed, end + std::max(needed, step));
    } catch (const store::Error& error) {
        if (!is_full(error)) throw;
        space_.drop_tails();
        if (space_.largest_free_bytes() >= needed) return;
        const std::uint64_t lower_end = space_.end_bytes();
        if (files_.extents_allocated_bytes >= lower_end + needed) return;
        allocate_ahead(files_.extents, files_.extents_allocated_bytes, lower_end + needed, lower_end + needed);
    }
}

void LogKeeper::note_fresh(std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    const auto after = fresh_.lower_bound(offset_bytes);
    if (after != fresh_.begin()) {
        const auto before = std::prev(after);
        if (before->second >= offset_bytes) {
            before->second = std::max(before->second, offset_bytes + size_bytes);
            return;
        }
    }
    if (fresh_.size() < kMaxFreshRanges) fresh_.emplace(offset_bytes, offset_bytes + size_bytes);
}

bool LogKeeper::is_fresh(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    const auto after = fresh_.upper_bound(offset_bytes);
    return after != fresh_.begin() && offset_bytes + size_bytes <= std::prev(after)->second;
}

void LogKeeper::release(std::uint64_t extent_offset_bytes, std::uint64_t size_bytes) {
    const std::lock_guard lock(mutex_);
    const bool timer_sleeps = !has_unflushed() && !is_dirty();
    const auto dead = space_.release({extent_offset_bytes, size_bytes});
    released_.insert(released_.end(), dead.begin(), dead.end());
    if (timer_sleeps && !dead.empty()) timer_wakes_.notify_one();
}

unsigned LogKeeper::begin_reading() noexcept {
    for (;;) {
        const unsigned slot = reader_slot_.load();
        ++readers_[slot];
        if (reader_slot_.load() == slot) return slot;
        --readers_[slot];  // The slots were just exchanged: this one must become empty.
    }
}

void LogKeeper::end_reading(unsigned ticket) noexcept {
    --readers_[ticket & 1U];
}

/// Space that nothing can reach any more. Who reads now has its slot counted; with each lot of space the slots are
/// exchanged, and the lot is free when the slot that was in use is empty. Under mutex_.
std::vector<SpaceMap::Range> LogKeeper::drained_ranges() {
    std::vector<SpaceMap::Range> drained;
    if (cuts_ != 0) return drained;
    const unsigned slot = reader_slot_.load();
    if (readers_[slot ^ 1U].load() == 0) drained.swap(draining_);
    if (!draining_.empty() || synced_.empty()) return drained;
    draining_.swap(synced_);
    reader_slot_.store(slot ^ 1U);
    if (readers_[slot].load() == 0) {
        drained.insert(drained.end(), draining_.begin(), draining_.end());
        draining_.clear();
    }
    return drained;
}

/// What no durable record and no cut names any more: free, and a big piece of it is given back to the disk.
void LogKeeper::reclaim() {
    std::vector<SpaceMap::Range> freed;
    {
        const std::lock_guard lock(mutex_);
        freed = drained_ranges();
    }
    if (freed.empty()) return;
    std::sort(freed.begin(), freed.end(), [](const auto& a, const auto& b) { return a.offset_bytes < b.offset_bytes; });
    std::vector<SpaceMap::Range> runs;
    for (const auto& range : freed) {
        if (!runs.empty() && runs.back().end() == range.offset_bytes) {
            runs.back().size_bytes += range.size_bytes;
        } else {
            runs.push_back(range);
        }
    }
    (void)contain([&] {  // Space that the disk does not get back is still ours.
        for (const auto& run : runs) {
            if (run.size_bytes >= kPunchBytes) files_.extents.punch_hole(run.offset_bytes, run.size_bytes);
        }
    });
    {
        const std::lock_guard lock(mutex_);
        for (const auto& run : runs) space_.add_free(run);
    }
    (void)contain([&] { trim_extents(kTrimSlackBytes); });
}

/// Gives back what is allocated behind the last block in use, if it is more than `slack_bytes`.
void LogKeeper::trim_extents(std::uint64_t slack_bytes) {
    const std::lock_guard lock(mutex_);
    const std::uint64_t end = space_.end_bytes();
    const std::uint64_t allocated = std::max(files_.extents_allocated_bytes, files_.extents.size_bytes());
    if (cuts_ != 0 || allocated <= end + slack_bytes) return;
    files_.extents.truncate(std::min(end, files_.extents.size_bytes()));
    files_.extents_allocated_bytes = 0;
}

Keeper::Usage LogKeeper::usage() const {
    Usage usage;
    {
        const std::lock_guard lock(mutex_);
        usage.log_bytes = position_.end_bytes;
        usage.extent_bytes = space_.used_bytes();
        usage.available_bytes = space_.free_bytes();
        const std::uint64_t end = space_.end_bytes();
        if (files_.extents_allocated_bytes > end) usage.available_bytes += files_.extents_allocated_bytes - end;
    }
    struct statvfs status {};
    if (::statvfs(folder_.c_str(), &status) != 0) return usage;
    usage.available_bytes += status.f_bavail * status.f_frsize;
    usage.total_bytes = status.f_blocks * status.f_frsize;
    return usage;
}

}  // namespace lamina::unionfs
