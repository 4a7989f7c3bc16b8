#pragma once

#include "support/kept_mount.h"

#include <random>
#include <set>
#include <string>
#include <vector>

namespace lamina::test {

/// Makes one random change a step, on new inodes and on those of small_view(). The same seed and the same mount state
/// give the same change, so that two mounts can be led along the same way.
class RandomUser {
public:
    explicit RandomUser(std::uint32_t seed) : random_(seed) {}
    /// False: the change was refused (not because of what it is, but by the disk).
    bool step(KeptMount& mount);

private:
    struct Name {
        unionfs::NodeId parent = 0;
        std::string name;
        unionfs::NodeId node = 0;
        std::uint32_t type = 0;
    };
    std::uint32_t pick(std::uint32_t below) { return random_() % below; }
    std::vector<Name> names(KeptMount& mount) const;
    unionfs::Result<void> change_names(KeptMount& mount, const std::vector<Name>& all);
    unionfs::Result<void> change_inode(KeptMount& mount, const Name& of);
    unionfs::Result<void> change_data(KeptMount& mount, const Name& of);

    std::mt19937 random_;
    unsigned counter_ = 0;
    std::set<unionfs::NodeId> removed_;  // Nobody can reach them any more.
};

}  // namespace lamina::test
