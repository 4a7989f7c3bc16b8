#pragma once

#include "fuse/change.h"
#include "fuse/result.h"

#include <cstdint>
#include <span>

namespace lamina::unionfs {

class FileKeeper;

/// Makes a mount's changes last. The union calls, for one change, in this order and under its lock:
///   reserve (may fail: nothing has happened) -> place, for data (may fail) -> change applied to the arena -> append
///   -> appended.
/// The change and append are one transaction of the arena: after a kill the arena has both or neither. After a
/// successful reserve, append cannot fail towards its caller; a disk error there is remembered: from then on reserve
/// answers EROFS and sync EIO.
class Keeper {
public:
    virtual ~Keeper() = default;

    /// Not null: changed inodes lie in files of the keeper's own (file_keeper.h); place, overwrite, load and release
    /// are then never called.
    virtual FileKeeper* files() noexcept { return nullptr; }

    /// Room for one record of up to `record_bytes` and `data_bytes` of file data. ENOSPC, EDQUOT, EROFS.
    virtual Result<void> reserve(std::uint64_t record_bytes, std::uint64_t data_bytes) = 0;

    /// The same for a change that only gives space back (unlink, truncate): it may use what is kept for when the disk
    /// is full, so that a full disk can be emptied.
    virtual Result<void> reserve_to_free(std::uint64_t record_bytes) { return reserve(record_bytes, 0); }

    /// Writes file data and says where it lies. `previous`: where the bytes just before these of the same file lie
    /// (their end), or 0: continuing there keeps a file in one piece.
    virtual Result<std::uint64_t> place(std::span<const std::byte> data, std::uint64_t previous_end) = 0;
    /// Writes over bytes that lie at an extent; allowed only when may_overwrite(). EAGAIN: no longer allowed, because a
    /// sync or a cut has begun since; place() the data instead. The change must be appended next.
    virtual Result<void> overwrite(std::uint64_t extent_offset_bytes, std::span<const std::byte> data) = 0;
    /// True for space that was placed since the last sync began: no durable record names it yet, so that writing in
    /// place cannot hurt a mount that is replayed after a power cut. Else data goes to a new place.
    virtual bool may_overwrite(std::uint64_t extent_offset_bytes, std::uint64_t size_bytes) const = 0;
    virtual Result<void> load(std::uint64_t extent_offset_bytes, std::span<std::byte> out) const = 0;  ///< Any thread.
    /// Between begin_reading(), called under the union's lock where it looks up which extents hold the bytes, and
    /// end_reading() of its ticket, from any thread, no space that was live then is used again.
    virtual unsigned begin_reading() noexcept { return 0; }
    virtual void end_reading(unsigned) noexcept {}
    /// The space is named by no live extent any more; the change that dropped it has been appended. It is used again
    /// only when a sync has made that change durable, and nobody reads the space any more.
    virtual void release(std::uint64_t extent_offset_bytes, std::uint64_t size_bytes) = 0;

    virtual void append(const change::Change& change) noexcept = 0;
    virtual void appended(bool is_committed) noexcept { static_cast<void>(is_committed); }  ///< Or it was undone.

    /// Makes everything that was appended before the call durable; group commit: concurrent calls share one flush.
    /// Any thread, without the union's lock. EIO.
    virtual Result<void> sync() = 0;

    struct Usage {
        std::uint64_t log_bytes = 0;
        std::uint64_t extent_bytes = 0;     ///< In use.
        std::uint64_t available_bytes = 0;  ///< Of the file system that it lies on.
        std::uint64_t total_bytes = 0;
    };
    virtual Usage usage() const = 0;
};

}  // namespace lamina::unionfs
