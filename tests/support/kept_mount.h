#pragma once

#include "fuse/mount_state.h"
#include "support/memory_view.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lamina::test {

/// A mount without a kernel: makes changes in the order that the union does (reserve, place, apply, append).
class KeptMount {
public:
    struct Options {
        unionfs::LogOptions log{.sync_interval = std::chrono::milliseconds(0)};  ///< No timer: nothing by the clock.
        std::uint8_t boot = 1;                                                   ///< Which boot of the machine it is.
        bool is_read_only = false;
    };
    KeptMount(const std::string& folder, const unionfs::View& view) : KeptMount(folder, view, Options()) {}
    KeptMount(const std::string& folder, const unionfs::View& view, const Options& options);

    unionfs::MountState& state() { return *state_; }
    unionfs::LogKeeper& keeper() { return *state_->log_keeper(); }
    const unionfs::ChangeSet& changes() const { return state_->changes(); }

    /// Any change: reserve, apply, append. The errno of what refused it.
    unionfs::Result<void> change(const unionfs::change::Change& change, std::uint64_t data_bytes = 0);
    unionfs::Result<unionfs::NodeId> make(unionfs::NodeId parent, const std::string& name, std::uint32_t mode,
                                          const std::string& target = "");
    unionfs::Result<void> write(unionfs::NodeId node, std::uint64_t offset_bytes, std::string_view data);
    unionfs::Result<void> remove(unionfs::NodeId parent, const std::string& name);
    unionfs::Result<void> rename(unionfs::NodeId from, const std::string& name, unionfs::NodeId to,
                                 const std::string& new_name);
    unionfs::NodeId node_of(unionfs::NodeId parent, const std::string& name) const;  ///< 0: absent.
    /// Own bytes of a file; what is not its own reads as '.'.
    std::string own_bytes(unionfs::NodeId node) const;

    static store::TreeDigest tree();

private:
    unionfs::Result<void> perform(const unionfs::change::Change& change);
    void release();

    std::unique_ptr<unionfs::MountState> state_;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> freed_;
    std::int64_t clock_ = 1'700'000'000;
};

/// Everything that a set of changes says, one line a fact, sorted; file data as it reads, wherever it lies. Inodes
/// without a name are left out. Two sets with equal text are the same mount.
std::string text_of(unionfs::MountState& state);

}  // namespace lamina::test
