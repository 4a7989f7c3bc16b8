#pragma once

#include "fuse/change.h"
#include "fuse/keeper.h"
#include "fuse/node.h"
#include "fuse/quota.h"
#include "fuse/result.h"
#include "store/file.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace lamina::unionfs {

/// A keeper that carries each change out in files of its own, when it happens: an upper directory. What it holds are
/// *kept* inodes: their bytes, their link target, their times and their size on disk are those of its files.
///
/// For one change the union calls, under its lock: reserve -> act (or write, or allocate: they act too) -> the change
/// is applied to the records -> append. Where act answers an error, nothing has happened that anyone could see. No
/// function is called without the union's lock; an OpenFile may be read without it.
class FileKeeper {
public:
    virtual ~FileKeeper() = default;

    virtual Result<void> act(const change::Change& change) = 0;
    /// Writes the bytes of `write` (its size is theirs). How many were written: fewer when the disk is full.
    virtual Result<std::size_t> write(const change::Write& write, std::span<const std::byte> data) = 0;
    struct Range {
        std::uint64_t offset_bytes = 0;
        std::uint64_t size_bytes = 0;
    };
    virtual Result<void> allocate(NodeId file, int mode, const Range& range) = 0;  ///< fallocate(2)

    /// Whether the inode lies in a file of the keeper's; else it is as the view has it.
    virtual bool is_kept(NodeId node) const = 0;
    using OpenFile = std::shared_ptr<const store::UniqueFd>;
    virtual Result<OpenFile> open(NodeId file) = 0;               ///< Of a kept file; for reading.
    virtual Result<std::string> link_target(NodeId symlink) = 0;  ///< Of a kept one.
    /// Puts in what the keeper's file knows better than the records: times, size on disk, the inode's number.
    virtual void complete(Attributes& attributes) const = 0;
    /// Counts what its files take from now on, and refuses with EDQUOT what would exceed a limit. Without limits it
    /// counts nothing. Errors of looking through its files.
    virtual Result<void> set_quota(const QuotaLimits& limits) = 0;
    virtual QuotaUsage quota_usage() const = 0;  ///< Zeros while nothing is counted.
    /// Nothing names the inode any more, and no process can reach it.
    virtual void drop(NodeId node) noexcept = 0;
};

}  // namespace lamina::unionfs
