#pragma once

#include "support/union_fixture.h"

#include <string>
#include <vector>

namespace lamina::test {

/// What a tree shows, a line for each name, sorted: type, mode, owner, links, size, times, content, xattrs, which names
/// are one inode. Of two trees that show the same the lines are equal.
struct UnionManifestOptions {
    bool has_times = true;     ///< mtime.
    bool has_numbers = false;  ///< st_ino; else only which names share one.
};
std::vector<std::string> union_manifest(UnionPaths& at, UnionManifestOptions options = {});
std::vector<std::string> folder_manifest(const std::string& folder, UnionManifestOptions options = {});
/// Lines of one that the other has not, to show in a test.
std::string difference(const std::vector<std::string>& left, const std::vector<std::string>& right);

}  // namespace lamina::test
