#pragma once

#include "store/digest.h"
#include "store/recipe.h"

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::store {

struct BuiltTree {
    TreeDigest digest;
    std::uint64_t file_bytes = 0;
    std::uint64_t inode_count = 0;
    std::uint64_t logical_bytes = 0;  ///< Sum of the sizes of all regular files, each inode once.
};

/// Merges layers, bottom first, by the rules of OCI image-spec layer.md ("Applying changesets"): directory over
/// directory replaces attributes, anything else replaces; whiteouts and opaque marks act on lower layers only, whatever
/// their place in the tar; the last of duplicate entries wins; missing parents are made (0755, root, mtime 0); a hard
/// link may point into a lower layer. A hard link to nothing, or to a directory, and an entry below a non-directory are
/// malformed. A parent that is a symbolic link is never followed: the directory replaces nothing and the entry is
/// refused.
///
/// Writes the tree to a file in `staging_folder`, synced, named by the digest's hex. Same layers, same bytes.
BuiltTree build_tree(const std::vector<std::unique_ptr<Recipe>>& layers, const std::string& staging_folder,
                     std::stop_token stop);

}  // namespace lamina::store
