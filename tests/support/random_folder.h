#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace lamina::test {

/// Changes a folder at random with system calls, few names in few directories so that they meet. What a call refuses is
/// left as it is.
class RandomFolder {
public:
    RandomFolder(std::string root, std::uint32_t seed, bool makes_links = true)
        : root_(std::move(root)), random_(seed), makes_links_(makes_links) {}
    void change(int steps);
    /// Whiteouts and opaque marks as the kernel's overlayfs has them: for a folder that will be a lower.
    void add_marks(int count);

private:
    std::uint32_t pick(std::uint32_t below) { return random_() % below; }
    std::string path(int depth);
    std::string any_path() { return path(1 + static_cast<int>(pick(3))); }
    std::string existing();
    void step();
    void change_names(std::uint32_t kind);
    void change_inode(std::uint32_t kind);
    void write_file(const std::string& at, bool appends);

    std::string root_;
    std::mt19937 random_;
    bool makes_links_;
};

}  // namespace lamina::test
