#pragma once

#include "fuse/stack_options.h"
#include "store/file.h"

#include <string>
#include <vector>

namespace lamina::unionfs {

/// The folders of a mount, opened and checked. Reached by their descriptors alone from then on.
struct MountFolders {
    struct Lower {
        std::string path;
        store::UniqueFd folder;  ///< O_PATH
    };
    std::vector<Lower> lowers;
    std::string upper_path;
    store::UniqueFd upper;         ///< O_RDONLY, and locked for as long as it is open; none: read-only.
    store::UniqueFd work;          ///< Likewise.
    bool has_user_xattrs = false;  ///< Overlay's attributes are user.overlay.*.
};

/// Opens them. Throws store::Error, with a line that says which folder and why, for one that is missing, unreadable, no
/// folder, inside another one or the same, or that has `mountpoint` (a real path) in it where that cannot be; an upper
/// that is read-only, without extended attributes, or used by another mount (for which it waits up to 10 s); a work
/// folder that is on another file system.
MountFolders open_mount_folders(const StackMountOptions& options, const std::string& mountpoint);

}  // namespace lamina::unionfs
