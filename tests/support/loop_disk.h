#pragma once

#include "support/temp_dir.h"

#include <string>

namespace lamina::test {

/// A small ext4 file system in a file, mounted so that it writes nothing back by itself. Root only.
class LoopDisk {
public:
    /// False: no root, no loop devices, or no mkfs.ext4; a test should say so and return.
    static bool is_possible();
    explicit LoopDisk(unsigned size_megabytes);
    explicit LoopDisk(const std::string& image_file);  ///< As it was left: its journal is replayed.
    ~LoopDisk();
    LoopDisk(const LoopDisk&) = delete;
    LoopDisk& operator=(const LoopDisk&) = delete;
    const std::string& path() const noexcept { return mount_; }
    /// What a power cut now would leave, as a new image file.
    std::string power_cut(const std::string& target) const;

private:
    void mount();
    TempDir folder_;
    std::string image_;
    std::string mount_;
};

}  // namespace lamina::test
