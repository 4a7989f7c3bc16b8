#pragma once

#include "fuse/change_set.h"

#include <algorithm>
#include <string>
#include <vector>

namespace lamina::test {

/// The state of a change set as text that compares equal when the states are.
inline std::vector<std::string> dump(const unionfs::ChangeSet& changes) {
    std::vector<std::string> all;
    changes.checkpoint([&](const unionfs::change::Change& change) {
        std::vector<std::byte> bytes;
        unionfs::change::encode(change, bytes);
        all.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    });
    std::ranges::sort(all);
    return all;
}

/// Applies the state of one set to an empty one; 0, or the first error.
inline int copy_state(const unionfs::ChangeSet& from, unionfs::ChangeSet& to) {
    int error = 0;
    from.checkpoint([&](const unionfs::change::Change& change) {
        const auto applied = to.apply(change);
        if (!applied && error == 0) error = static_cast<int>(applied.error());
    });
    return error;
}

}  // namespace lamina::test
