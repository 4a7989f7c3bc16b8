#pragma once

#include "fuse/copy_up.h"
#include "fuse/file_keeper.h"
#include "fuse/keeper.h"
#include "fuse/upper_meter.h"
#include "fuse/upper_tree.h"

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lamina::unionfs {

/// Keeps a mount's changes in an upper directory, in the form of the kernel's overlayfs (fuse/SEMANTICS.md, "Upper
/// directories"). When a call has returned, its change is there. Each change is one step: killed at any instant, it
/// leaves an upper that shows the state before or after it.
///
/// Over a StackView with an upper, and a change set over that view that is empty; both must outlive it. All functions
/// but sync() and usage() need the union's lock.
class DirectoryKeeper final : public Keeper, public FileKeeper {
public:
    struct Options {
        bool is_volatile = false;          ///< Syncs nothing, as overlayfs' option of that name.
        bool makes_metacopy = false;       ///< A change of attributes leaves a file's bytes below.
        std::size_t open_file_limit = 64;  ///< Descriptors of files kept open for the next read or write.
    };
    /// `upper`: the view's first source, opened O_RDONLY; `work`: the folder of workdir=, on the same file system.
    /// Makes work/ and index/ in it, and removes what an earlier mount left in work/work. Throws store::Error.
    struct Folders {
        store::UniqueFd upper;
        store::UniqueFd work;
    };
    DirectoryKeeper(StackView& view, ChangeSet& changes, Folders folders, Options options);

    FileKeeper* files() noexcept override { return this; }
    Result<void> reserve(std::uint64_t, std::uint64_t) override { return {}; }
    void append(const change::Change& change) noexcept override;
    Result<void> sync() override;
    Usage usage() const override;

    // Of a keeper with extents: never called.
    Result<std::uint64_t> place(std::span<const std::byte>, std::uint64_t) override { return fail(EIO); }
    Result<void> overwrite(std::uint64_t, std::span<const std::byte>) override { return fail(EIO); }
    bool may_overwrite(std::uint64_t, std::uint64_t) const override { return false; }
    Result<void> load(std::uint64_t, std::span<std::byte>) const override { return fail(EIO); }
    void release(std::uint64_t, std::uint64_t) override {}

    Result<void> act(const change::Change& change) override;
    Result<std::size_t> write(const change::Write& write, std::span<const std::byte> data) override;
    Result<void> allocate(NodeId file, int mode, const Range& range) override;
    bool is_kept(NodeId node) const override;
    Result<OpenFile> open(NodeId file) override;
    Result<std::string> link_target(NodeId symlink) override;
    void complete(Attributes& attributes) const override;
    Result<void> set_quota(const QuotaLimits& limits) override;
    QuotaUsage quota_usage() const override { return meter_ ? meter_->usage() : QuotaUsage{}; }
    void drop(NodeId node) noexcept override;

private:
    friend struct ChangeActor;
    struct OpenedFile {
        NodeId node = 0;
        OpenFile file;
        bool is_writable = false;
    };

    // Names (directory_keeper_names.cpp).
    Result<void> make(const change::Make& make);
    Result<void> build(const change::Make& make, const Spot& at);
    Result<void> install(const Spot& built, const Spot& at, bool is_directory);
    Result<void> link(const change::Link& link);
    Result<void> remove(const change::Remove& remove);
    Result<void> remove_file(const change::Remove& remove, const Spot& at, NodeId node, bool hides);
    Result<void> remove_folder(const Spot& at, NodeId node, bool hides);
    Result<void> rename(const change::Rename& rename);
    struct Move {
        Resolved moved;
        Resolved target;
        Spot from;
        Spot to;
    };
    Result<void> prepare_move(NodeId node, const UpperTree::Place& to);
    Result<void> prepare_target(const change::Rename& rename, const Move& move);
    Result<void> empty_target(NodeId directory, const Spot& at);
    Result<void> replace(const change::Rename& rename, const Move& move);
    Result<void> exchange(const change::Rename& rename, const Move& move);
    Result<bool> link_alias(NodeId node, const UpperTree::Place& name, bool is_there);
    bool is_at(NodeId node, NodeId parent, std::string_view name) const;
    bool must_live_on(NodeId node) const;

    // Attributes and data.
    Result<void> set_attributes(const change::SetAttributes& set);
    Result<void> put_owner_and_mode(const UpperInode& inode, const Attributes& before, std::uint32_t mode,
                                    const change::SetAttributes& set) const;
    Result<void> resize(const change::Resize& resize);
    Result<void> set_xattr(const change::SetXattr& set);
    Result<void> remove_xattr(const change::RemoveXattr& remove);
    Result<void> clear_privileges(NodeId node, bool clears_set_ids, const UpperInode& inode);
    Result<std::size_t> write_mapped(const change::Write& write, int fd, std::span<const std::byte> data);
    enum class For { data, attributes };
    Result<bool> bring_up(NodeId node, For what, std::uint64_t size_limit_bytes = CopyUp::kWhole);
    Result<OpenFile> open_cached(NodeId file, bool is_for_writing);
    void remember(NodeId node, store::UniqueFd fd, bool is_writable);
    void close_cached(NodeId node) noexcept;

    void will_lie(NodeId node, std::optional<UpperTree::Place> place);

    StackView& view_;
    ChangeSet& changes_;
    ChangeSet::Records& records_;
    store::UniqueFd upper_;
    const Options options_;
    UpperTree tree_;
    CopyUp copy_up_;
    std::unique_ptr<UpperMeter> meter_;                                      ///< Null: no limits.
    std::vector<std::pair<NodeId, std::optional<UpperTree::Place>>> moved_;  // By the change that is under way.
    std::uint64_t made_number_ = 0;                                          // Of the inode that it makes.
    std::list<OpenedFile> open_files_;                                       // The last used first.
    std::unordered_map<NodeId, std::list<OpenedFile>::iterator> open_by_node_;
};

}  // namespace lamina::unionfs
