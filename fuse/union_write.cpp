// The operations that change names, attributes and xattrs, but rename. Each checks what POSIX wants checked, in the
// kernel's order, then says what it did as one change (two where a power cut between them does no harm), reserves,
// applies, and hands it to the keeper.
#include "fuse/posix_acl.h"
#include "fuse/union_fs.h"
#include "fuse/union_impl.h"

#include <sys/xattr.h>

#include <algorithm>

namespace lamina::unionfs {
namespace {

/// What a new inode gets from its parent and its maker.
struct Inherited {
    std::uint32_t mode = 0;
    std::uint32_t gid = 0;
    std::string access_acl;
    std::string default_acl;
};

Result<Inherited> inherit(const ChangeSet::Records& records, const Attributes& parent, std::uint32_t mode,
                          const Caller& caller) {
    Inherited inherited{.mode = mode, .gid = caller.gid, .access_acl = {}, .default_acl = {}};
    if (parent.mode & S_ISGID) {
        inherited.gid = parent.gid;
        constexpr std::uint32_t kRunsAsGroup = S_ISGID | S_IXGRP;
        if (S_ISDIR(mode))
            inherited.mode |= S_ISGID;
        else if ((mode & kRunsAsGroup) == kRunsAsGroup && caller.uid != 0 && caller.gid != parent.gid)
            inherited.mode &= ~std::uint32_t{S_ISGID};
    }
    if (S_ISLNK(mode)) {
        inherited.mode |= 0777;
        return inherited;
    }
    const auto has_default = records.has_xattr(parent.node, InodeRecord::kDefaultAcl, kDefaultAclXattr);
    if (!has_default) return std::unexpected(has_default.error());
    if (*has_default) {
        const auto value = records.xattr(parent.node, kDefaultAclXattr);
        if (!value) return std::unexpected(value.error());
        auto acl = PosixAcl::parse(value->value_or(""));
        if (acl && !acl->is_empty()) {
            if (S_ISDIR(mode)) inherited.default_acl = acl->text();
            inherited.mode = acl->inherit(inherited.mode);
            if (!acl->is_only_mode()) inherited.access_acl = acl->text();
            return inherited;
        }
    }
    inherited.mode &= ~(caller.umask & 0777);
    return inherited;
}

Result<std::uint32_t> mode_to_make(const NewNode& node) {
    const std::uint32_t type = node.mode & S_IFMT;
    const std::uint32_t mode = (type == 0 ? S_IFREG : type) | (node.mode & 07777);
    switch (mode & S_IFMT) {
        case S_IFREG:
        case S_IFDIR:
        case S_IFCHR:
        case S_IFBLK:
        case S_IFIFO:
        case S_IFSOCK:
            return mode;
        case S_IFLNK:
            if (node.link_target.empty()) return fail(ENOENT);
            if (node.link_target.size() > kMaxLinkTargetBytes) return fail(ENAMETOOLONG);
            if (node.link_target.find('\0') != node.link_target.npos) return fail(EINVAL);
            return mode;
        default:
            return fail(EINVAL);
    }
}

/// Puts together the change that makes an inode; its views point into `node`, `inherited` and `name`.
change::Make make_change(NodeId parent, std::string_view name, const NewNode& node, const Inherited& inherited) {
    return {.parent = parent,
            .name = name,
            .mode = inherited.mode,
            .gid = inherited.gid,
            .device = S_ISCHR(inherited.mode) || S_ISBLK(inherited.mode) ? node.device : 0,
            .link_target = S_ISLNK(inherited.mode) ? node.link_target : std::string_view(),
            .access_acl = inherited.access_acl,
            .default_acl = inherited.default_acl};
}

}  // namespace

Result<Entry> UnionFs::make(NodeId parent, std::string_view name, const NewNode& node, const Caller& caller) {
    const std::lock_guard lock(impl_->mutex);
    if (const auto can = impl_->can_change(); !can) return std::unexpected(can.error());
    if (const auto checked = check_name(name); !checked) return std::unexpected(checked.error());
    const auto directory = impl_->live_directory(parent);
    if (!directory) return std::unexpected(directory.error());
    const auto old = impl_->records.resolve(parent, name);
    if (!old) return std::unexpected(old.error());
    if (old->node != 0) return fail(EEXIST);
    const auto mode = mode_to_make(node);
    if (!mode) return std::unexpected(mode.error());
    if (S_ISDIR(*mode) && directory->nlink >= kMaxLinks) return fail(EMLINK);
    const auto inherited = inherit(impl_->records, *directory, *mode, caller);
    if (!inherited) return std::unexpected(inherited.error());
    change::Make make = make_change(parent, name, node, *inherited);
    make.node = impl_->changes.next_node();
    make.uid = caller.uid;
    make.time = impl_->clock();
    if (const auto made = impl_->perform(make); !made) return std::unexpected(made.error());
    return impl_->entry(make.node);
}

Result<Entry> UnionFs::make_unnamed(NodeId parent, const NewNode& node, const Caller& caller) {
    const std::lock_guard lock(impl_->mutex);
    if (const auto can = impl_->can_change(); !can) return std::unexpected(can.error());
    const auto directory = impl_->live_directory(parent);
    if (!directory)
        return std::unexpected(directory.error() == Errno{ENOENT} ? Errno{EPERM} : directory.error());  // As ext4.
    const auto mode = mode_to_make(node);
    if (!mode) return std::unexpected(mode.error());
    if (!S_ISREG(*mode)) return fail(EINVAL);
    const auto inherited = inherit(impl_->records, *directory, *mode, caller);
    if (!inherited) return std::unexpected(inherited.error());
    change::Make make = make_change(parent, {}, node, *inherited);
    make.node = impl_->changes.next_node();
    make.uid = caller.uid;
    make.time = impl_->clock();
    if (const auto made = impl_->perform(make); !made) return std::unexpected(made.error());
    ++impl_->nameless_count;
    return impl_->entry(make.node);
}

Result<Entry> UnionFs::link(NodeId node, NodeId parent, std::string_view name) {
    const std::lock_guard lock(impl_->mutex);
    if (const auto can = impl_->can_change(); !can) return std::unexpected(can.error());
    if (const auto checked = check_name(name); !checked) return std::unexpected(checked.error());
    const auto directory = impl_->live_directory(parent);
    if (!directory) return std::unexpected(directory.error());
    const auto found = impl_->records.attributes(node);
    if (!found) return std::unexpected(found.error());
    const auto old = impl_->records.resolve(parent, name);
    if (!old) return std::unexpected(old.error());
    if (old->node != 0) return fail(EEXIST);
    if (S_ISDIR(found->mode)) return fail(EPERM);
    if (found->nlink >= kMaxLinks) return fail(EMLINK);
    const change::Link link{.node = node, .parent = parent, .name = name, .time = impl_->clock()};
    if (const auto linked = impl_->perform(link); !linked) return std::unexpected(linked.error());
    if (found->nlink == 0) impl_->is_not_nameless();
    return impl_->entry(node);
}

Result<void> UnionFs::unlink(NodeId parent, std::string_view name) {
    const std::lock_guard lock(impl_->mutex);
    if (const auto can = impl_->can_change(); !can) return can;
    const auto old = impl_->existing(parent, name);
    if (!old) return std::unexpected(old.error());
    if (S_ISDIR(old->type)) return fail(EISDIR);
    const change::Remove remove{.parent = parent, .name = name, .time = impl_->clock()};
    if (const auto removed = impl_->perform(remove); !removed) return removed;
    impl_->lost_name(old->node);
    return {};
}

Result<void> UnionFs::remove_directory(NodeId parent, std::string_view name) {
    const std::lock_guard lock(impl_->mutex);
    if (const auto can = impl_->can_change(); !can) return can;
    if (name == ".") return fail(EINVAL);
    if (name == "..") return fail(ENOTEMPTY);
    const auto old = impl_->existing(parent, name);
    if (!old) return std::unexpected(old.error());
    if (!S_ISDIR(old->type)) return fail(ENOTDIR);
    const auto count = impl_->records.entry_count(old->node);
    if (!count) return std::unexpected(count.error());
    if (*count != 0) return fail(ENOTEMPTY);
    const change::Remove remove{.parent = parent, .name = name, .time = impl_->clock()};
    if (const auto removed = impl_->perform(remove); !removed) return removed;
    impl_->lost_name(old->node);
    return {};
}

Result<Attributes> UnionFs::set_attributes(NodeId node, const AttributeChange& change) {
    const std::lock_guard lock(impl_->mutex);
    if (const auto can = impl_->can_change(); !can) return std::unexpected(can.error());
    const auto found = impl_->records.attributes(node);
    if (!found) return found;
    const Timestamp now = impl_->clock();
    if (change.size_bytes) {
        if (const auto file = impl_->file(node); !file) return file;
        if (*change.size_bytes > kMaxFileBytes) return fail(EFBIG);
        const change::Resize resize{
            .node = node, .size_bytes = *change.size_bytes, .clears_privileges = change.clears_privileges, .time = now};
        if (const auto resized = impl_->perform(resize); !resized) return std::unexpected(resized.error());
    }
    const bool is_new_owner = change.uid || change.gid;
    change::SetAttributes set{.node = node,
                              .mode = change.mode,
                              .uid = change.uid,
                              .gid = change.gid,
                              .atime = change.atime,
                              .mtime = change.mtime,
                              .clears_privileges = (change.clears_privileges || is_new_owner) && !S_ISDIR(found->mode),
                              .ctime = change.ctime.value_or(now)};
    if (set.mode) *set.mode &= 07777;
    const bool is_done = !set.mode && !is_new_owner && !set.atime && !set.mtime && !change.ctime &&
                         (change.size_bytes || !set.clears_privileges);
    if (!is_done)
        if (const auto done = impl_->perform(set); !done) return std::unexpected(done.error());
    return impl_->shown(node);
}

namespace {

/// What setting an xattr comes to after the rules for ACLs.
enum class XattrStep { set, remove };

bool is_acl(std::string_view name) {
    return name == kAccessAclXattr || name == kDefaultAclXattr;
}

Result<XattrStep> check_xattr(const Attributes& inode, std::string_view name, std::string_view value) {
    if (name.empty() || name.size() > kMaxXattrNameBytes || name.find('\0') != name.npos) return fail(ERANGE);
    if (const auto checked = check_xattr_name(name); !checked) return std::unexpected(checked.error());
    if (value.size() > kMaxXattrValueBytes) return fail(E2BIG);
    if (!is_acl(name)) return XattrStep::set;
    if (S_ISLNK(inode.mode)) return fail(EOPNOTSUPP);
    if (value.empty()) return XattrStep::remove;
    const auto acl = PosixAcl::parse(value);
    if (!acl) return std::unexpected(acl.error());
    if (acl->is_empty()) return XattrStep::remove;
    if (name == kDefaultAclXattr && !S_ISDIR(inode.mode)) return fail(EACCES);
    return XattrStep::set;
}

}  // namespace

Result<void> UnionFs::set_xattr(NodeId node, std::string_view name, std::string_view value, int flags,
                                bool clears_set_gid) {
    const std::lock_guard lock(impl_->mutex);
    if (const auto can = impl_->can_change(); !can) return can;
    const auto found = impl_->records.attributes(node);
    if (!found) return std::unexpected(found.error());
    const auto step = check_xattr(*found, name, value);
    if (!step) return std::unexpected(step.error());
    const auto all = impl_->records.xattrs(node);
    if (!all) return std::unexpected(all.error());
    const auto old = std::ranges::find_if(*all, [&](const auto& xattr) { return xattr.first == name; });
    const bool is_there = old != all->end();
    if ((flags & XATTR_CREATE) && is_there) return fail(EEXIST);
    if ((flags & XATTR_REPLACE) && !is_there) return fail(ENODATA);
    std::uint64_t list_bytes = name.size() + 1;
    for (const auto& xattr : *all) list_bytes += xattr.first.size() + 1;
    if (!is_there && list_bytes > kMaxXattrListBytes) return fail(ENOSPC);
    if (is_there && !is_acl(name) && old->second == value) return {};  // Nothing changes, not even ctime.
    const Timestamp now = impl_->clock();
    const change::SetXattr set_value{.node = node, .name = name, .value = value, .time = now};
    if (*step == XattrStep::set)
        if (const auto checked = impl_->check_limits(set_value); !checked) return checked;
    if (clears_set_gid && name == kAccessAclXattr &&
        (found->mode & S_ISGID)) {  // First: better without the bit than with a wider ACL.
        const change::SetAttributes set{
            .node = node, .mode = found->mode & 07777 & ~std::uint32_t{S_ISGID}, .ctime = now};
        if (const auto done = impl_->perform(set); !done) return done;
    }
    if (*step == XattrStep::set) return impl_->perform(set_value);
    if (!is_there) return {};
    return impl_->perform(change::RemoveXattr{.node = node, .name = name, .time = now});
}

Result<void> UnionFs::remove_xattr(NodeId node, std::string_view name) {
    const std::lock_guard lock(impl_->mutex);
    if (const auto can = impl_->can_change(); !can) return can;
    if (const auto checked = check_xattr_name(name); !checked) return checked;
    const auto value = impl_->records.xattr(node, name);
    if (!value) return std::unexpected(value.error());
    if (!*value && is_acl(name)) return {};
    if (!*value) return fail(ENODATA);
    return impl_->perform(change::RemoveXattr{.node = node, .name = name, .time = impl_->clock()});
}

}  // namespace lamina::unionfs
