#pragma once

#include "store/image_tree.h"

#include <string_view>

namespace lamina::store {

/// The inode that a path of an image means, as a process with the image as its root would find it: symbolic links are
/// followed inside the tree (also the last one), ".." stops at the root, 40 links at most. Throws not_found (also for a
/// link that leads nowhere) and malformed (not a directory, too many links, path over 4096 bytes), naming the path.
TreeIno resolve_path(const ImageTree& tree, std::string_view path);

/// The same, but of a last component that is a link the link itself.
TreeIno resolve_path_no_follow(const ImageTree& tree, std::string_view path);

}  // namespace lamina::store
