#pragma once

#include <string>

namespace lamina::test {

/// A new folder below $TMPDIR (or /var/tmp: a disk, where xattrs and sync mean something) that removes itself.
class TempDir {
public:
    TempDir();
    explicit TempDir(const std::string& parent);  ///< Below `parent`, or as above where that cannot be written.
    ~TempDir();
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;
    const std::string& path() const noexcept { return path_; }
    std::string operator/(const std::string& name) const { return path_ + "/" + name; }

private:
    std::string path_;
};

}  // namespace lamina::test
