#pragma once

#include "store/image_tree.h"
#include "support/fake_recipe.h"

#include <string>
#include <string_view>
#include <vector>

namespace lamina::test {

/// Layers and trees in a few characters, for tables. Words, separated by spaces:
///
///     d/      a directory, mode 0750         d/:700  one of another mode      /:700   the root
///     f=text  a file (f= an empty one)       l@target  a symbolic link        b~a     a hard link to a
///     p|      a fifo                         anything else: an empty file of that name (whiteouts, opaque marks)
///
/// A tree comes back in the same words, by path, with `*n` after a file or link of n > 1 names, `b~a` for the second
/// name of what was listed as `a`, and `d/!` for a directory that nobody described (0755, root, time 0).
Layer layer_of(std::string_view text);
std::string text_of(const store::ImageTree& tree);

/// Builds the layers into `folder` and opens the tree.
std::shared_ptr<const store::ImageTree> built_tree(const std::vector<Layer>& layers, const std::string& folder);

}  // namespace lamina::test
