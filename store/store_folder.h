#pragma once

#include "store/file.h"
#include "store/store_core.h"

#include <string>

namespace lamina::store {

/// A store's folder, held by this process for as long as this lives (flock on <root>/lock).
class StoreFolder {
public:
    /// Makes the folder when it is missing or empty. busy: another process has it; unsupported: another version wrote
    /// it; malformed: something else lies there, or the path has a character that mount options cannot carry.
    static StoreFolder open(const std::string& root);
    const StorePaths& paths() const noexcept { return paths_; }

private:
    StoreFolder(StorePaths paths, UniqueFd lock) : paths_(std::move(paths)), lock_(std::move(lock)) {}
    StorePaths paths_;
    UniqueFd lock_;
};

}  // namespace lamina::store
