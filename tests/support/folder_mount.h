#pragma once

#include "support/temp_dir.h"

#include <string>

namespace lamina::test {

/// lamina-fuse over folders that a test has filled before start(): `layer_count` lowers, the first on top, an upper and
/// a work folder, all in a new folder below `disk` (empty: as TempDir). Needs root. Unmounts by force when it is
/// destroyed. Throws std::runtime_error where a mount cannot begin or end.
class FolderMount {
public:
    explicit FolderMount(unsigned layer_count, const std::string& disk = {});
    ~FolderMount();
    FolderMount(const FolderMount&) = delete;
    FolderMount& operator=(const FolderMount&) = delete;

    std::string layer(unsigned number) const { return folder_ / "layer" + std::to_string(number); }
    std::string upper() const { return folder_ / "upper"; }
    std::string mountpoint() const { return folder_ / "mnt"; }
    std::string options() const;  ///< lowerdir=,upperdir=,workdir= as overlayfs takes them too.
    void start(const std::string& more_options = "");
    void stop();  ///< umount(2): the upper is at rest when the server is gone, which start() waits for.

private:
    TempDir folder_;
    unsigned layer_count_;
};

}  // namespace lamina::test
