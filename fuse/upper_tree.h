#pragma once

#include "fuse/change_set_records.h"
#include "fuse/stack_view.h"
#include "fuse/upper_calls.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace lamina::unionfs {

/// Where each inode lies in an upper directory and its work folder, now: by the view what lay there at mount time, by
/// the records (kKept) what has come there or moved since. Directories lie at their path in the union.
///
/// Under the union's lock, as all of the keeper's parts.
class UpperTree {
public:
    /// Places that are no folder of the upper, in the position of one: `work`/work/NAME and `work`/index/NAME.
    static constexpr NodeId kInWork = ~NodeId{0};
    static constexpr NodeId kInIndex = ~NodeId{1};
    struct Place {
        NodeId parent = 0;
        std::string name;
        bool operator==(const Place&) const = default;
    };

    /// `work`: the folder that workdir= names. Makes work/work and work/index in it, and empties the first. Throws.
    UpperTree(StackView& view, ChangeSet& changes, store::UniqueFd work);
    ~UpperTree();
    UpperTree(const UpperTree&) = delete;
    UpperTree& operator=(const UpperTree&) = delete;

    StackView& view() const noexcept { return view_; }
    ChangeSet::Records& records() const noexcept { return records_; }
    std::string mark(std::string_view suffix) const { return view_.overlay_xattrs().name(suffix); }

    std::optional<Place> place(NodeId node) const;  ///< nullopt: not in the upper. The root: {0, ""}.
    bool is_kept(NodeId node) const { return place(node).has_value(); }
    Result<std::shared_ptr<const store::UniqueFd>> folder(NodeId directory) const;  ///< ENOENT: not in the upper.
    Result<Spot> spot(const Place& place) const;
    Result<Spot> spot(NodeId node) const;  ///< Of what is no directory. ENOENT: not in the upper.
    Result<Spot> spot(NodeId directory, std::string_view name) const;
    Result<UpperInode> inode(NodeId node) const;  ///< To change its attributes.
    Result<struct statx> status(NodeId node) const;

    /// Whether the mount keeps owner and mode of such an inode in an attribute beside it (override_stat), not as its
    /// own. It then keeps what it was made with, so that a server without privilege can work on it.
    bool keeps_stat_beside(std::uint32_t mode) const {
        return !view_.override_stat_xattr().empty() && (S_ISREG(mode) || S_ISDIR(mode));
    }
    Result<void> put_stat_beside(const UpperInode& inode, const Owner& owner, std::uint32_t mode) const;

    /// Whether something of below would show under a name that is not in the upper.
    Result<bool> shows_below(NodeId directory, std::string_view name) const {
        return directory >= kFirstNewNode ? Result<bool>(false) : view_.shows_below(directory, name);
    }

    /// Records where a node lies from now on; nullopt: not in the upper any more. A transaction of its own, or a part
    /// of the open one.
    /// `has_data_below`: a file's bytes are still the view's.
    Result<void> put(NodeId node, const std::optional<Place>& place, bool has_data_below = false);
    /// Of what the view says that it lies in the upper: puts that into the records, with what the view knows only as
    /// long as the inode's file stays as and where it is. Before the first change of such an inode.
    Result<void> own(NodeId node);

    bool has_data_below(NodeId node) const;  ///< Is in the upper, but its bytes are not (metacopy).
    Result<void> data_is_whole(NodeId node);

    static std::string work_name(NodeId node);
    Spot work(std::string name) const { return {work_, std::move(name)}; }
    Spot index(std::string name) const { return {index_, std::move(name)}; }
    /// Where index/ has, or would have, a file that has several names below; nullopt: such a file it is not, or there
    /// are no file handles.
    std::optional<std::string> index_name(NodeId node) const;
    Spot new_work() { return work("t" + std::to_string(++counter_)); }  ///< A free name.

    bool is_whiteout(const Spot& spot) const;
    Result<bool> is_empty(const Spot& folder) const;
    void clear_folder(const Spot& folder) const noexcept;  ///< Removes it with what is in it; what fails stays.

private:
    void clear_work() const;

    StackView& view_;
    ChangeSet::Records& records_;
    std::shared_ptr<const store::UniqueFd> work_;
    std::shared_ptr<const store::UniqueFd> index_;
    std::uint64_t counter_ = 0;
};

}  // namespace lamina::unionfs
