// Finding, making and linking the records of a change set. A record of one of the view's inodes starts as a copy of
// its attributes; its names, bytes and xattrs stay the view's until they are changed. Names are found through one hash
// table over (folder, name), and listed through a tree for each folder, by sequence number.
#include "fuse/change_set_records.h"

#include "fuse/posix_acl.h"

#include <sys/random.h>

#include <algorithm>
#include <cstring>

namespace lamina::unionfs {
namespace {

std::uint32_t flag_of(std::string_view xattr_name) {
    if (xattr_name == kCapabilityXattr) return InodeRecord::kCapability;
    if (xattr_name == kAccessAclXattr) return InodeRecord::kAccessAcl;
    if (xattr_name == kDefaultAclXattr) return InodeRecord::kDefaultAcl;
    return 0;
}

template <class Record>
char* text_behind(Record& record) {
    return static_cast<char*>(static_cast<void*>(&record + 1));
}

}  // namespace

ChangeSet::Records::Records(Arena& arena, const View& view) : arena_(arena), view_(view) {
    if (arena.root() != 0) {
        if (set().version != SetRecord::kVersion)
            throw store::Error(store::Errc::unsupported, "the arena of the mount is of another version");
        return;
    }
    Arena::Transaction transaction(arena_);
    const auto ref = arena_.allocate<SetRecord>();
    SetRecord& fresh = arena_.fresh(ref);
    fresh.version = SetRecord::kVersion;
    if (::getrandom(&fresh.hash_seed, sizeof fresh.hash_seed, GRND_NONBLOCK) < 0) fresh.hash_seed = kFirstNewNode;
    fresh.next_node = kFirstNewNode;
    fresh.next_sequence = 1;
    arena_.set_root(ref.index);
    transaction.commit();
}

Ref<InodeRecord> ChangeSet::Records::find_inode(NodeId node) const {
    return inodes().find(mix(node), [node](const InodeRecord& record) { return record.node == node; });
}

const InodeRecord* ChangeSet::Records::inode(NodeId node) const {
    const Ref<InodeRecord> ref = find_inode(node);
    return ref ? &arena_.get(ref) : nullptr;
}

Attributes ChangeSet::Records::attributes(const InodeRecord& inode) const {
    const std::uint64_t allocated = inode.own_bytes + std::min(inode.view_allocated_bytes, inode.view_size_bytes);
    const std::uint64_t whole = inode.size_bytes + 511;
    return {.node = inode.node,
            .number = inode.number,
            .mode = inode.mode,
            .uid = inode.uid,
            .gid = inode.gid,
            .nlink = inode.nlink,
            .size_bytes = inode.size_bytes,
            .allocated_bytes = std::min(allocated + 511, whole) / 512 * 512,
            .device = inode.device,
            .atime = inode.atime,
            .mtime = inode.mtime,
            .ctime = inode.ctime,
            .birth = inode.birth};
}

Result<Attributes> ChangeSet::Records::attributes(NodeId node) const {
    if (const InodeRecord* const record = inode(node)) return attributes(*record);
    if (node == 0 || node >= kFirstNewNode) return fail(ENOENT);
    return view_.attributes(node);
}

Result<std::uint64_t> ChangeSet::Records::number(NodeId node) const {
    const auto found = attributes(node);
    if (!found) return std::unexpected(found.error());
    return found->shown_number();
}

Result<NodeId> ChangeSet::Records::parent(NodeId directory) const {
    if (const InodeRecord* const record = inode(directory)) return record->parent;
    if (directory == 0 || directory >= kFirstNewNode) return fail(ENOENT);
    return view_.parent(directory);
}

Ref<InodeRecord> ChangeSet::Records::make_inode(NodeId node) {
    const auto ref = arena_.allocate<InodeRecord>();
    arena_.fresh(ref).node = node;
    inodes().insert(ref);
    return ref;
}

Result<Ref<InodeRecord>> ChangeSet::Records::own_inode(NodeId node) {
    if (const Ref<InodeRecord> found = find_inode(node)) return found;
    if (node == 0 || node >= kFirstNewNode) return fail(ENOENT);
    const auto below = view_.attributes(node);
    if (!below) return std::unexpected(below.error());
    const auto view_xattrs = view_.xattrs(node);
    if (!view_xattrs) return std::unexpected(view_xattrs.error());
    NodeId parent = 0;
    if (S_ISDIR(below->mode)) {
        const auto found = view_.parent(node);
        if (!found) return std::unexpected(found.error());
        parent = *found;
    }
    const Ref<InodeRecord> ref = make_inode(node);
    InodeRecord& record = arena_.fresh(ref);
    record.number = below->number;
    record.mode = below->mode;
    record.uid = below->uid;
    record.gid = below->gid;
    record.nlink = below->nlink;
    record.size_bytes = below->size_bytes;
    record.device = below->device;
    record.atime = below->atime;
    record.mtime = below->mtime;
    record.ctime = below->ctime;
    record.birth = below->birth;
    record.view_size_bytes = S_ISREG(below->mode) ? below->size_bytes : 0;
    record.view_allocated_bytes = below->allocated_bytes;
    record.parent = parent;
    for (const auto& [name, value] : *view_xattrs) record.flags |= flag_of(name);
    return ref;
}

void ChangeSet::Records::drop_inode(Ref<InodeRecord> inode) {
    const InodeRecord& record = arena_.get(inode);
    if (record.is_directory()) {
        drop_names(record);
    } else if (record.tree.node != 0) {
        remove_extents(inode, 0, kMaxFileBytes);
    }
    drop_xattrs(inode);
    if (record.link_target) count_metadata(-static_cast<std::int64_t>(arena_.get(record.link_target).size_bytes));
    drop_text(record.link_target);
    drop_text(record.kept_name);
    inodes().erase(inode);
    arena_.release(inode);
}

void ChangeSet::Records::drop_text(const Ref<TextRecord>& text) {
    if (!text) return;
    arena_.release(text, arena_.get(text).size_bytes);
    arena_.set(text, Ref<TextRecord>{});
}

void ChangeSet::Records::set_link_target(Ref<InodeRecord> inode, std::string_view target) {
    const auto text = arena_.allocate<TextRecord>(target.size());
    TextRecord& fresh = arena_.fresh(text);
    fresh.size_bytes = static_cast<std::uint32_t>(target.size());
    std::ranges::copy(target, text_behind(fresh));
    arena_.set(arena_.get(inode).link_target, text);
    arena_.set(arena_.get(inode).size_bytes, target.size());
    count_metadata(static_cast<std::int64_t>(target.size()));
}

void ChangeSet::Records::count_metadata(std::int64_t change_bytes) {
    arena_.set(set().metadata_bytes, set().metadata_bytes + static_cast<std::uint64_t>(change_bytes));
}

void ChangeSet::Records::set_kept(Ref<InodeRecord> inode, NodeId parent, std::string_view name) {
    drop_text(arena_.get(inode).kept_name);
    InodeRecord& record = arena_.edit(inode);
    record.flags &= ~InodeRecord::kKept;
    record.kept_parent = parent;
    if (name.empty()) return;
    const auto text = arena_.allocate<TextRecord>(name.size());
    arena_.fresh(text).size_bytes = static_cast<std::uint32_t>(name.size());
    std::ranges::copy(name, text_behind(arena_.fresh(text)));
    record.flags |= InodeRecord::kKept;
    record.kept_name = text;
}

void ChangeSet::Records::set_data_below(Ref<InodeRecord> inode, bool is_below) {
    const std::uint32_t others = arena_.get(inode).flags & ~InodeRecord::kDataBelow;
    arena_.set(arena_.get(inode).flags, others | (is_below ? InodeRecord::kDataBelow : 0));
}

void ChangeSet::Records::set_number(NodeId node, std::uint64_t number) {
    const Ref<InodeRecord> found = find_inode(node);
    if (!found) return;
    Arena::Transaction transaction(arena_);
    arena_.set(arena_.get(found).number, number);
    transaction.commit();
}

Result<std::uint64_t> ChangeSet::Records::entry_count(NodeId directory) const {
    std::uint64_t below = 0;
    if (directory < kFirstNewNode) {
        const auto count = view_.entry_count(directory);
        if (!count) return std::unexpected(count.error());
        below = *count;
    }
    const InodeRecord* const record = inode(directory);
    return record ? below - record->whiteout_count + record->added_count : below;
}

// Names.

std::uint32_t ChangeSet::Records::name_hash(NodeId directory, std::string_view name) const noexcept {
    std::uint64_t hash = mix(directory ^ set().hash_seed) + name.size();
    while (!name.empty()) {
        std::uint64_t word = 0;
        const std::size_t taken = std::min(name.size(), sizeof word);
        std::memcpy(&word, name.data(), taken);
        hash = mix(hash ^ word) * 31;
        name.remove_prefix(taken);
    }
    return static_cast<std::uint32_t>(hash ^ (hash >> 32));
}

Ref<NameRecord> ChangeSet::Records::find_name(NodeId directory, std::string_view name) const {
    return names().find(name_hash(directory, name),
                        [&](const NameRecord& record) { return record.parent == directory && record.name() == name; });
}

Result<Resolved> ChangeSet::Records::resolve(NodeId directory, std::string_view name) const {
    if (const Ref<NameRecord> ref = find_name(directory, name)) {
        const NameRecord& record = arena_.get(ref);
        return Resolved{.node = record.node, .type = record.type, .is_in_view = record.is_in_view(), .record = ref};
    }
    if (directory >= kFirstNewNode) return Resolved{};
    const auto below = view_.lookup(directory, name);
    if (!below) return std::unexpected(below.error());
    if (!*below) return Resolved{};
    return Resolved{.node = (*below)->node, .type = (*below)->type, .is_in_view = true, .record = {}};
}

void ChangeSet::Records::add_name(Ref<InodeRecord> directory, std::string_view name, bool is_in_view,
                                  NameTarget target) {
    const auto ref = arena_.allocate<NameRecord>(name.size());
    NameRecord& record = arena_.fresh(ref);
    record.parent = arena_.get(directory).node;
    record.node = target.node;
    record.type = target.type;
    record.sequence = set().next_sequence | (is_in_view ? NameRecord::kInView : 0);
    record.name_hash = name_hash(record.parent, name);
    record.name_bytes = static_cast<std::uint32_t>(name.size());
    std::ranges::copy(name, text_behind(record));
    arena_.set(set().next_sequence, set().next_sequence + 1);
    names().insert(ref);
    count_metadata(static_cast<std::int64_t>(name.size()));
    names_of(arena_.get(directory)).insert({.key = record.sequence, .first = ref.index, .second = 0});
}

void ChangeSet::Records::drop_name(Ref<NameRecord> name) {
    names().erase(name);
    count_metadata(-static_cast<std::int64_t>(arena_.get(name).name_bytes));
    arena_.release(name, arena_.get(name).name_bytes);
}

void ChangeSet::Records::drop_names(const InodeRecord& directory) {
    std::int64_t dropped_bytes = 0;
    for (ArenaTree::Cursor at(names_of(directory), 0); at.get(); at.next()) {
        const Ref<NameRecord> name{static_cast<std::uint32_t>(at.get()->first)};
        dropped_bytes += arena_.get(name).name_bytes;
        names().erase(name);
        arena_.release(name, arena_.get(name).name_bytes);
    }
    names_of(directory).clear();
    if (dropped_bytes != 0) count_metadata(-dropped_bytes);
}

Result<void> ChangeSet::Records::set_name(Ref<InodeRecord> directory, std::string_view name, const Resolved& old,
                                          NameTarget target) {
    const InodeRecord& record = arena_.get(directory);
    const bool was_whiteout = old.record && old.node == 0;
    if (was_whiteout) arena_.set(record.whiteout_count, record.whiteout_count - 1);
    if (!old.record) {
        add_name(directory, name, old.is_in_view, target);
        if (!old.is_in_view) arena_.set(record.added_count, record.added_count + 1);
        return {};
    }
    if (old.is_in_view && target.node < kFirstNewNode) {  // What the view itself says needs no record.
        const auto below = view_.lookup(record.node, name);
        if (!below) return std::unexpected(below.error());
        if (*below && (*below)->node == target.node) {
            names_of(record).erase(arena_.get(old.record).sequence);
            drop_name(old.record);
            return {};
        }
    }
    NameRecord& changed = arena_.edit(old.record);
    changed.node = target.node;
    changed.type = target.type;
    return {};
}

void ChangeSet::Records::clear_name(Ref<InodeRecord> directory, std::string_view name, const Resolved& old) {
    const InodeRecord& record = arena_.get(directory);
    if (!old.is_in_view) {
        names_of(record).erase(arena_.get(old.record).sequence);
        drop_name(old.record);
        arena_.set(record.added_count, record.added_count - 1);
        return;
    }
    arena_.set(record.whiteout_count, record.whiteout_count + 1);
    if (old.record) {
        NameRecord& changed = arena_.edit(old.record);
        changed.node = 0;
        changed.type = 0;
    } else {
        add_name(directory, name, true, {});
    }
}

// Xattrs.

Result<std::vector<std::pair<std::string_view, std::string_view>>> ChangeSet::Records::xattrs(NodeId node) const {
    const InodeRecord* const record = inode(node);
    if (!record || !(record->flags & InodeRecord::kOwnXattrs)) {
        if (node == 0 || node >= kFirstNewNode) return fail(ENOENT);
        return view_.xattrs(node);
    }
    std::vector<std::pair<std::string_view, std::string_view>> all;
    for (Ref<XattrRecord> at = record->xattrs; at; at = arena_.get(at).next)
        all.emplace_back(arena_.get(at).name(), arena_.get(at).value());
    return all;
}

Result<std::optional<std::string_view>> ChangeSet::Records::xattr(NodeId node, std::string_view name) const {
    const auto all = xattrs(node);
    if (!all) return std::unexpected(all.error());
    const auto found = std::ranges::find(*all, name, [](const auto& xattr) { return xattr.first; });
    if (found == all->end()) return std::nullopt;
    return found->second;
}

/// Whether an xattr that has a flag is there; asks the view only about inodes without a record.
Result<bool> ChangeSet::Records::has_xattr(NodeId node, std::uint32_t flag, std::string_view name) const {
    if (const InodeRecord* const record = inode(node)) return (record->flags & flag) != 0;
    const auto value = xattr(node, name);
    if (!value) return std::unexpected(value.error());
    return value->has_value();
}

void ChangeSet::Records::add_xattr(InodeRecord& inode, std::string_view name, std::string_view value) {
    const auto ref = arena_.allocate<XattrRecord>(name.size() + value.size());
    XattrRecord& record = arena_.fresh(ref);
    record.name_bytes = static_cast<std::uint32_t>(name.size());
    record.value_bytes = static_cast<std::uint32_t>(value.size());
    std::ranges::copy(value, std::ranges::copy(name, text_behind(record)).out);
    count_metadata(static_cast<std::int64_t>(name.size() + value.size()));
    record.next = inode.xattrs;
    inode.xattrs = ref;
    inode.flags |= InodeRecord::kOwnXattrs | flag_of(name);
}

Result<void> ChangeSet::Records::own_xattrs(Ref<InodeRecord> inode) {
    if (arena_.get(inode).flags & InodeRecord::kOwnXattrs) return {};
    const auto below = view_.xattrs(arena_.get(inode).node);
    if (!below) return std::unexpected(below.error());
    InodeRecord& record = arena_.edit(inode);
    constexpr std::uint32_t kOfTheKeeper = InodeRecord::kKept | InodeRecord::kDataBelow;
    record.flags = (record.flags & kOfTheKeeper) | InodeRecord::kOwnXattrs;
    for (auto at = below->rbegin(); at != below->rend(); ++at) add_xattr(record, at->first, at->second);
    return {};
}

Result<void> ChangeSet::Records::set_xattr(Ref<InodeRecord> inode, std::string_view name, std::string_view value) {
    const auto removed = remove_xattr(inode, name);
    if (!removed) return std::unexpected(removed.error());
    add_xattr(arena_.edit(inode), name, value);
    return {};
}

Result<bool> ChangeSet::Records::remove_xattr(Ref<InodeRecord> inode, std::string_view name) {
    if (const auto owned = own_xattrs(inode); !owned) return std::unexpected(owned.error());
    const InodeRecord& record = arena_.get(inode);
    const Ref<XattrRecord>* link = &record.xattrs;
    while (*link && arena_.get(*link).name() != name) link = &arena_.get(*link).next;
    if (!*link) return false;
    const Ref<XattrRecord> found = *link;
    arena_.set(*link, arena_.get(found).next);
    const std::uint32_t size_bytes = arena_.get(found).name_bytes + arena_.get(found).value_bytes;
    count_metadata(-static_cast<std::int64_t>(size_bytes));
    arena_.release(found, size_bytes);
    arena_.set(record.flags, record.flags & ~flag_of(name));
    return true;
}

void ChangeSet::Records::drop_xattrs(Ref<InodeRecord> inode) {
    std::int64_t dropped_bytes = 0;
    for (Ref<XattrRecord> at = arena_.get(inode).xattrs; at; at = arena_.get(at).next) {
        const std::uint32_t size_bytes = arena_.get(at).name_bytes + arena_.get(at).value_bytes;
        arena_.release(at, size_bytes);
        dropped_bytes += size_bytes;
    }
    if (dropped_bytes != 0) count_metadata(-dropped_bytes);
    arena_.set(arena_.get(inode).xattrs, Ref<XattrRecord>{});
}

// Extents.

void ChangeSet::Records::set_own_bytes(const InodeRecord& inode, std::int64_t change_bytes) {
    if (change_bytes == 0) return;
    const std::uint64_t own_bytes = inode.own_bytes + static_cast<std::uint64_t>(change_bytes);
    const std::uint64_t before = block_bytes(inode.own_bytes);
    if (block_bytes(own_bytes) != before)
        arena_.set(set().data_bytes, set().data_bytes + block_bytes(own_bytes) - before);
    arena_.set(inode.own_bytes, own_bytes);
}

void ChangeSet::Records::put_extent(Ref<InodeRecord> inode, const Extent& extent) {
    const InodeRecord& record = arena_.get(inode);
    Extents::Effect effect{.freed = &freed_};
    extents(record).put(extent, effect);
    set_own_bytes(record, effect.data_bytes);
}

void ChangeSet::Records::remove_extents(Ref<InodeRecord> inode, std::uint64_t begin, std::uint64_t end) {
    const InodeRecord& record = arena_.get(inode);
    Extents::Effect effect{.freed = &freed_};
    extents(record).remove(begin, end, effect);
    set_own_bytes(record, effect.data_bytes);
}

// Look-ups.

namespace {
auto is_node(NodeId node) {
    return [node](const LookupRecord& record) { return record.node == node; };
}
}  // namespace

void ChangeSet::Records::add_lookup(NodeId node) {
    Arena::Transaction transaction(arena_);
    if (const Ref<LookupRecord> found = lookups().find(mix(node), is_node(node))) {
        arena_.set(arena_.get(found).count, arena_.get(found).count + 1);
    } else {
        const auto ref = arena_.allocate<LookupRecord>();
        LookupRecord& record = arena_.fresh(ref);
        record.node = node;
        record.count = 1;
        lookups().insert(ref);
    }
    transaction.commit();
}

bool ChangeSet::Records::forget(NodeId node, std::uint64_t count) {
    const Ref<LookupRecord> found = lookups().find(mix(node), is_node(node));
    if (!found) return true;
    Arena::Transaction transaction(arena_);
    const std::uint64_t had = arena_.get(found).count;
    if (had > count) {
        arena_.set(arena_.get(found).count, had - count);
    } else {
        lookups().erase(found);
        arena_.release(found);
    }
    transaction.commit();
    return had <= count;
}

bool ChangeSet::Records::is_known(NodeId node) const {
    return static_cast<bool>(lookups().find(mix(node), is_node(node)));
}

}  // namespace lamina::unionfs
