#pragma once

#include "store/file.h"

#include <chrono>
#include <string>

namespace lamina::unionfs {

/// The lock that says a mount's server runs: an flock on <mount folder>/lock, free when the process is gone however it
/// went. The file stays.
class FolderLock {
public:
    /// Waits for a server that is about to end. Throws busy after `patience`.
    explicit FolderLock(const std::string& mount_folder, std::chrono::milliseconds patience = std::chrono::seconds(10));

private:
    store::UniqueFd fd_;
};

}  // namespace lamina::unionfs
