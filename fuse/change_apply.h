#pragma once

#include "fuse/change_set_records.h"

namespace lamina::unionfs {

/// Applies one change to the records, inside the caller's transaction. Whatever fails may have changed something: the
/// caller undoes.
class ChangeApplier {
public:
    explicit ChangeApplier(ChangeSet::Records& records) : records_(records), arena_(records.arena()) {}

    Result<void> operator()(const change::Make& make);
    Result<void> operator()(const change::Link& link);
    Result<void> operator()(const change::Remove& remove);
    Result<void> operator()(const change::Rename& rename);
    Result<void> operator()(const change::SetAttributes& set);
    Result<void> operator()(const change::Resize& resize);
    Result<void> operator()(const change::Write& write);
    Result<void> operator()(const change::Zero& zero);
    Result<void> operator()(const change::SetXattr& set);
    Result<void> operator()(const change::RemoveXattr& remove);
    Result<void> operator()(const change::PutNode& put);
    Result<void> operator()(const change::PutName& put);
    Result<void> operator()(const change::PutExtent& put);
    Result<void> operator()(const change::PutXattr& put);
    Result<void> operator()(const change::PutNextNode& put);

    /// What a change that must not be made twice was about: the inode that it made or linked, or from which it took a
    /// name (0: none). nullopt: making the change again changes nothing more.
    std::optional<NodeId> done_once() const noexcept { return done_once_; }

private:
    using Inode = Ref<InodeRecord>;
    Result<Inode> own(NodeId node);
    Result<Inode> own_directory(NodeId node);  ///< That still exists.
    Result<Inode> own_file(NodeId node);
    const InodeRecord& get(Inode inode) const { return arena_.get(inode); }
    /// Its bytes lie in a file of the keeper's, and extents say nothing.
    bool is_kept(Inode inode) const { return (get(inode).flags & InodeRecord::kKept) != 0; }
    void touch(Inode directory, const Timestamp& time);
    void add_links(Inode inode, int count);
    Result<void> unlink(Inode parent, NodeId node, const Timestamp& time);
    Result<bool> lies_in(NodeId directory, NodeId ancestor) const;
    Result<void> move(Inode moved, Inode from, Inode to, const Timestamp& time);
    Result<void> replace(const change::Rename& rename, const Resolved& old, const Resolved& target);
    Result<void> exchange(const change::Rename& rename, const Resolved& old, const Resolved& target);
    Result<void> changed_data(Inode file, bool clears_privileges, const Timestamp& time);
    Result<void> clear_privileges(Inode inode, bool clears_set_ids);
    Result<void> set_mode(Inode inode, std::uint32_t permissions);
    Result<void> set_text(Inode inode, std::string_view target);

    ChangeSet::Records& records_;
    Arena& arena_;
    std::optional<NodeId> done_once_;
};

bool is_valid_name(std::string_view name);

/// Set-id bits as the kernel drops them when data or owner change: set-gid only of files that the group may execute.
constexpr std::uint32_t without_set_ids(std::uint32_t mode) {
    return mode & ~std::uint32_t{S_ISUID} & ~((mode & S_IXGRP) != 0 ? std::uint32_t{S_ISGID} : 0U);
}

}  // namespace lamina::unionfs
