#pragma once

#include "fuse/change_set.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

/// What a mount changed, to walk: for diff, layer export and the accounting of extents. Borrowed views live until the
/// next change of the set. Like all reading of a ChangeSet: under the lock that guards it.
namespace lamina::unionfs {

struct ChangedName {
    std::string_view name;
    NodeId node = 0;  ///< 0: a whiteout.
    std::uint32_t type = 0;
    bool is_in_view = false;  ///< The view has an entry of this name in this folder: hidden or replaced.
};

/// A record of an inode: new, or of the view with something changed on it (perhaps only a parent's times).
struct ChangedNode {
    Attributes attributes;  ///< As stat shows them, complete.
    std::string_view link_target;
    std::uint64_t view_size_bytes = 0;  ///< The view's bytes show through up to here, where no extent lies.
    bool is_new = false;                ///< Not of the view.
    bool has_own_data = false;          ///< Has extents, or shows less of the view than the view has.
    bool has_own_xattrs = false;        ///< Its xattrs are its own; else the view's.
};

struct ChangedExtent {
    NodeId node = 0;
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
    std::uint64_t extent_offset_bytes = 0;  ///< 0 for holes.
    bool is_hole = false;
};

/// Names of a folder that differ from the view's, in order of making; a rename of a view's folder does not change the
/// names inside. Folders with such names have a record: find them with for_each_changed_node().
void for_each_changed_name(const ChangeSet& changes, NodeId directory,
                           const std::function<void(const ChangedName&)>& emit);
void for_each_changed_node(const ChangeSet& changes, const std::function<void(const ChangedNode&)>& emit);
std::optional<ChangedNode> changed_node(const ChangeSet& changes, NodeId node);
/// Extents of one inode by offset; of all inodes.
void for_each_extent(const ChangeSet& changes, NodeId node, const std::function<void(const ChangedExtent&)>& emit);
void for_each_extent(const ChangeSet& changes, const std::function<void(const ChangedExtent&)>& emit);
/// Xattrs that are the inode's own (has_own_xattrs).
void for_each_own_xattr(const ChangeSet& changes, NodeId node,
                        const std::function<void(std::string_view name, std::string_view value)>& emit);

/// The inode under a name as the union shows it; nullopt: absent. Does not count a look-up.
Result<std::optional<NodeId>> find_name(const ChangeSet& changes, NodeId directory, std::string_view name);
/// As stat shows it, changed or not.
Result<Attributes> merged_attributes(const ChangeSet& changes, NodeId node);
/// The folder that a folder lies in, wherever it was moved; the root's is itself. 0: removed.
Result<NodeId> parent_of(const ChangeSet& changes, NodeId directory);

}  // namespace lamina::unionfs
