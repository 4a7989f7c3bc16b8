// Each change as edits of records. A live operation has been checked by the union; a change from a log or checkpoint
// may say anything, so each rule that keeps the records sound is checked here again: names are free or taken as the
// change claims, types fit, folders stay a tree, sizes stay below 2^63, extents do not overlap.
#include "fuse/change_apply.h"

#include "fuse/posix_acl.h"

#include <algorithm>

namespace lamina::unionfs {
namespace {

constexpr unsigned kMaxDepth = 1U << 20;

bool is_valid_type(std::uint32_t mode) {
    switch (mode & S_IFMT) {
        case S_IFREG:
        case S_IFDIR:
        case S_IFLNK:
        case S_IFCHR:
        case S_IFBLK:
        case S_IFIFO:
        case S_IFSOCK:
            return (mode & ~(std::uint32_t{S_IFMT} | 07777U)) == 0;
        default:
            return false;
    }
}

bool is_valid_range(std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    return offset_bytes <= kMaxFileBytes && size_bytes <= kMaxFileBytes - offset_bytes;
}

bool is_valid_xattr(std::string_view name, std::string_view value) {
    return !name.empty() && name.size() <= kMaxXattrNameBytes && name.find('\0') == name.npos &&
           value.size() <= kMaxXattrValueBytes;
}

}  // namespace

bool is_valid_name(std::string_view name) {
    return !name.empty() && name.size() <= kMaxNameBytes && name != "." && name != ".." &&
           name.find_first_of(std::string_view("/\0", 2)) == name.npos;
}

Result<ChangeApplier::Inode> ChangeApplier::own(NodeId node) {
    auto inode = records_.own_inode(node);
    if (!inode && inode.error() == Errno{ENOENT}) return fail(EINVAL);
    return inode;
}

Result<ChangeApplier::Inode> ChangeApplier::own_directory(NodeId node) {
    auto inode = own(node);
    if (inode && (!get(*inode).is_directory() || get(*inode).nlink == 0)) return fail(EINVAL);
    return inode;
}

Result<ChangeApplier::Inode> ChangeApplier::own_file(NodeId node) {
    auto inode = own(node);
    if (inode && !S_ISREG(get(*inode).mode)) return fail(EINVAL);
    return inode;
}

void ChangeApplier::touch(Inode directory, const Timestamp& time) {
    InodeRecord& record = arena_.edit(directory);
    record.mtime = time;
    record.ctime = time;
}

void ChangeApplier::add_links(Inode inode, int count) {
    arena_.set(get(inode).nlink, get(inode).nlink + static_cast<std::uint32_t>(count));
}

Result<void> ChangeApplier::set_text(Inode inode, std::string_view target) {
    if (target.empty() || target.size() > kMaxLinkTargetBytes || target.find('\0') != target.npos) return fail(EINVAL);
    records_.set_link_target(inode, target);
    return {};
}

Result<void> ChangeApplier::operator()(const change::Make& make) {
    const auto parent = own_directory(make.parent);
    if (!parent) return std::unexpected(parent.error());
    const bool is_directory = S_ISDIR(make.mode);
    const bool is_unnamed = make.name.empty();
    if (make.node != records_.set().next_node || !is_valid_type(make.mode)) return fail(EINVAL);
    if ((is_unnamed && !S_ISREG(make.mode)) || (!is_unnamed && !is_valid_name(make.name))) return fail(EINVAL);
    done_once_ = make.node;
    const Inode inode = records_.make_inode(make.node);
    arena_.set(records_.set().next_node, make.node + 1);
    InodeRecord& fresh = arena_.fresh(inode);
    fresh.mode = make.mode;
    fresh.uid = make.uid;
    fresh.gid = make.gid;
    fresh.device = make.device;
    fresh.atime = fresh.mtime = fresh.ctime = fresh.birth = make.time;
    fresh.flags = InodeRecord::kOwnXattrs;
    fresh.nlink = is_unnamed ? 0 : is_directory ? 2 : 1;
    if (is_directory) fresh.size_bytes = 4096;
    if (S_ISLNK(make.mode)) {
        if (const auto text = set_text(inode, make.link_target); !text) return text;
    } else if (!make.link_target.empty()) {
        return fail(EINVAL);
    }
    for (const auto& [name, value] :
         {std::pair(kAccessAclXattr, make.access_acl), std::pair(kDefaultAclXattr, make.default_acl)}) {
        if (value.empty()) continue;
        if (!is_valid_xattr(name, value)) return fail(EINVAL);
        if (const auto set = records_.set_xattr(inode, name, value); !set) return set;
    }
    if (is_unnamed) return {};
    const auto old = records_.resolve(make.parent, make.name);
    if (!old) return std::unexpected(old.error());
    if (old->node != 0) return fail(EINVAL);
    const ChangeSet::Records::NameTarget target{make.node, make.mode & S_IFMT};
    if (const auto named = records_.set_name(*parent, make.name, *old, target); !named) return named;
    if (is_directory) {
        add_links(*parent, 1);
        arena_.set(get(inode).parent, make.parent);
    }
    touch(*parent, make.time);
    return {};
}

Result<void> ChangeApplier::operator()(const change::Link& link) {
    const auto parent = own_directory(link.parent);
    if (!parent) return std::unexpected(parent.error());
    const auto inode = own(link.node);
    if (!inode) return std::unexpected(inode.error());
    done_once_ = link.node;
    if (!is_valid_name(link.name) || get(*inode).is_directory() || get(*inode).nlink >= kMaxLinks) return fail(EINVAL);
    const auto old = records_.resolve(link.parent, link.name);
    if (!old) return std::unexpected(old.error());
    if (old->node != 0) return fail(EINVAL);
    const ChangeSet::Records::NameTarget target{link.node, get(*inode).mode & S_IFMT};
    if (const auto named = records_.set_name(*parent, link.name, *old, target); !named) return named;
    add_links(*inode, 1);
    arena_.set(get(*inode).ctime, link.time);
    touch(*parent, link.time);
    return {};
}

/// Takes a link from what a name of `parent` meant; a folder must be empty. The name is the caller's.
Result<void> ChangeApplier::unlink(Inode parent, NodeId node, const Timestamp& time) {
    const auto inode = own(node);
    if (!inode) return std::unexpected(inode.error());
    if (get(*inode).nlink == 0) return fail(EINVAL);
    done_once_ = node;
    arena_.set(get(*inode).ctime, time);
    if (!get(*inode).is_directory()) {
        add_links(*inode, -1);
        return {};
    }
    const auto count = records_.entry_count(node);
    if (!count) return std::unexpected(count.error());
    if (*count != 0 || node == kRootNode) return fail(EINVAL);
    arena_.set(get(*inode).nlink, 0);
    arena_.set(get(*inode).parent, 0);
    add_links(parent, -1);
    return {};
}

Result<void> ChangeApplier::operator()(const change::Remove& remove) {
    const auto parent = own_directory(remove.parent);
    if (!parent) return std::unexpected(parent.error());
    const auto old = records_.resolve(remove.parent, remove.name);
    if (!old) return std::unexpected(old.error());
    if (old->node == 0) return fail(EINVAL);
    if (const auto unlinked = unlink(*parent, old->node, remove.time); !unlinked) return unlinked;
    records_.clear_name(*parent, remove.name, *old);
    touch(*parent, remove.time);
    return {};
}

/// Whether a folder is `ancestor` or lies below it.
Result<bool> ChangeApplier::lies_in(NodeId directory, NodeId ancestor) const {
    NodeId at = directory;
    for (unsigned depth = 0; depth < kMaxDepth; ++depth) {
        if (at == ancestor) return true;
        if (at == kRootNode) return false;
        const auto parent = records_.parent(at);
        if (!parent) return std::unexpected(parent.error());
        if (*parent == 0) return fail(EINVAL);
        at = *parent;
    }
    return fail(EINVAL);
}

Result<void> ChangeApplier::operator()(const change::Rename& rename) {
    done_once_ = 0;
    const auto from = own_directory(rename.old_parent);
    if (!from) return std::unexpected(from.error());
    const auto to = own_directory(rename.new_parent);
    if (!to) return std::unexpected(to.error());
    const auto old = records_.resolve(rename.old_parent, rename.old_name);
    if (!old) return std::unexpected(old.error());
    const auto target = records_.resolve(rename.new_parent, rename.new_name);
    if (!target) return std::unexpected(target.error());
    if (old->node == 0 || old->node == target->node || !is_valid_name(rename.new_name)) return fail(EINVAL);
    if (S_ISDIR(old->type)) {
        const auto is_loop = lies_in(rename.new_parent, old->node);
        if (!is_loop) return std::unexpected(is_loop.error());
        if (*is_loop) return fail(EINVAL);
    }
    touch(*from, rename.time);
    touch(*to, rename.time);
    return rename.is_exchange ? exchange(rename, *old, *target) : replace(rename, *old, *target);
}

/// The moved inode's own record: its parent, its parents' link counts.
Result<void> ChangeApplier::move(Inode moved, Inode from, Inode to, const Timestamp& time) {
    arena_.set(get(moved).ctime, time);
    if (!get(moved).is_directory()) return {};
    arena_.set(get(moved).parent, get(to).node);
    add_links(from, -1);
    add_links(to, 1);
    return {};
}

Result<void> ChangeApplier::replace(const change::Rename& rename, const Resolved& old, const Resolved& target) {
    const Inode from = records_.find_inode(rename.old_parent);
    const Inode to = records_.find_inode(rename.new_parent);
    const auto moved = own(old.node);
    if (!moved) return std::unexpected(moved.error());
    if (target.node != 0) {
        if (S_ISDIR(target.type) != S_ISDIR(old.type)) return fail(EINVAL);
        if (const auto unlinked = unlink(to, target.node, rename.time); !unlinked) return unlinked;
    }
    const ChangeSet::Records::NameTarget now{old.node, old.type};
    if (const auto named = records_.set_name(to, rename.new_name, target, now); !named) return named;
    records_.clear_name(from, rename.old_name, old);
    return move(*moved, from, to, rename.time);
}

Result<void> ChangeApplier::exchange(const change::Rename& rename, const Resolved& old, const Resolved& target) {
    const Inode from = records_.find_inode(rename.old_parent);
    const Inode to = records_.find_inode(rename.new_parent);
    if (target.node == 0) return fail(EINVAL);
    if (S_ISDIR(target.type)) {
        const auto is_loop = lies_in(rename.old_parent, target.node);
        if (!is_loop) return std::unexpected(is_loop.error());
        if (*is_loop) return fail(EINVAL);
    }
    const auto first = own(old.node);
    if (!first) return std::unexpected(first.error());
    const auto second = own(target.node);
    if (!second) return std::unexpected(second.error());
    using Target = ChangeSet::Records::NameTarget;
    const Target first_target{old.node, old.type};
    const Target second_target{target.node, target.type};
    if (const auto named = records_.set_name(to, rename.new_name, target, first_target); !named) return named;
    if (const auto named = records_.set_name(from, rename.old_name, old, second_target); !named) return named;
    if (const auto moved = move(*first, from, to, rename.time); !moved) return moved;
    return move(*second, to, from, rename.time);
}

Result<void> ChangeApplier::set_mode(Inode inode, std::uint32_t permissions) {
    const InodeRecord& record = get(inode);
    arena_.set(record.mode, (record.mode & S_IFMT) | (permissions & 07777));
    if (!(record.flags & InodeRecord::kAccessAcl)) return {};
    const auto value = records_.xattr(record.node, kAccessAclXattr);
    if (!value) return std::unexpected(value.error());
    auto acl = PosixAcl::parse(value->value_or(""));
    if (!acl || acl->is_empty()) return {};  // An image may carry what no kernel would accept; it is data then.
    acl->set_mode(permissions);
    return records_.set_xattr(inode, kAccessAclXattr, acl->text());
}

Result<void> ChangeApplier::clear_privileges(Inode inode, bool clears_set_ids) {
    const InodeRecord& record = get(inode);
    if (clears_set_ids && without_set_ids(record.mode) != record.mode)
        arena_.set(record.mode, without_set_ids(record.mode));
    if (!(record.flags & InodeRecord::kCapability)) return {};
    const auto removed = records_.remove_xattr(inode, kCapabilityXattr);
    if (!removed) return std::unexpected(removed.error());
    return {};
}

Result<void> ChangeApplier::operator()(const change::SetAttributes& set) {
    const auto inode = own(set.node);
    if (!inode) return std::unexpected(inode.error());
    if (set.mode)
        if (const auto changed = set_mode(*inode, *set.mode); !changed) return changed;
    InodeRecord& record = arena_.edit(*inode);
    if (set.uid) record.uid = *set.uid;
    if (set.gid) record.gid = *set.gid;
    if (set.atime) record.atime = *set.atime;
    if (set.mtime) record.mtime = *set.mtime;
    record.ctime = set.ctime;
    if (!set.clears_privileges) return {};
    return clear_privileges(*inode, true);
}

Result<void> ChangeApplier::changed_data(Inode file, bool clears_privileges, const Timestamp& time) {
    touch(file, time);
    return clear_privileges(file, clears_privileges);
}

Result<void> ChangeApplier::operator()(const change::Resize& resize) {
    const auto file = own_file(resize.node);
    if (!file) return std::unexpected(file.error());
    if (resize.size_bytes > kMaxFileBytes) return fail(EINVAL);
    if (resize.size_bytes < get(*file).size_bytes && !is_kept(*file))
        records_.remove_extents(*file, resize.size_bytes, kMaxFileBytes);
    InodeRecord& record = arena_.edit(*file);
    record.size_bytes = resize.size_bytes;
    record.view_size_bytes = std::min(record.view_size_bytes, resize.size_bytes);
    return changed_data(*file, resize.clears_privileges, resize.time);
}

Result<void> ChangeApplier::operator()(const change::Write& write) {
    const auto file = own_file(write.node);
    if (!file) return std::unexpected(file.error());
    if (write.size_bytes == 0 || !is_valid_range(write.offset_bytes, write.size_bytes) ||
        !is_valid_range(write.extent_offset_bytes, write.size_bytes))
        return fail(EINVAL);
    if (!is_kept(*file))
        records_.put_extent(*file, {.offset_bytes = write.offset_bytes,
                                    .size_bytes = write.size_bytes,
                                    .extent_offset_bytes = write.extent_offset_bytes});
    const std::uint64_t end = write.offset_bytes + write.size_bytes;
    if (end > get(*file).size_bytes) arena_.set(get(*file).size_bytes, end);
    if (!write.is_mapped) return changed_data(*file, write.clears_privileges, write.time);
    touch(*file, write.time);
    return {};
}

Result<void> ChangeApplier::operator()(const change::Zero& zero) {
    const auto file = own_file(zero.node);
    if (!file) return std::unexpected(file.error());
    if (!is_valid_range(zero.offset_bytes, zero.size_bytes) || zero.new_size_bytes > kMaxFileBytes ||
        zero.new_size_bytes < get(*file).size_bytes)
        return fail(EINVAL);
    const std::uint64_t end = zero.offset_bytes + zero.size_bytes;
    const std::uint64_t view_end = std::min(end, get(*file).view_size_bytes);
    if (!is_kept(*file)) records_.remove_extents(*file, zero.offset_bytes, end);
    if (!is_kept(*file) && zero.offset_bytes < view_end)
        records_.put_extent(
            *file, {.offset_bytes = zero.offset_bytes, .size_bytes = view_end - zero.offset_bytes, .is_hole = true});
    arena_.set(get(*file).size_bytes, zero.new_size_bytes);
    return changed_data(*file, zero.clears_privileges, zero.time);
}

Result<void> ChangeApplier::operator()(const change::SetXattr& set) {
    done_once_ = 0;
    const auto inode = own(set.node);
    if (!inode) return std::unexpected(inode.error());
    if (!is_valid_xattr(set.name, set.value)) return fail(EINVAL);
    arena_.set(get(*inode).ctime, set.time);
    if (set.name != kAccessAclXattr) return records_.set_xattr(*inode, set.name, set.value);
    const auto acl = PosixAcl::parse(set.value);
    if (!acl || acl->is_empty()) return fail(EINVAL);
    arena_.set(get(*inode).mode, acl->mode_with(get(*inode).mode));
    if (!acl->is_only_mode()) return records_.set_xattr(*inode, set.name, set.value);
    const auto removed = records_.remove_xattr(*inode, set.name);
    if (!removed) return std::unexpected(removed.error());
    return {};
}

Result<void> ChangeApplier::operator()(const change::RemoveXattr& remove) {
    done_once_ = 0;
    const auto inode = own(remove.node);
    if (!inode) return std::unexpected(inode.error());
    const auto removed = records_.remove_xattr(*inode, remove.name);
    if (!removed) return std::unexpected(removed.error());
    if (!*removed) return fail(EINVAL);
    arena_.set(get(*inode).ctime, remove.time);
    return {};
}

Result<void> ChangeApplier::operator()(const change::PutNode& put) {
    const Attributes& from = put.attributes;
    const bool is_new = from.node >= kFirstNewNode;
    if (records_.find_inode(from.node) || !is_valid_type(from.mode) || from.size_bytes > kMaxFileBytes ||
        from.nlink > kMaxLinks)
        return fail(EINVAL);
    const auto inode = is_new ? Result<Inode>(records_.make_inode(from.node)) : own(from.node);
    if (!inode) return std::unexpected(inode.error());
    const bool is_same_type = is_new || ((get(*inode).mode ^ from.mode) & S_IFMT) == 0;
    const std::uint64_t view_limit = std::min(is_new ? 0 : get(*inode).view_size_bytes, from.size_bytes);
    if (!is_same_type || put.view_size_bytes > view_limit || (is_new && !put.has_own_xattrs)) return fail(EINVAL);
    InodeRecord& record = arena_.edit(*inode);
    record.mode = from.mode;
    record.uid = from.uid;
    record.gid = from.gid;
    record.nlink = from.nlink;
    record.size_bytes = from.size_bytes;
    record.device = from.device;
    record.atime = from.atime;
    record.mtime = from.mtime;
    record.ctime = from.ctime;
    record.birth = from.birth;
    record.view_size_bytes = put.view_size_bytes;
    if (put.has_own_xattrs) record.flags = InodeRecord::kOwnXattrs;
    if (record.is_directory() && (is_new || record.nlink == 0)) record.parent = 0;
    if (is_new && from.node >= records_.set().next_node) arena_.set(records_.set().next_node, from.node + 1);
    if (is_new && S_ISLNK(from.mode)) {
        if (put.link_target.size() != from.size_bytes) return fail(EINVAL);
        return set_text(*inode, put.link_target);
    }
    if (!put.link_target.empty()) return fail(EINVAL);
    return {};
}

Result<void> ChangeApplier::operator()(const change::PutName& put) {
    const auto parent = own_directory(put.parent);
    if (!parent) return std::unexpected(parent.error());
    const auto old = records_.resolve(put.parent, put.name);
    if (!old) return std::unexpected(old.error());
    if (old->record || !is_valid_name(put.name)) return fail(EINVAL);
    if (put.node == 0) {
        if (!old->is_in_view) return fail(EINVAL);
        records_.clear_name(*parent, put.name, *old);
        return {};
    }
    const auto inode = own(put.node);
    if (!inode) return std::unexpected(inode.error());
    if (get(*inode).nlink == 0) return fail(EINVAL);
    const ChangeSet::Records::NameTarget target{put.node, get(*inode).mode & S_IFMT};
    if (const auto named = records_.set_name(*parent, put.name, *old, target); !named) return named;
    if (!get(*inode).is_directory()) return {};
    const bool has_place = get(*inode).is_new() && get(*inode).parent != 0;
    const auto is_loop = lies_in(put.parent, put.node);
    if (!is_loop) return std::unexpected(is_loop.error());
    if (*is_loop || has_place) return fail(EINVAL);
    arena_.set(get(*inode).parent, put.parent);
    return {};
}

Result<void> ChangeApplier::operator()(const change::PutExtent& put) {
    const auto file = own_file(put.node);
    if (!file) return std::unexpected(file.error());
    const InodeRecord& record = get(*file);
    if (put.size_bytes == 0 || !is_valid_range(put.offset_bytes, put.size_bytes) ||
        !is_valid_range(put.extent_offset_bytes, put.size_bytes))
        return fail(EINVAL);
    const std::uint64_t end = put.offset_bytes + put.size_bytes;
    if (end > (put.is_hole ? record.view_size_bytes : record.size_bytes)) return fail(EINVAL);
    if (records_.extents(record).count_in(put.offset_bytes, end, 1) != 0) return fail(EINVAL);
    records_.put_extent(*file, {.offset_bytes = put.offset_bytes,
                                .size_bytes = put.size_bytes,
                                .extent_offset_bytes = put.is_hole ? 0 : put.extent_offset_bytes,
                                .is_hole = put.is_hole});
    return {};
}

Result<void> ChangeApplier::operator()(const change::PutXattr& put) {
    const Inode inode = records_.find_inode(put.node);
    if (!inode || !(get(inode).flags & InodeRecord::kOwnXattrs) || !is_valid_xattr(put.name, put.value))
        return fail(EINVAL);
    const auto old = records_.xattr(put.node, put.name);
    if (!old) return std::unexpected(old.error());
    if (*old) return fail(EINVAL);
    return records_.set_xattr(inode, put.name, put.value);
}

Result<void> ChangeApplier::operator()(const change::PutNextNode& put) {
    if (put.next < records_.set().next_node || put.next >> 63) return fail(EINVAL);
    arena_.set(records_.set().next_node, put.next);
    return {};
}

}  // namespace lamina::unionfs
