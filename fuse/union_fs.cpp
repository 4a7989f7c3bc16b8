// The operations that read. Each takes the lock, asks the records, and where they say nothing, the view. Bytes are
// read without the lock: a read first collects its pieces under it, and a Reader keeps their space from being used
// again until they are read. Space that a change frees is released only when the keeper has the change.
#include "fuse/union_fs.h"

#include "fuse/contain.h"
#include "fuse/dir_listing.h"
#include "fuse/posix_acl.h"
#include "fuse/union_impl.h"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <utility>

namespace lamina::unionfs {
namespace {

constexpr std::size_t kListedAtOnce = 256;

Timestamp real_time() {
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    return {.seconds = now.tv_sec, .nanoseconds = static_cast<std::uint32_t>(now.tv_nsec)};
}

/// An upper bound of what the log needs for a change.
std::uint64_t record_bytes(const change::Change& change) {
    constexpr std::uint64_t kFixed = 512;
    const auto text = [](const auto& one) -> std::uint64_t {
        using One = std::decay_t<decltype(one)>;
        if constexpr (std::is_same_v<One, change::Make>)
            return one.name.size() + one.link_target.size() + one.access_acl.size() + one.default_acl.size();
        else if constexpr (std::is_same_v<One, change::Rename>)
            return one.old_name.size() + one.new_name.size();
        else if constexpr (std::is_same_v<One, change::SetXattr>)
            return one.name.size() + one.value.size();
        else
            return kMaxNameBytes;
    };
    return kFixed + std::visit(text, change);
}

}  // namespace

Result<void> check_name(std::string_view name) {
    if (name.empty()) return fail(ENOENT);
    if (name.size() > kMaxNameBytes) return fail(ENAMETOOLONG);
    if (!is_valid_name(name)) return fail(EINVAL);
    return {};
}

Result<void> check_xattr_name(std::string_view name) {
    if (name == kAccessAclXattr || name == kDefaultAclXattr) return {};
    for (const std::string_view space : {"user.", "trusted.", "security."}) {
        if (!name.starts_with(space)) continue;
        if (name.size() == space.size()) return fail(EINVAL);
        return {};
    }
    return fail(EOPNOTSUPP);
}

UnionFs::Impl::Impl(const View& below, ChangeSet& change_set, Keeper* change_keeper, Clock time)
    : view(below),
      changes(change_set),
      records(change_set.records()),
      keeper(change_keeper),
      files(change_keeper ? change_keeper->files() : nullptr),
      clock(time ? std::move(time) : Clock(real_time)) {
    changes.on_freed([this](std::uint64_t offset_bytes, std::uint64_t size_bytes) {
        freed_.push_back({offset_bytes, size_bytes});
    });
}

UnionFs::Impl::~Impl() {
    changes.on_freed({});
}

Result<void> UnionFs::Impl::can_change() const {
    if (!keeper) return fail(EROFS);
    return {};
}

Result<Attributes> UnionFs::Impl::directory(NodeId node) const {
    auto found = records.attributes(node);
    if (found && !S_ISDIR(found->mode)) return fail(ENOTDIR);
    return found;
}

Result<Attributes> UnionFs::Impl::live_directory(NodeId node) const {
    auto found = directory(node);
    if (found && found->nlink == 0) return fail(ENOENT);
    return found;
}

Result<Attributes> UnionFs::Impl::file(NodeId node) const {
    auto found = records.attributes(node);
    if (found && S_ISDIR(found->mode)) return fail(EISDIR);
    if (found && !S_ISREG(found->mode)) return fail(EINVAL);
    return found;
}

Result<Resolved> UnionFs::Impl::existing(NodeId parent, std::string_view name) const {
    if (const auto checked = check_name(name); !checked) return std::unexpected(checked.error());
    const auto found_parent = directory(parent);
    if (!found_parent) return std::unexpected(found_parent.error());
    auto found = records.resolve(parent, name);
    if (found && found->node == 0) return fail(ENOENT);
    return found;
}

Result<void> UnionFs::Impl::perform(const change::Change& change) {
    if (const auto reserved = reserve(change, 0); !reserved) return reserved;
    return apply(change);
}

Result<void> UnionFs::Impl::reserve(const change::Change& change, std::uint64_t data_bytes) {
    if (const auto checked = check_limits(change); !checked) return checked;
    if (const auto reserved = changes.reserve(change); !reserved) return reserved;
    const bool frees = std::holds_alternative<change::Remove>(change) || std::holds_alternative<change::Resize>(change);
    if (frees) return keeper->reserve_to_free(record_bytes(change));
    return keeper->reserve(record_bytes(change), data_bytes);
}

Result<void> UnionFs::Impl::check_limits(const change::Change& change) const {
    if (files || !limits.is_set()) return {};
    return check_quota(records, limits, change);
}

QuotaUsage UnionFs::Impl::quota_usage() const {
    return files ? files->quota_usage() : unionfs::quota_usage(records);
}

Result<void> UnionFs::Impl::apply(const change::Change& change) {
    if (files)
        if (const auto acted = files->act(change); !acted) return acted;
    return perform_kept(change);
}

Result<void> UnionFs::Impl::perform_kept(const change::Change& change) {
    const auto done = contain([&] {
        Arena::Transaction transaction(records.arena());
        if (const auto applied = changes.apply(change); !applied) return applied;
        keeper->append(change);
        transaction.commit();
        return Result<void>{};
    });
    keeper->appended(done.has_value());
    if (!done) freed_.clear();  // What was undone has freed nothing.
    release_freed();
    return done;
}

Result<Attributes> UnionFs::Impl::shown(NodeId node) const {
    auto found = records.attributes(node);
    if (found && is_kept(node)) files->complete(*found);
    return found;
}

Result<Entry> UnionFs::Impl::entry(NodeId node) {
    const auto found = shown(node);
    if (!found) return std::unexpected(found.error());
    if (keeper) records.add_lookup(node);  // Read-only: nothing is ever removed, so nothing need be counted.
    return Entry{.attributes = *found};
}

void UnionFs::Impl::reap(NodeId node) {
    const InodeRecord* const inode = records.inode(node);
    if (!inode || inode->nlink != 0 || records.is_known(node)) return;
    if (files) files->drop(node);
    changes.drop(node);
    release_freed();
}

void UnionFs::Impl::lost_name(NodeId node) {
    const InodeRecord* const inode = records.inode(node);
    if (inode && inode->nlink == 0 && records.is_known(node)) ++nameless_count;
    reap(node);
}

void UnionFs::Impl::is_not_nameless() {
    if (nameless_count == 0) return;
    held_count = std::min(held_count, --nameless_count);
    one_is_forgotten.notify_all();
}

void UnionFs::Impl::release_freed() {
    for (const FreedExtent& freed : freed_)
        if (keeper) keeper->release(freed.extent_offset_bytes, freed.size_bytes);
    freed_.clear();
}

UnionFs::UnionFs(const View& view, ChangeSet& changes, Keeper* keeper, Clock clock)
    : impl_(std::make_unique<Impl>(view, changes, keeper, std::move(clock))) {}
UnionFs::~UnionFs() = default;

Result<std::optional<Entry>> UnionFs::lookup(NodeId parent, std::string_view name) {
    const std::lock_guard lock(impl_->mutex);
    const auto directory = impl_->directory(parent);
    if (!directory) return std::unexpected(directory.error());
    NodeId node = parent;
    if (name == "..") {
        const auto above = impl_->records.parent(parent);
        if (!above) return std::unexpected(above.error());
        if (*above == 0) return std::nullopt;
        node = *above;
    } else if (name != ".") {
        if (const auto checked = check_name(name); !checked) return std::unexpected(checked.error());
        const auto found = impl_->records.resolve(parent, name);
        if (!found) return std::unexpected(found.error());
        if (found->node == 0) return std::nullopt;
        node = found->node;
    }
    const auto entry = impl_->entry(node);
    if (!entry) return std::unexpected(entry.error());
    return *entry;
}

Result<Entry> UnionFs::entry(NodeId node) {
    const std::lock_guard lock(impl_->mutex);
    return impl_->entry(node);
}

void UnionFs::forget(NodeId node, std::uint64_t count) {
    const std::lock_guard lock(impl_->mutex);
    if (!impl_->keeper || !impl_->records.forget(node, count)) return;
    const InodeRecord* const inode = impl_->records.inode(node);
    const bool is_nameless = inode && inode->nlink == 0;
    impl_->reap(node);
    if (is_nameless) impl_->is_not_nameless();
}

bool UnionFs::awaits_forget() const noexcept {
    const std::lock_guard lock(impl_->mutex);
    return impl_->nameless_count > impl_->held_count;
}

void UnionFs::wait_for_forget(std::chrono::milliseconds limit) {
    std::unique_lock lock(impl_->mutex);
    const auto is_all_forgotten = [&] { return impl_->nameless_count <= impl_->held_count; };
    if (!impl_->one_is_forgotten.wait_for(lock, limit, is_all_forgotten)) impl_->held_count = impl_->nameless_count;
}

Result<Attributes> UnionFs::attributes(NodeId node) {
    const std::lock_guard lock(impl_->mutex);
    return impl_->shown(node);
}

Result<std::string> UnionFs::link_target(NodeId node) {
    const std::lock_guard lock(impl_->mutex);
    const auto found = impl_->records.attributes(node);
    if (!found) return std::unexpected(found.error());
    if (!S_ISLNK(found->mode)) return fail(EINVAL);
    if (const InodeRecord* const inode = impl_->records.inode(node); inode && inode->link_target)
        return std::string(impl_->records.arena().get(inode->link_target).text());
    if (impl_->is_kept(node)) return impl_->files->link_target(node);
    const auto target = impl_->view.link_target(node);
    if (!target) return std::unexpected(target.error());
    return std::string(*target);
}

Result<void> UnionFs::list(NodeId directory, std::uint64_t cookie,
                           const std::function<bool(const ListedEntry&)>& emit) {
    DirectoryRun run;
    std::uint64_t next = cookie;
    do {
        {
            const std::lock_guard lock(impl_->mutex);
            if (const auto found = impl_->directory(directory); !found) return std::unexpected(found.error());
            if (const auto filled = run.fill(impl_->records, directory, next, kListedAtOnce); !filled) return filled;
        }
        if (!run.emit(emit)) return {};
        next = run.next_cookie();
    } while (!run.is_last());
    return {};
}

Result<std::vector<UnionFs::Impl::Piece>> UnionFs::Impl::plan_read(NodeId node, std::uint64_t offset_bytes,
                                                                   std::uint64_t size_bytes) const {
    const auto found = file(node);
    if (!found) return std::unexpected(found.error());
    if (offset_bytes >= found->size_bytes) return std::vector<Piece>{};
    const std::uint64_t end = offset_bytes + std::min(size_bytes, found->size_bytes - offset_bytes);
    if (is_kept(node)) return std::vector{Piece{Piece::Source::kept, offset_bytes, end - offset_bytes, 0}};
    const InodeRecord* const inode = records.inode(node);
    if (!inode) return std::vector{Piece{Piece::Source::view, offset_bytes, end - offset_bytes, 0}};
    std::vector<Piece> pieces;
    std::uint64_t at = offset_bytes;
    const auto add = [&](Piece::Source source, std::uint64_t until, std::uint64_t extent_offset = 0) {
        if (until <= at) return;
        pieces.push_back({source, at, until - at, extent_offset});
        at = until;
    };
    while (at < end) {
        const auto extent = records.extents(*inode).first_behind(at);
        const std::uint64_t gap_end = extent ? std::clamp(extent->offset_bytes, at, end) : end;
        add(Piece::Source::view, std::min(gap_end, inode->view_size_bytes));
        add(Piece::Source::zero, gap_end);
        if (!extent || at >= end) continue;
        const std::uint64_t extent_end = std::min(end, extent->end_bytes());
        if (extent->is_hole)
            add(Piece::Source::zero, extent_end);
        else
            add(Piece::Source::extent, extent_end, extent->extent_offset_bytes + (at - extent->offset_bytes));
    }
    return pieces;
}

namespace {

/// Fewer bytes than asked only at the end of the file.
Result<std::size_t> read_kept(int fd, std::uint64_t offset_bytes, std::span<std::byte> out) {
    std::size_t done = 0;
    while (done < out.size()) {
        const auto count = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset_bytes + done));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return fail(errno);
        if (count == 0) break;
        done += static_cast<std::size_t>(count);
    }
    return done;
}

/// Whether the page cache has a byte of a file.
bool is_cached(int fd, std::uint64_t offset_bytes) {
    char byte = 0;
    const iovec into{&byte, 1};
    return ::preadv2(fd, &into, 1, static_cast<off_t>(offset_bytes), RWF_NOWAIT) >= 0;
}

}  // namespace

Result<std::size_t> UnionFs::read(NodeId node, std::uint64_t offset_bytes, std::span<std::byte> out) {
    std::optional<Impl::Reader> reader;
    FileKeeper::OpenFile kept;
    std::vector<Impl::Piece> pieces;
    {
        const std::lock_guard lock(impl_->mutex);
        auto plan = impl_->plan_read(node, offset_bytes, out.size());
        if (!plan) return std::unexpected(plan.error());
        pieces = std::move(*plan);
        using Source = Impl::Piece::Source;
        if (std::ranges::any_of(pieces, [](const auto& piece) { return piece.source == Source::extent; }))
            reader.emplace(impl_->keeper);
        if (!pieces.empty() && pieces.front().source == Source::kept) {
            auto opened = impl_->files->open(node);
            if (!opened) return std::unexpected(opened.error());
            kept = std::move(*opened);
        }
    }
    if (kept) return read_kept(kept->get(), offset_bytes, out.first(pieces.front().size_bytes));
    std::size_t done = 0;
    for (const Impl::Piece& piece : pieces) {
        const auto part = out.subspan(piece.offset_bytes - offset_bytes, piece.size_bytes);
        switch (piece.source) {
            case Impl::Piece::Source::kept:  // Is the only piece.
                break;
            case Impl::Piece::Source::zero:
                std::ranges::fill(part, std::byte{0});
                break;
            case Impl::Piece::Source::extent:
                if (!impl_->keeper) return fail(EIO);
                if (const auto loaded = impl_->keeper->load(piece.extent_offset_bytes, part); !loaded)
                    return std::unexpected(loaded.error());
                break;
            case Impl::Piece::Source::view:
                const auto count = impl_->view.read(node, piece.offset_bytes, part);
                if (!count) return std::unexpected(count.error());
                if (*count != part.size()) return fail(EIO);
                break;
        }
        done += part.size();
    }
    return done;
}

bool UnionFs::read_is_warm(NodeId node, std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    const std::lock_guard lock(impl_->mutex);
    const auto pieces = impl_->plan_read(node, offset_bytes, size_bytes);
    if (!pieces) return true;  // The error needs no disk.
    return std::ranges::all_of(*pieces, [&](const Impl::Piece& piece) {
        if (piece.source == Impl::Piece::Source::kept) {
            const auto opened = impl_->files->open(node);
            return !opened || (is_cached((*opened)->get(), piece.offset_bytes) &&
                               is_cached((*opened)->get(), piece.offset_bytes + piece.size_bytes - 1));
        }
        return piece.source != Impl::Piece::Source::view ||
               impl_->view.is_warm(node, piece.offset_bytes, piece.size_bytes);
    });
}

Result<std::uint64_t> UnionFs::seek(NodeId node, std::uint64_t offset_bytes, bool wants_data) {
    const std::lock_guard lock(impl_->mutex);
    const auto found = impl_->file(node);
    if (!found) return std::unexpected(found.error());
    if (offset_bytes >= found->size_bytes) return fail(ENXIO);
    if (impl_->is_kept(node)) {
        const auto opened = impl_->files->open(node);
        if (!opened) return std::unexpected(opened.error());
        const off_t there =
            ::lseek((*opened)->get(), static_cast<off_t>(offset_bytes), wants_data ? SEEK_DATA : SEEK_HOLE);
        if (there < 0) return fail(errno);
        return static_cast<std::uint64_t>(there);
    }
    const InodeRecord* const inode = impl_->records.inode(node);
    const View& view = impl_->view;
    if (!inode) return wants_data ? view.seek_data(node, offset_bytes) : view.seek_hole(node, offset_bytes);
    for (std::uint64_t at = offset_bytes; at < found->size_bytes;) {
        const auto extent = impl_->records.extents(*inode).first_behind(at);
        if (extent && extent->offset_bytes <= at) {
            if (extent->is_hole != wants_data) return at;
            at = extent->end_bytes();
            continue;
        }
        const std::uint64_t gap_end = extent ? extent->offset_bytes : found->size_bytes;
        const std::uint64_t view_end = std::min(gap_end, inode->view_size_bytes);
        if (at < view_end) {
            const auto there = wants_data ? view.seek_data(node, at) : view.seek_hole(node, at);
            if (!there && there.error() != Errno{ENXIO}) return there;
            if (there && *there < view_end) return there;
            at = view_end;
            continue;
        }
        if (!wants_data) return at;
        at = gap_end;
    }
    if (wants_data) return fail(ENXIO);
    return found->size_bytes;
}

Result<std::string> UnionFs::xattr(NodeId node, std::string_view name) {
    const std::lock_guard lock(impl_->mutex);
    const auto value = impl_->records.xattr(node, name);
    if (!value) return std::unexpected(value.error());
    if (*value) return std::string(**value);
    if (const auto checked = check_xattr_name(name); !checked) return std::unexpected(checked.error());
    return fail(ENODATA);
}

Result<std::string> UnionFs::xattr_names(NodeId node) {
    const std::lock_guard lock(impl_->mutex);
    const auto all = impl_->records.xattrs(node);
    if (!all) return std::unexpected(all.error());
    std::string names;
    for (const auto& [name, value] : *all) names.append(name).push_back('\0');
    if (names.size() > kMaxXattrListBytes) return fail(E2BIG);
    return names;
}

Result<void> UnionFs::sync() {
    if (!impl_->keeper) return {};
    return impl_->keeper->sync();
}

Result<void> UnionFs::set_quota(const QuotaLimits& limits) {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->files)
        if (const auto set = impl_->files->set_quota(limits); !set) return set;
    impl_->limits = limits;
    return {};
}

UnionFs::Quota UnionFs::quota() {
    const std::lock_guard lock(impl_->mutex);
    return {.limits = impl_->limits, .used = impl_->quota_usage()};
}

UnionFs::FileSystemUsage UnionFs::usage() {
    FileSystemUsage usage;
    Quota quota;
    {
        const std::lock_guard lock(impl_->mutex);
        usage.inodes = impl_->view.node_count() + impl_->records.inodes().size();
        quota = {.limits = impl_->limits, .used = impl_->limits.is_set() ? impl_->quota_usage() : QuotaUsage{}};
    }
    const std::uint64_t below = impl_->view.logical_bytes() / usage.block_bytes;
    usage.blocks = below;
    if (!impl_->keeper) return usage;
    const Keeper::Usage kept = impl_->keeper->usage();
    const std::uint64_t on_disk = kept.available_bytes / usage.block_bytes;
    usage.blocks = std::max(kept.total_bytes / usage.block_bytes, below);
    usage.free_blocks = on_disk;
    usage.free_inodes = kMaxLinks;
    usage.inodes += usage.free_inodes;
    if (quota.limits.bytes != 0) {
        usage.blocks = quota.limits.bytes / usage.block_bytes;
        const std::uint64_t used = (quota.used.bytes + usage.block_bytes - 1) / usage.block_bytes;
        usage.free_blocks = usage.blocks - std::min(usage.blocks, used);
    }
    usage.available_blocks = std::min(usage.free_blocks, on_disk);
    if (quota.limits.inodes != 0) {
        usage.inodes = quota.limits.inodes;
        usage.free_inodes = usage.inodes - std::min(usage.inodes, quota.used.inodes);
    }
    return usage;
}

}  // namespace lamina::unionfs
