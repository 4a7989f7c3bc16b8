#pragma once

#include "fuse/change_apply.h"
#include "fuse/change_set_records.h"
#include "fuse/file_keeper.h"
#include "fuse/quota.h"
#include "fuse/union_fs.h"

#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <vector>

namespace lamina::unionfs {

/// What the operations in union_fs.cpp, union_write.cpp, union_data.cpp and union_rename.cpp share. Functions of this
/// class need the lock, but those that say otherwise.
class UnionFs::Impl {
public:
    Impl(const View& below, ChangeSet& change_set, Keeper* change_keeper, Clock time);
    ~Impl();

    const View& view;
    ChangeSet& changes;
    ChangeSet::Records& records;
    Keeper* const keeper;
    FileKeeper* const files;  ///< Null unless the keeper keeps files.
    const Clock clock;
    std::mutex mutex;  // Taken alone; the keeper's own locks come behind it.
    std::condition_variable one_is_forgotten;
    std::size_t nameless_count = 0;  ///< Inodes without a name that the kernel knows, as far as this server saw it.
    std::size_t held_count = 0;      ///< So many of them were waited for in vain: programs have them open.
    QuotaLimits limits;

    Result<void> can_change() const;                                 ///< EROFS.
    Result<Attributes> directory(NodeId node) const;                 ///< ENOTDIR
    Result<Attributes> live_directory(NodeId node) const;            ///< ENOTDIR; ENOENT when removed.
    Result<Attributes> file(NodeId node) const;                      ///< EISDIR, EINVAL unless a regular file.
    Result<Resolved> existing(NodeId parent, std::string_view name)  ///< ENOENT
        const;

    /// reserve() and apply() in one, for changes without data.
    Result<void> perform(const change::Change& change);
    Result<void> reserve(const change::Change& change, std::uint64_t data_bytes);
    Result<void> check_limits(const change::Change& change) const;  ///< EDQUOT. A keeper of files checks its own.
    QuotaUsage quota_usage() const;
    Result<void> apply(const change::Change& change);
    Result<void> perform_kept(const change::Change& change);  ///< Applied to the records: the files have it already.
    Result<std::size_t> write_some(change::Write write, std::span<const std::byte> data);
    Result<std::size_t> write_kept(change::Write write, std::span<const std::byte> data);
    Result<void> allocate_kept(const Attributes& file, int mode, const FileKeeper::Range& range);
    bool is_kept(NodeId node) const { return files && files->is_kept(node); }
    Result<Attributes> shown(NodeId node) const;  ///< As stat(2) shows them.
    Result<Entry> entry(NodeId node);             ///< Counts a look-up.
    void reap(NodeId node);                       ///< Drops an inode without name that the kernel does not know.
    void lost_name(NodeId node);                  ///< reap() after a name was removed.
    void is_not_nameless();                       ///< One of nameless_count is dropped, or has a name.

    /// A part of a read: from the view, from the extent file, from a kept file, or zeros.
    struct Piece {
        enum class Source { view, extent, kept, zero };
        Source source = Source::zero;
        std::uint64_t offset_bytes = 0;  ///< In the file.
        std::uint64_t size_bytes = 0;
        std::uint64_t extent_offset_bytes = 0;
    };
    Result<std::vector<Piece>> plan_read(NodeId node, std::uint64_t offset_bytes, std::uint64_t size_bytes) const;

    /// While one lives, no space that was in use when it was made is used again. Made under the lock, ended without.
    class Reader {
    public:
        explicit Reader(Keeper* keeper) : keeper_(keeper), ticket_(keeper ? keeper->begin_reading() : 0) {}
        ~Reader() {
            if (keeper_) keeper_->end_reading(ticket_);
        }
        Reader(const Reader&) = delete;
        Reader& operator=(const Reader&) = delete;

    private:
        Keeper* keeper_;
        unsigned ticket_;
    };

private:
    void release_freed();

    std::vector<FreedExtent> freed_;  // By changes that the keeper has not seen yet.
};

/// ENOENT for an empty name, ENAMETOOLONG, EINVAL for one that cannot be a name.
Result<void> check_name(std::string_view name);

/// EOPNOTSUPP for a name in no namespace that local file systems have (user., trusted., security., the two ACLs);
/// EINVAL for a namespace alone.
Result<void> check_xattr_name(std::string_view name);

}  // namespace lamina::unionfs
