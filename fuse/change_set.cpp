// The change set's outside: transactions around the appliers of change_apply.cpp, and the state as Put changes. The
// freed callback comes after the commit: what was undone has freed nothing.
#include "fuse/change_set.h"

#include "fuse/change_apply.h"
#include "fuse/change_set_records.h"
#include "fuse/request_seal.h"

#include <algorithm>
#include <unordered_set>

namespace lamina::unionfs {
namespace {

constexpr std::uint64_t kReservedBytes = std::uint64_t{256} << 10;  // More than any change of records alone takes.
constexpr std::uint64_t kLogBytesPerExtent = 1024;
constexpr std::uint64_t kMaxCountedExtents = std::uint64_t{1} << 19;

/// Extents that a change may take apart: each costs room in the undo log.
std::uint64_t touched_extents(const ChangeSet::Records& records, const change::Change& change) {
    const auto count = [&](NodeId node, std::uint64_t begin, std::uint64_t end) -> std::uint64_t {
        const InodeRecord* const inode = records.inode(node);
        if (!inode || !S_ISREG(inode->mode)) return 0;
        return records.extents(*inode).count_in(begin, end, kMaxCountedExtents);
    };
    if (const auto* const write = std::get_if<change::Write>(&change))
        return count(write->node, write->offset_bytes, write->offset_bytes + write->size_bytes);
    if (const auto* const zero = std::get_if<change::Zero>(&change))
        return count(zero->node, zero->offset_bytes, zero->offset_bytes + zero->size_bytes);
    if (const auto* const resize = std::get_if<change::Resize>(&change))
        return count(resize->node, resize->size_bytes, kMaxFileBytes);
    return 0;
}

}  // namespace

ChangeSet::ChangeSet(Arena& arena, const View& view) : records_(std::make_unique<Records>(arena, view)) {}
ChangeSet::~ChangeSet() = default;

void ChangeSet::on_freed(Freed freed) {
    records_->on_freed = std::move(freed);
}

Result<void> ChangeSet::reserve(const change::Change& change) {
    const Records& records = *records_;
    const std::uint64_t table_bytes =
        records.inodes().growth_bytes() + records.names().growth_bytes() + records.lookups().growth_bytes();
    const auto reserved = records.arena().reserve(
        kReservedBytes + table_bytes, kReservedBytes + touched_extents(records, change) * kLogBytesPerExtent);
    // What makes room must be possible in the last of it: there apply() itself says whether there was enough.
    const auto* const resize = std::get_if<change::Resize>(&change);
    if (!reserved && (std::holds_alternative<change::Remove>(change) || (resize && resize->size_bytes == 0))) return {};
    return reserved;
}

Result<void> ChangeSet::apply(const change::Change& change) {
    records_->freed().clear();
    try {
        Arena::Transaction transaction(records_->arena());
        ChangeApplier applier(*records_);
        if (const auto applied = std::visit(applier, change); !applied) return applied;
        if (applier.done_once()) RequestSeal::seal(records_->arena(), *applier.done_once());
        transaction.commit();
    } catch (const store::Error& error) {  // The arena is full: an answer, for the transaction has undone itself.
        return std::unexpected(errno_for(error.code()));
    }
    if (records_->on_freed)
        for (const FreedExtent& freed : records_->freed())
            records_->on_freed(freed.extent_offset_bytes, freed.size_bytes);
    return {};
}

NodeId ChangeSet::next_node() const {
    return records_->set().next_node;
}

void ChangeSet::drop_unnamed() {
    std::vector<NodeId> unnamed;
    records_->inodes().for_each([&](Ref<InodeRecord> ref) {
        const InodeRecord& inode = records_->arena().get(ref);
        if (inode.nlink == 0) unnamed.push_back(inode.node);
    });
    for (const NodeId node : unnamed) drop(node);
}

void ChangeSet::drop(NodeId node) {
    constexpr std::uint64_t kLogBytesPerItem = 256;
    constexpr std::uint64_t kDropBytes = std::uint64_t{32} << 10;
    const InodeRecord* const dropped = records_->inode(node);
    if (!dropped) return;
    const std::uint64_t log_bytes = kDropBytes + dropped->tree.item_count * kLogBytesPerItem;
    if (!records_->arena().reserve(0, log_bytes)) return;
    records_->freed().clear();
    {
        Arena::Transaction transaction(records_->arena());
        records_->drop_inode(records_->find_inode(node));
        transaction.commit();
    }
    if (records_->on_freed)
        for (const FreedExtent& freed : records_->freed())
            records_->on_freed(freed.extent_offset_bytes, freed.size_bytes);
}

ChangeSet::Counts ChangeSet::counts() const {
    Counts counts{.nodes = records_->inodes().size(),
                  .names = records_->names().size(),
                  .arena_bytes = records_->arena().size_bytes()};
    records_->inodes().for_each([&](Ref<InodeRecord> ref) {
        const InodeRecord& inode = records_->arena().get(ref);
        if (S_ISREG(inode.mode)) counts.extents += inode.tree.item_count;
    });
    return counts;
}

namespace {

using Emit = std::function<void(const change::Change&)>;

void emit_inode(const ChangeSet::Records& records, const InodeRecord& inode, const Emit& emit) {
    const Arena& arena = records.arena();
    const bool has_own_xattrs = (inode.flags & InodeRecord::kOwnXattrs) != 0;
    emit(change::PutNode{.attributes = records.attributes(inode),
                         .link_target = inode.link_target ? arena.get(inode.link_target).text() : std::string_view(),
                         .view_size_bytes = inode.view_size_bytes,
                         .has_own_xattrs = has_own_xattrs});
    if (has_own_xattrs) {
        std::vector<Ref<XattrRecord>> xattrs;
        for (Ref<XattrRecord> at = inode.xattrs; at; at = arena.get(at).next) xattrs.push_back(at);
        std::ranges::reverse(xattrs);  // Each is put in front of the others.
        for (const Ref<XattrRecord> at : xattrs)
            emit(change::PutXattr{.node = inode.node, .name = arena.get(at).name(), .value = arena.get(at).value()});
    }
    if (!S_ISREG(inode.mode)) return;
    records.extents(inode).for_each([&](const Extent& extent) {
        emit(change::PutExtent{.node = inode.node,
                               .offset_bytes = extent.offset_bytes,
                               .size_bytes = extent.size_bytes,
                               .extent_offset_bytes = extent.extent_offset_bytes,
                               .is_hole = extent.is_hole});
    });
}

void emit_names(const ChangeSet::Records& records, const InodeRecord& directory, const Emit& emit) {
    for (ArenaTree::Cursor at(records.names_of(directory), 0); at.get(); at.next()) {
        const auto& name = records.arena().get(Ref<NameRecord>{static_cast<std::uint32_t>(at.get()->first)});
        emit(change::PutName{.parent = directory.node, .name = name.name(), .node = name.node});
    }
}

}  // namespace

void ChangeSet::checkpoint(const Emit& emit) const {
    const Records& records = *records_;
    const Arena& arena = records.arena();
    emit(change::PutNextNode{.next = records.set().next_node});
    records.inodes().for_each([&](Ref<InodeRecord> ref) { emit_inode(records, arena.get(ref), emit); });
    // A folder's names come after its own name, so that the way up from each new name leads to the root.
    std::unordered_set<NodeId> done;
    std::vector<const InodeRecord*> way;
    records.inodes().for_each([&](Ref<InodeRecord> ref) {
        const InodeRecord* at = &arena.get(ref);
        if (!at->is_directory() || at->nlink == 0) return;
        NodeId node = at->node;
        while (done.insert(node).second) {
            if (const InodeRecord* const inode = records.inode(node)) way.push_back(inode);
            const auto parent = records.parent(node);
            if (!parent || *parent == 0) break;
            node = *parent;
        }
        for (; !way.empty(); way.pop_back()) emit_names(records, *way.back(), emit);
    });
}

}  // namespace lamina::unionfs
