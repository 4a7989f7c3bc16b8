#include "fuse/union_fs.h"
#include "fuse/union_impl.h"

namespace lamina::unionfs {
namespace {

/// Whether a folder is another or lies in it. The kernel holds its rename lock, so the tree stands still.
Result<bool> lies_in(const ChangeSet::Records& records, NodeId directory, NodeId ancestor) {
    constexpr unsigned kMaxDepth = 1U << 20;
    NodeId at = directory;
    for (unsigned depth = 0; depth < kMaxDepth; ++depth) {
        if (at == ancestor) return true;
        if (at == kRootNode || at == 0) return false;
        const auto parent = records.parent(at);
        if (!parent) return std::unexpected(parent.error());
        at = *parent;
    }
    return fail(ELOOP);
}

/// What may not become of the inode under `from`, as rename(2) and renameat2(2) say.
Result<void> check_replace(const ChangeSet::Records& records, const Resolved& from, const Resolved& to) {
    if (S_ISDIR(from.type) && !S_ISDIR(to.type)) return fail(ENOTDIR);
    if (!S_ISDIR(from.type) && S_ISDIR(to.type)) return fail(EISDIR);
    if (!S_ISDIR(to.type)) return {};
    const auto count = records.entry_count(to.node);
    if (!count) return std::unexpected(count.error());
    if (*count != 0) return fail(ENOTEMPTY);
    return {};
}

}  // namespace

Result<void> UnionFs::rename(const Place& from, const Place& to, RenameFlags flags) {
    const std::lock_guard lock(impl_->mutex);
    const ChangeSet::Records& records = impl_->records;
    if (const auto can = impl_->can_change(); !can) return can;
    if (flags.exchange && flags.no_replace) return fail(EINVAL);
    const auto old = impl_->existing(from.parent, from.name);
    if (!old) return std::unexpected(old.error());
    if (const auto checked = check_name(to.name); !checked) return checked;
    const auto new_parent = impl_->live_directory(to.parent);
    if (!new_parent) return std::unexpected(new_parent.error());
    const auto target = records.resolve(to.parent, to.name);
    if (!target) return std::unexpected(target.error());
    if (flags.no_replace && target->node != 0) return fail(EEXIST);
    if (flags.exchange && target->node == 0) return fail(ENOENT);
    if (S_ISDIR(old->type)) {
        const auto is_loop = lies_in(records, to.parent, old->node);
        if (!is_loop) return std::unexpected(is_loop.error());
        if (*is_loop) return fail(EINVAL);
    }
    if (target->node != 0 && S_ISDIR(target->type)) {
        const auto is_above = lies_in(records, from.parent, target->node);
        if (!is_above) return std::unexpected(is_above.error());
        if (*is_above) return fail(flags.exchange ? EINVAL : ENOTEMPTY);
    }
    if (old->node == target->node) return {};  // Two names of one inode: nothing happens.
    if (target->node != 0 && !flags.exchange)
        if (const auto checked = check_replace(records, *old, *target); !checked) return checked;
    const bool adds_directory = S_ISDIR(old->type) && from.parent != to.parent && !S_ISDIR(target->type);
    if (adds_directory && new_parent->nlink >= kMaxLinks) return fail(EMLINK);
    const change::Rename rename{.old_parent = from.parent,
                                .old_name = from.name,
                                .new_parent = to.parent,
                                .new_name = to.name,
                                .is_exchange = flags.exchange,
                                .time = impl_->clock()};
    if (const auto renamed = impl_->perform(rename); !renamed) return renamed;
    if (target->node != 0 && !flags.exchange) impl_->lost_name(target->node);
    return {};
}

}  // namespace lamina::unionfs
