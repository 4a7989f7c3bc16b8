// Data, attributes and xattrs of inodes in the upper, and what the union asks of a keeper. Whatever is changed is
// brought up first (copy_up.h), then the call is made on the upper's own inode. The change set is told afterwards where
// things lie (append), because the record of a new inode is made between the two.
#include "fuse/directory_keeper.h"

#include "fuse/change_apply.h"
#include "fuse/contain.h"

#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace lamina::unionfs {

/// One function for each kind of change.
struct ChangeActor {
    DirectoryKeeper& keeper;
    Result<void> operator()(const change::Make& make) { return keeper.make(make); }
    Result<void> operator()(const change::Link& link) { return keeper.link(link); }
    Result<void> operator()(const change::Remove& remove) { return keeper.remove(remove); }
    Result<void> operator()(const change::Rename& rename) { return keeper.rename(rename); }
    Result<void> operator()(const change::SetAttributes& set) { return keeper.set_attributes(set); }
    Result<void> operator()(const change::Resize& resize) { return keeper.resize(resize); }
    Result<void> operator()(const change::SetXattr& set) { return keeper.set_xattr(set); }
    Result<void> operator()(const change::RemoveXattr& remove) { return keeper.remove_xattr(remove); }
    // Writes come through write(), zeros through allocate(); the rest is of logs, and an upper has none.
    template <class Other>
    Result<void> operator()(const Other&) {
        return fail(EINVAL);
    }
};

DirectoryKeeper::DirectoryKeeper(StackView& view, ChangeSet& changes, Folders folders, Options options)
    : view_(view),
      changes_(changes),
      records_(changes.records()),
      upper_(std::move(folders.upper)),
      options_(options),
      tree_(view, changes, std::move(folders.work)),
      copy_up_(tree_, {.is_volatile = options.is_volatile, .makes_metacopy = options.makes_metacopy}) {}

Result<void> DirectoryKeeper::act(const change::Change& change) {
    const UpperMeter::Scope counting(meter_.get(), std::holds_alternative<change::Remove>(change));
    moved_.clear();
    made_number_ = 0;
    return std::visit(ChangeActor{*this}, change);
}

void DirectoryKeeper::will_lie(NodeId node, std::optional<UpperTree::Place> place) {
    moved_.emplace_back(node, std::move(place));
}

void DirectoryKeeper::append(const change::Change& change) noexcept {
    for (const auto& [node, place] : moved_) (void)tree_.put(node, place);  // Without memory: ESTALE from now on.
    moved_.clear();
    const auto* const make = std::get_if<change::Make>(&change);
    if (!make || made_number_ == 0) return;
    (void)contain([&] { records_.set_number(make->node, made_number_); });
}

Result<void> DirectoryKeeper::sync() {
    if (options_.is_volatile) return {};
    if (::syncfs(upper_.get()) != 0) return fail(errno);
    return {};
}

Keeper::Usage DirectoryKeeper::usage() const {
    struct statvfs status {};
    if (::fstatvfs(upper_.get(), &status) != 0) return {};
    return {.available_bytes = status.f_bavail * status.f_frsize, .total_bytes = status.f_blocks * status.f_frsize};
}

bool DirectoryKeeper::is_kept(NodeId node) const {
    const InodeRecord* const known = records_.inode(node);
    if (known && (known->flags & InodeRecord::kKept)) return !(known->flags & InodeRecord::kDataBelow);
    return tree_.is_kept(node) && !tree_.has_data_below(node);
}

// Open files.

void DirectoryKeeper::remember(NodeId node, store::UniqueFd fd, bool is_writable) {
    close_cached(node);
    open_files_.push_front({node, std::make_shared<const store::UniqueFd>(std::move(fd)), is_writable});
    open_by_node_[node] = open_files_.begin();
    if (open_files_.size() <= options_.open_file_limit) return;
    open_by_node_.erase(open_files_.back().node);
    open_files_.pop_back();
}

void DirectoryKeeper::close_cached(NodeId node) noexcept {
    const auto found = open_by_node_.find(node);
    if (found == open_by_node_.end()) return;
    open_files_.erase(found->second);
    open_by_node_.erase(found);
}

/// For writing where that may be, so that the next write finds it open.
Result<FileKeeper::OpenFile> DirectoryKeeper::open_cached(NodeId file, bool is_for_writing) {
    const auto found = open_by_node_.find(file);
    if (found != open_by_node_.end() && (found->second->is_writable || !is_for_writing)) {
        open_files_.splice(open_files_.begin(), open_files_, found->second);
        return found->second->file;
    }
    const auto at = tree_.spot(file);
    if (!at) return std::unexpected(at.error());
    constexpr int kFlags = O_NONBLOCK | O_NOCTTY;
    const auto open_for = [&](int access) {
        auto fd = open_at(*at, access | O_NOATIME | kFlags);
        if (!fd && fd.error() == Errno{EPERM}) fd = open_at(*at, access | kFlags);  // Not the owner's process.
        return fd;
    };
    bool is_writable = true;
    auto fd = open_for(O_RDWR);
    const bool is_refused = !fd && (fd.error() == Errno{EACCES} || fd.error() == Errno{EPERM});
    if (is_refused && !is_for_writing) {
        is_writable = false;
        fd = open_for(O_RDONLY);
    }
    if (!fd && fd.error() == Errno{EACCES})
        fd = with_permission(UpperInode::open(*at), [&] { return open_for(is_for_writing ? O_RDWR : O_RDONLY); });
    if (!fd) return std::unexpected(fd.error());
    remember(file, std::move(*fd), is_writable);
    return open_files_.front().file;
}

Result<FileKeeper::OpenFile> DirectoryKeeper::open(NodeId file) {
    return open_cached(file, false);
}

Result<std::string> DirectoryKeeper::link_target(NodeId symlink) {
    const auto at = tree_.spot(symlink);
    if (!at) return std::unexpected(at.error());
    return link_target_at(*at);
}

void DirectoryKeeper::complete(Attributes& attributes) const {
    if (!tree_.is_kept(attributes.node)) return;
    const auto open = open_by_node_.find(attributes.node);
    const auto status =
        open != open_by_node_.end() ? status_of(open->second->file->get()) : tree_.status(attributes.node);
    if (!status) return;
    attributes.atime = time_of(status->stx_atime);
    attributes.mtime = time_of(status->stx_mtime);
    attributes.ctime = time_of(status->stx_ctime);
    if (status->stx_mask & STATX_BTIME) attributes.birth = time_of(status->stx_btime);
    if (S_ISDIR(attributes.mode)) attributes.size_bytes = status->stx_size;
    if (!tree_.has_data_below(attributes.node)) attributes.allocated_bytes = status->stx_blocks * 512;
}

Result<void> DirectoryKeeper::set_quota(const QuotaLimits& limits) {
    if (!limits.is_set()) {
        meter_.reset();
        return {};
    }
    if (!meter_) {
        const auto upper = std::make_shared<const store::UniqueFd>(::fcntl(upper_.get(), F_DUPFD_CLOEXEC, 3));
        if (!*upper) return fail(errno);
        auto looked = UpperMeter::look_through({{upper, "."}, tree_.work("."), tree_.index(".")});
        if (!looked) return std::unexpected(looked.error());
        meter_ = std::move(*looked);
    }
    meter_->limits = limits;
    return {};
}

void DirectoryKeeper::drop(NodeId node) noexcept {
    const UpperMeter::Scope counting(meter_.get(), true);
    close_cached(node);
    const auto place = tree_.place(node);
    if (!place || (place->parent != UpperTree::kInWork && place->parent != UpperTree::kInIndex)) return;
    if (const auto at = tree_.spot(*place)) (void)unlink_at(*at);
}

// Data.

/// False: the inode has no place in the upper and gets none, because it is a directory that was removed.
Result<bool> DirectoryKeeper::bring_up(NodeId node, For what, std::uint64_t size_limit_bytes) {
    const auto found = records_.attributes(node);
    if (!found) return std::unexpected(found.error());
    if (S_ISDIR(found->mode) && found->nlink == 0) return false;
    const auto brought = what == For::data ? copy_up_.node(node, size_limit_bytes) : copy_up_.inode(node);
    if (!brought) return std::unexpected(brought.error());
    if (const auto owned = tree_.own(node); !owned) return std::unexpected(owned.error());
    return true;
}

/// What a change of data takes away. Before the change: an inode that is killed between the two has rather too few
/// rights than too many.
Result<void> DirectoryKeeper::clear_privileges(NodeId node, bool clears_set_ids, const UpperInode& inode) {
    const auto found = records_.attributes(node);
    if (!found) return std::unexpected(found.error());
    if (const std::uint32_t mode = without_set_ids(found->mode); clears_set_ids && mode != found->mode) {
        const auto set = tree_.keeps_stat_beside(mode) ? tree_.put_stat_beside(inode, {found->uid, found->gid}, mode)
                                                       : inode.set_mode(mode);
        if (!set) return set;
    }
    const auto has = records_.has_xattr(node, InodeRecord::kCapability, kCapabilityXattr);
    if (!has) return std::unexpected(has.error());
    if (!*has) return {};
    const auto removed = inode.remove_xattr(kCapabilityXattr);
    if (!removed && removed.error() != Errno{ENODATA}) return removed;
    return {};
}

Result<std::size_t> DirectoryKeeper::write(const change::Write& write, std::span<const std::byte> data) {
    const UpperMeter::Scope counting(meter_.get(), false);
    moved_.clear();
    if (const auto brought = bring_up(write.node, For::data); !brought) return std::unexpected(brought.error());
    const auto file = open_cached(write.node, true);
    if (!file) return std::unexpected(file.error());
    if (write.is_mapped) return write_mapped(write, (*file)->get(), data);
    const auto cleared = clear_privileges(write.node, write.clears_privileges, UpperInode((*file)->get()));
    if (!cleared) return std::unexpected(cleared.error());
    return write_at((*file)->get(), write.offset_bytes, data);
}

/// A mapping's pages take no privileges, but the write(2) by which they come into the upper does: puts them back.
Result<std::size_t> DirectoryKeeper::write_mapped(const change::Write& write, int fd, std::span<const std::byte> data) {
    const UpperInode inode(fd);
    const auto has = records_.has_xattr(write.node, InodeRecord::kCapability, kCapabilityXattr);
    if (!has) return std::unexpected(has.error());
    const auto capability =
        *has ? inode.xattr(kCapabilityXattr) : Result<std::optional<std::string>>(std::optional<std::string>());
    if (!capability) return std::unexpected(capability.error());
    const auto before = status_of(fd);
    const auto written = write_at(fd, write.offset_bytes, data);
    if (*capability)
        if (const auto set = inode.set_xattr(kCapabilityXattr, **capability); !set) return std::unexpected(set.error());
    const bool has_set_ids = before && without_set_ids(before->stx_mode) != before->stx_mode;
    if (has_set_ids)
        if (const auto set = inode.set_mode(before->stx_mode); !set) return std::unexpected(set.error());
    return written;
}

Result<void> DirectoryKeeper::resize(const change::Resize& resize) {
    if (const auto brought = bring_up(resize.node, For::data, resize.size_bytes); !brought)
        return std::unexpected(brought.error());
    const auto file = open_cached(resize.node, true);
    if (!file) return std::unexpected(file.error());
    const auto cleared = clear_privileges(resize.node, resize.clears_privileges, UpperInode((*file)->get()));
    if (!cleared) return cleared;
    return resize_file((*file)->get(), resize.size_bytes);
}

Result<void> DirectoryKeeper::allocate(NodeId file, int mode, const Range& range) {
    const UpperMeter::Scope counting(meter_.get(), false);
    moved_.clear();
    if (const auto brought = bring_up(file, For::data); !brought) return std::unexpected(brought.error());
    const auto opened = open_cached(file, true);
    if (!opened) return std::unexpected(opened.error());
    const int fd = (*opened)->get();
    if (const auto cleared = clear_privileges(file, false, UpperInode(fd)); !cleared) return cleared;
    const auto done = allocate_file(fd, mode, range.offset_bytes, range.size_bytes);
    const bool zeroes = (mode & ~FALLOC_FL_KEEP_SIZE) == FALLOC_FL_ZERO_RANGE;
    if (done || done.error() != Errno{EOPNOTSUPP} || !zeroes) return done;
    // Where zeros cannot be written so (tmpfs), a hole reads the same.
    const auto status = status_of(fd);
    if (!status) return std::unexpected(status.error());
    const std::uint64_t end = range.offset_bytes + range.size_bytes;
    if (!(mode & FALLOC_FL_KEEP_SIZE) && end > status->stx_size)
        if (const auto grown = resize_file(fd, end); !grown) return grown;
    return allocate_file(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, range.offset_bytes, range.size_bytes);
}

// Attributes.

/// The mode that the records will say, also where the file system below drops bits by rules of its own at a chown.
Result<void> DirectoryKeeper::put_owner_and_mode(const UpperInode& inode, const Attributes& before, std::uint32_t mode,
                                                 const change::SetAttributes& set) const {
    // A chown that keeps both owners is how ctime alone is moved.
    const bool is_only_ctime = !set.uid && !set.gid && !set.mode && !set.atime && !set.mtime && mode == before.mode;
    const bool is_new_owner = set.uid || set.gid || is_only_ctime;
    const bool is_new_mode = set.mode || mode != before.mode;
    if (tree_.keeps_stat_beside(mode)) {
        if (!is_new_owner && !is_new_mode) return {};
        return tree_.put_stat_beside(inode, {set.uid.value_or(before.uid), set.gid.value_or(before.gid)}, mode);
    }
    constexpr std::uint32_t kKeep = ~std::uint32_t{0};
    if (is_new_owner)
        if (const auto done = inode.set_owner({set.uid.value_or(kKeep), set.gid.value_or(kKeep)}); !done) return done;
    const bool may_have_lost_bits = is_new_owner && (mode & (S_ISUID | S_ISGID));
    if (S_ISLNK(mode) || (!is_new_mode && !may_have_lost_bits)) return {};
    return inode.set_mode(mode);
}

Result<void> DirectoryKeeper::set_attributes(const change::SetAttributes& set) {
    const auto brought = bring_up(set.node, For::attributes);
    if (!brought) return std::unexpected(brought.error());
    if (!*brought) return {};
    const auto before = records_.attributes(set.node);
    if (!before) return std::unexpected(before.error());
    const auto inode = tree_.inode(set.node);
    if (!inode) return std::unexpected(inode.error());
    std::uint32_t mode = set.mode ? (before->mode & S_IFMT) | (*set.mode & 07777) : before->mode;
    if (set.clears_privileges) mode = without_set_ids(mode);
    if (const auto done = put_owner_and_mode(*inode, *before, mode, set); !done) return done;
    if (set.clears_privileges)
        if (const auto done = clear_privileges(set.node, false, *inode); !done) return done;
    if (!set.atime && !set.mtime) return {};
    return inode->set_times(set.atime, set.mtime);
}

Result<void> DirectoryKeeper::set_xattr(const change::SetXattr& set) {
    if (!shown_xattr_name(stored_xattr_name(set.name))) return fail(EPERM);
    const auto brought = bring_up(set.node, For::attributes);
    if (!brought) return std::unexpected(brought.error());
    if (!*brought) return {};
    const auto inode = tree_.inode(set.node);
    if (!inode) return std::unexpected(inode.error());
    return inode->set_xattr(stored_xattr_name(set.name), set.value);
}

Result<void> DirectoryKeeper::remove_xattr(const change::RemoveXattr& remove) {
    const auto brought = bring_up(remove.node, For::attributes);
    if (!brought) return std::unexpected(brought.error());
    if (!*brought) return {};
    const auto inode = tree_.inode(remove.node);
    if (!inode) return std::unexpected(inode.error());
    const auto removed = inode->remove_xattr(stored_xattr_name(remove.name));
    if (!removed && removed.error() != Errno{ENODATA}) return removed;
    return {};
}

}  // namespace lamina::unionfs
