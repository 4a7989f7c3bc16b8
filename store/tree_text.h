#pragma once

#include "store/image_tree.h"

#include <functional>
#include <string>

namespace lamina::store {

struct TreeTextOptions {
    bool with_chunks = false;  ///< A line for each part of each file.
};

/// Gives a tree to `line`, one inode or further name a line, in path order; for tools and tests. Inode numbers are left
/// out, so that the texts of two trees differ only where what a mount shows differs:
///
///     TYPE MODE UID:GID NLINK SIZE SECONDS.NANOSECONDS "PATH" [-> "TARGET"] [device 1:3] [data BYTES] [xattr "N"="V"]
///     h "PATH" = "FIRST PATH"
///
/// A directory is described once, so the text ends even when the file refers to itself. Throws as the tree does.
void describe_tree(const ImageTree& tree, const TreeTextOptions& options,
                   const std::function<void(const std::string&)>& line);

}  // namespace lamina::store
