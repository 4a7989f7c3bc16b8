#pragma once

#include "fuse/view.h"

#include <string>

namespace lamina::test {

struct ManifestOptions {
    bool has_numbers = true;  ///< Inode numbers: where the other side's come from the same place.
    bool has_blocks = true;
    bool has_data_map = true;  ///< Where data and holes are.
};

/// All that programs see of a tree, a line for each name, in order of paths: type, mode, owner, size, times, links of
/// files, number (also the one in the listing), target, content, xattrs. The same text for a view and for a folder that
/// is mounted, so that they can be compared. What cannot be read has the errno in its line.
std::string manifest_of(const unionfs::View& view, const ManifestOptions& options = {});
std::string manifest_of(const std::string& folder, const ManifestOptions& options = {});
/// The first lines that differ, for a message; empty: none.
std::string first_difference(const std::string& one, const std::string& other);

}  // namespace lamina::test
