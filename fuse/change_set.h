#pragma once

#include "fuse/change.h"
#include "fuse/result.h"
#include "fuse/view.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace lamina::unionfs {

class Arena;

/// Everything that one mount changed: inodes, names, byte ranges, xattrs, as plain records linked by index in an arena
/// that a next server can map (fuse/FORMAT.md, "Arena"). The one place of union state.
///
/// Not thread-safe: the union's lock guards it. apply() is one transaction: after a kill at any instruction the arena
/// holds the state before or after it.
class ChangeSet {
public:
    /// `view` is what lies below; must outlive it. `freed` is told of extents that nothing names any more.
    using Freed = std::function<void(std::uint64_t extent_offset_bytes, std::uint64_t size_bytes)>;
    ChangeSet(Arena& arena, const View& view);
    ~ChangeSet();
    void on_freed(Freed freed);

    /// Room in the arena for one change of this size, so that apply() cannot fail for lack of memory. ENOSPC. Removing
    /// and emptying are let through without: apply() then answers ENOSPC, unchanged, if what is free does not do.
    Result<void> reserve(const change::Change& change);
    /// Applies a change. A live operation has checked that it is allowed; replay gets what the log says, so every rule
    /// that keeps the set sound (names exist, types match, no loop) is checked and answered with EINVAL, unchanged.
    Result<void> apply(const change::Change& change);

    NodeId next_node() const;
    /// Calls `emit` with the Put changes that make up the state: applied to an empty set over the same view they give
    /// an equal one. Parents before children.
    void checkpoint(const std::function<void(const change::Change&)>& emit) const;
    /// Removes inodes without a name; call after replay, when no process can hold them open.
    void drop_unnamed();
    /// Removes one inode's record: nothing names it, and no process can reach it any more. Without memory for that it
    /// stays, for drop_unnamed() at the next mount.
    void drop(NodeId node);

    struct Counts {
        std::uint64_t nodes = 0;
        std::uint64_t names = 0;
        std::uint64_t extents = 0;
        std::uint64_t arena_bytes = 0;
    };
    Counts counts() const;

    // Reading, and look-up counts, are for UnionFs and for diff and export: see change_set_records.h, change_walk.h.
    class Records;
    Records& records() noexcept { return *records_; }
    const Records& records() const noexcept { return *records_; }

private:
    std::unique_ptr<Records> records_;
};

}  // namespace lamina::unionfs
