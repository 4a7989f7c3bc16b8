#pragma once

#include "fuse/log_format.h"
#include "fuse/log_reader.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

/// The state of a mount as one file, from which a new log goes on (fuse/FORMAT.md, "Checkpoint"). Throws store::Error.
namespace lamina::unionfs {

struct CheckpointName {
    std::string folder;
    store::TreeDigest tree;
    std::uint64_t generation = 1;  ///< Of the log that continues it.
    log_format::BootId boot{};
};

/// Writes what `state` emits to a new file and makes its content durable. Returns its size.
std::uint64_t write_checkpoint_file(
    const std::string& path, const CheckpointName& name,
    const std::function<void(const std::function<void(const change::Change&)>&)>& state);

struct CheckpointRead {
    std::uint64_t generation = 1;
    std::uint64_t size_bytes = 0;
};
/// Applies the whole checkpoint of a mount folder; nullopt: there is none. A checkpoint is whole or corrupt: what was
/// applied before the damage was found must be thrown away with the error.
std::optional<CheckpointRead> read_checkpoint(const std::string& path, const store::TreeDigest& tree,
                                              const ApplyChange& apply);

}  // namespace lamina::unionfs
