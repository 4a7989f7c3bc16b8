#pragma once

#include "fuse/keeper.h"
#include "fuse/node.h"
#include "fuse/quota.h"
#include "fuse/result.h"
#include "fuse/view.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace lamina::unionfs {

class ChangeSet;

/// Who asks. The kernel has checked permissions (default_permissions); this is for ownership, umask, set-id rules.
struct Caller {
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::uint32_t umask = 0;
};

struct NewNode {
    std::uint32_t mode = 0;  ///< Type and permission bits, umask not yet applied (DONT_MASK).
    std::uint64_t device = 0;
    std::string_view link_target;
};

/// Fields of setattr(2)-like calls that are present. A time of "now" is resolved by the caller.
struct AttributeChange {
    std::optional<std::uint32_t> mode;
    std::optional<std::uint32_t> uid;
    std::optional<std::uint32_t> gid;
    std::optional<std::uint64_t> size_bytes;
    std::optional<Timestamp> atime;
    std::optional<Timestamp> mtime;
    std::optional<Timestamp> ctime;
    bool clears_privileges = false;  ///< FATTR_KILL_SUIDGID, or a chown by rule.
};

struct Entry {
    Attributes attributes;  ///< .node is the inode's number.
};

struct ListedEntry {
    std::string_view name;
    NodeId node = 0;
    std::uint64_t number = 0;  ///< d_ino.
    std::uint32_t type = 0;
    std::uint64_t next_cookie = 0;  ///< Continue behind this entry.
};

/// The union of a view and a change set, with the semantics of a local POSIX file system (fuse/SEMANTICS.md). The
/// kernel has resolved paths and checked permissions; nothing here does. Errors are what the system call returns.
///
/// Thread-safe: one internal lock, never held across a read of the view's or the keeper's bytes or a sync. A read-only
/// mount has no keeper: every change is EROFS.
class UnionFs {
public:
    /// `view` and `changes` and `keeper` must outlive it. `keeper` null: read-only. `clock` says what time it is for
    /// the times of inodes; empty: CLOCK_REALTIME. The union takes the change set's on_freed() for itself.
    using Clock = std::function<Timestamp()>;
    UnionFs(const View& view, ChangeSet& changes, Keeper* keeper, Clock clock = {});
    ~UnionFs();

    Result<std::optional<Entry>> lookup(NodeId parent, std::string_view name);  ///< nullopt: absent. Counts a look-up.
    Result<Entry> entry(NodeId node);  ///< As lookup() of one of its names. Counts a look-up.
    void forget(NodeId node, std::uint64_t count);
    /// Whether files without a name keep their room because the kernel has not forgotten them (yet).
    bool awaits_forget() const noexcept;
    /// Waits until there is none, at most so long. What it waited for in vain is not waited for again.
    void wait_for_forget(std::chrono::milliseconds limit);
    Result<Attributes> attributes(NodeId node);
    Result<std::string> link_target(NodeId node);
    /// Calls `emit` for each entry behind `cookie` (0: from the start; "." and ".." come first) until it returns false.
    Result<void> list(NodeId directory, std::uint64_t cookie, const std::function<bool(const ListedEntry&)>& emit);
    Result<std::size_t> read(NodeId node, std::uint64_t offset_bytes, std::span<std::byte> out);
    bool read_is_warm(NodeId node, std::uint64_t offset_bytes, std::uint64_t size_bytes);
    Result<std::uint64_t> seek(NodeId node, std::uint64_t offset_bytes, bool wants_data);
    Result<std::string> xattr(NodeId node, std::string_view name);  ///< ENODATA
    Result<std::string> xattr_names(NodeId node);                   ///< NUL-terminated names, as listxattr(2).

    Result<Entry> make(NodeId parent, std::string_view name, const NewNode& node, const Caller& caller);
    Result<Entry> make_unnamed(NodeId parent, const NewNode& node, const Caller& caller);  ///< O_TMPFILE
    Result<Entry> link(NodeId node, NodeId parent, std::string_view name);
    Result<void> unlink(NodeId parent, std::string_view name);
    Result<void> remove_directory(NodeId parent, std::string_view name);
    struct RenameFlags {
        bool no_replace = false;
        bool exchange = false;
    };
    struct Place {
        NodeId parent = 0;
        std::string_view name;
    };
    Result<void> rename(const Place& from, const Place& to, RenameFlags flags);
    Result<Attributes> set_attributes(NodeId node, const AttributeChange& change);
    /// What is told from a write of one who has CAP_FSETID: it takes set-id bits too, or was made by a mapping and
    /// takes nothing, not even security.capability.
    enum class WriteBy { privileged, unprivileged, mapping };
    Result<std::size_t> write(NodeId node, std::uint64_t offset_bytes, std::span<const std::byte> data, WriteBy by);
    /// mode as fallocate(2): 0, KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE[|KEEP_SIZE]; others EOPNOTSUPP.
    Result<void> allocate(NodeId node, int mode, std::uint64_t offset_bytes, std::uint64_t size_bytes);
    struct CopyRange {
        NodeId from = 0;
        std::uint64_t from_offset_bytes = 0;
        NodeId to = 0;
        std::uint64_t to_offset_bytes = 0;
        std::uint64_t size_bytes = 0;
    };
    Result<std::size_t> copy_range(const CopyRange& range);
    /// flags as setxattr(2): XATTR_CREATE, XATTR_REPLACE.
    Result<void> set_xattr(NodeId node, std::string_view name, std::string_view value, int flags,
                           bool clears_set_gid = false);
    Result<void> remove_xattr(NodeId node, std::string_view name);
    Result<void> sync();  ///< fsync, fsyncdir, syncfs: all that was changed before is durable.

    /// Limits on what the changes take; may be below what they take now. Any thread. From then on what would exceed
    /// them is EDQUOT, before anything of it has happened.
    Result<void> set_quota(const QuotaLimits& limits);
    struct Quota {
        QuotaLimits limits;
        QuotaUsage used;  ///< Of a keeper of files: zeros while no limit is set.
    };
    Quota quota();

    /// With a limit the size is the limit, and what is not free is what the changes take.
    struct FileSystemUsage {
        std::uint64_t block_bytes = 4096;
        std::uint64_t blocks = 0;
        std::uint64_t free_blocks = 0;
        std::uint64_t available_blocks = 0;  ///< Less than what is free when the disk below has less.
        std::uint64_t inodes = 0;
        std::uint64_t free_inodes = 0;
    };
    FileSystemUsage usage();

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::unionfs
