#pragma once

#include "fuse/change_set.h"
#include "fuse/view.h"

#include <cstdint>
#include <functional>
#include <string>

/// What a mount changed against its view, path by path: for diff, and for the export of a layer.
namespace lamina::unionfs {

struct ListedChange {
    enum class Kind {
        added,    ///< The view has no such path.
        changed,  ///< It has, and something about it is different, or it is another inode.
        deleted,
        parent,  ///< Not changed itself, but something below it is (only when parents are asked for).
    };
    Kind kind = Kind::changed;
    std::string path;        ///< Relative, without leading slash; "" is the root.
    NodeId node = 0;         ///< 0 when deleted.
    std::uint32_t type = 0;  ///< S_IFMT bits; of what was deleted, the view's.
    /// A folder that took the place of a folder of the view: nothing of that one shows through.
    bool is_opaque = false;
};

struct ListOptions {
    bool lists_moved = false;  ///< Also what lies below a folder of the view that was moved; else that is one line.
    /// All other names of an inode that shows up under a new name: a layer cannot link to what lies below it.
    bool lists_links = false;
    bool has_parents = false;
    std::size_t max_path_bytes = 4096;  ///< A longer path is an error.
};

/// Emits depth first: a folder, what was deleted in it by name, then the rest by name, each with what lies below it.
/// The root only when something about it changed (or as a parent). Throws store::Error (malformed: a path too long).
/// Under the lock that guards the set. Costs what changed, and a walk over the view's names when inodes of the view
/// that are no folders changed in place: only a name says where such an inode is.
void list_changes(const ChangeSet& changes, const View& view, const ListOptions& options,
                  const std::function<void(const ListedChange&)>& emit);

}  // namespace lamina::unionfs
