#pragma once

#include "store/file.h"

#include <chrono>
#include <optional>
#include <string>
#include <utility>

namespace lamina::unionfs {

/// The lock that says a mount's server runs: an flock on <mount folder>/lock, free when the process is gone however it
/// went. The file stays.
class FolderLock {
public:
    /// Waits for a server that is about to end. Throws busy after `patience`.
    explicit FolderLock(const std::string& mount_folder, std::chrono::milliseconds patience = std::chrono::seconds(10));
    /// The lock that another process of the same mount has taken, by its descriptor.
    static FolderLock adopt(store::UniqueFd fd) { return FolderLock(std::move(fd)); }
    int fd() const noexcept { return fd_.get(); }
    /// For who reads the folder of a mount that no server runs on: keeps servers away. nullopt: one runs.
    static std::optional<FolderLock> try_shared(const std::string& mount_folder);

private:
    explicit FolderLock(store::UniqueFd fd) : fd_(std::move(fd)) {}
    store::UniqueFd fd_;
};

}  // namespace lamina::unionfs
