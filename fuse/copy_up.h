#pragma once

#include "fuse/upper_tree.h"

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>

namespace lamina::unionfs {

/// Brings inodes of below into the upper, so that they can be changed there. A copy is built in the work folder, whole
/// with all its attributes, and gets its name in one step; nobody can see that it happened, for the times of the folder
/// it comes into are put back. A file with several names below is linked into index/ too, as overlayfs does it with
/// index=on, so that its other names mean the copy.
///
/// Functions do nothing for what lies in the upper already. An error leaves at most folders that were copied.
class CopyUp {
public:
    struct Options {
        bool is_volatile = false;     ///< Copies are not synced before they get their name.
        bool makes_metacopy = false;  ///< inode() leaves the bytes of files below.
    };
    CopyUp(UpperTree& tree, Options options) : tree_(tree), options_(options) {}

    /// The directory and all above it. Its descriptor.
    Result<std::shared_ptr<const store::UniqueFd>> folder(NodeId directory);
    /// `size_limit_bytes`: of a file, what lies behind it is not copied: the copy is cut there.
    static constexpr std::uint64_t kWhole = std::numeric_limits<std::uint64_t>::max();
    Result<void> node(NodeId node, std::uint64_t size_limit_bytes = kWhole);
    /// For a change of its attributes: a file's bytes may stay below.
    Result<void> inode(NodeId node);
    /// An inode under one of its names, so that this name is there in the upper. Its place.
    Result<Spot> name(NodeId node, NodeId parent, std::string_view name);

    /// Owner, mode, xattrs and times of an inode as the union shows them, for a copy of it.
    Result<void> copy_attributes(NodeId node, const UpperInode& to) const;
    /// Makes the folder's entries find their inode numbers at their origin. Before one comes that has one.
    void mark_impure(NodeId directory);
    /// For an inode in index/ that has a link count of its own in the union: says how this follows from the link count
    /// in the upper ('U') or below ('L'), so that it stays right when a name comes or goes in the upper.
    Result<void> mark_links(NodeId node, char relative_to) const;
    bool can_index(NodeId node) const { return tree_.index_name(node).has_value(); }

private:
    Result<void> copy_folder(NodeId directory);
    /// What comes into the upper of a file's bytes.
    struct Bytes {
        std::uint64_t limit = kWhole;
        bool stay_below = false;
    };
    Result<void> bring(NodeId node, const Bytes& bytes);
    Result<void> check_room(const Attributes& inode, const std::optional<UpperTree::Place>& at,
                            const Bytes& bytes) const;
    Result<void> give_names(NodeId node, const Spot& built, const std::optional<Spot>& at,
                            const std::optional<UpperTree::Place>& visible, const Bytes& bytes);
    Result<bool> can_stay_below(NodeId node) const;
    Result<void> build(NodeId node, const Spot& at, const Bytes& bytes) const;
    Result<void> build_file(NodeId node, const Spot& at, const Bytes& bytes) const;
    Result<void> copy_data(NodeId node, int to, std::uint64_t size_bytes) const;
    Result<void> copy_segment(int from, int to, const struct DataRange& range) const;
    Result<void> copy_from_view(NodeId node, int to, std::uint64_t size_bytes) const;
    Result<void> complete_data(NodeId node);
    Result<void> mark_origin(NodeId node, const UpperInode& inode) const;
    bool is_indexed(NodeId node) const;
    Result<std::optional<UpperTree::Place>> visible_name(NodeId node) const;
    Result<void> put_quietly(const Spot& built, NodeId parent, const Spot& at, bool is_link);

    UpperTree& tree_;
    const Options options_;
    std::unordered_set<NodeId> impure_;  // Directories that are marked so.
};

}  // namespace lamina::unionfs
