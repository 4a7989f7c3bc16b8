#include "fuse/change_walk.h"

#include "fuse/change_set_records.h"

namespace lamina::unionfs {
namespace {

ChangedNode changed_node_of(const ChangeSet::Records& records, const InodeRecord& inode) {
    const auto view_size = [&]() -> std::uint64_t {
        if (inode.is_new() || !S_ISREG(inode.mode)) return 0;
        const auto below = records.view().attributes(inode.node);
        return below ? below->size_bytes : inode.view_size_bytes;
    };
    const bool is_file = S_ISREG(inode.mode);
    return {
        .attributes = records.attributes(inode),
        .link_target = inode.link_target ? records.arena().get(inode.link_target).text() : std::string_view(),
        .view_size_bytes = inode.view_size_bytes,
        .is_new = inode.is_new(),
        .has_own_data = is_file && (inode.is_new() || inode.tree.item_count > 0 ||
                                    inode.view_size_bytes != view_size() || inode.size_bytes != inode.view_size_bytes),
        .has_own_xattrs = (inode.flags & InodeRecord::kOwnXattrs) != 0};
}

void emit_extents(const ChangeSet::Records& records, const InodeRecord& inode,
                  const std::function<void(const ChangedExtent&)>& emit) {
    if (!S_ISREG(inode.mode)) return;
    records.extents(inode).for_each([&](const Extent& extent) {
        emit({.node = inode.node,
              .offset_bytes = extent.offset_bytes,
              .size_bytes = extent.size_bytes,
              .extent_offset_bytes = extent.extent_offset_bytes,
              .is_hole = extent.is_hole});
    });
}

}  // namespace

void for_each_changed_name(const ChangeSet& changes, NodeId directory,
                           const std::function<void(const ChangedName&)>& emit) {
    const ChangeSet::Records& records = changes.records();
    const InodeRecord* const inode = records.inode(directory);
    if (!inode || !inode->is_directory()) return;
    for (ArenaTree::Cursor at(records.names_of(*inode), 0); at.get(); at.next()) {
        const auto& name = records.arena().get(Ref<NameRecord>{static_cast<std::uint32_t>(at.get()->first)});
        emit({.name = name.name(), .node = name.node, .type = name.type, .is_in_view = name.is_in_view()});
    }
}

void for_each_changed_node(const ChangeSet& changes, const std::function<void(const ChangedNode&)>& emit) {
    const ChangeSet::Records& records = changes.records();
    records.inodes().for_each([&](Ref<InodeRecord> ref) { emit(changed_node_of(records, records.arena().get(ref))); });
}

std::optional<ChangedNode> changed_node(const ChangeSet& changes, NodeId node) {
    const InodeRecord* const inode = changes.records().inode(node);
    return inode ? std::optional(changed_node_of(changes.records(), *inode)) : std::nullopt;
}

void for_each_extent(const ChangeSet& changes, NodeId node, const std::function<void(const ChangedExtent&)>& emit) {
    if (const InodeRecord* const inode = changes.records().inode(node)) emit_extents(changes.records(), *inode, emit);
}

void for_each_extent(const ChangeSet& changes, const std::function<void(const ChangedExtent&)>& emit) {
    const ChangeSet::Records& records = changes.records();
    records.inodes().for_each([&](Ref<InodeRecord> ref) { emit_extents(records, records.arena().get(ref), emit); });
}

void for_each_own_xattr(const ChangeSet& changes, NodeId node,
                        const std::function<void(std::string_view name, std::string_view value)>& emit) {
    const ChangeSet::Records& records = changes.records();
    const InodeRecord* const inode = records.inode(node);
    if (!inode || !(inode->flags & InodeRecord::kOwnXattrs)) return;
    for (Ref<XattrRecord> at = inode->xattrs; at; at = records.arena().get(at).next)
        emit(records.arena().get(at).name(), records.arena().get(at).value());
}

Result<std::optional<NodeId>> find_name(const ChangeSet& changes, NodeId directory, std::string_view name) {
    const auto found = changes.records().resolve(directory, name);
    if (!found) return std::unexpected(found.error());
    return found->node == 0 ? std::nullopt : std::optional(found->node);
}

Result<Attributes> merged_attributes(const ChangeSet& changes, NodeId node) {
    return changes.records().attributes(node);
}

Result<NodeId> parent_of(const ChangeSet& changes, NodeId directory) {
    return changes.records().parent(directory);
}

}  // namespace lamina::unionfs
