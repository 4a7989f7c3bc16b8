#pragma once

#include "support/temp_dir.h"

#include <string>

namespace lamina::test {

/// A small ext4 on a loop device; needs root.
class SmallDisk {
public:
    SmallDisk(const TempDir& folder, unsigned mebibytes);
    ~SmallDisk();
    SmallDisk(const SmallDisk&) = delete;
    SmallDisk& operator=(const SmallDisk&) = delete;
    bool is_mounted() const { return is_mounted_; }
    const std::string& path() const { return path_; }
    void fill() const;   ///< To the last byte, with files beside the others.
    void empty() const;  ///< Of these files.

private:
    std::string path_;
    bool is_mounted_ = false;
};

}  // namespace lamina::test
