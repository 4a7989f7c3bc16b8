// The operations that change bytes of files. Data goes to a new place of the extent file, right behind the bytes before
// it where that is possible, unless the keeper says that the old place may be written over. A write that needs both is
// several changes, one after the other; each is whole.
#include "fuse/union_fs.h"
#include "fuse/union_impl.h"

#include <fcntl.h>

#include <algorithm>
#include <vector>

namespace lamina::unionfs {
namespace {

constexpr std::uint64_t kCopyBytes = std::uint64_t{256} << 10;
constexpr std::uint64_t kMaxCopiedBytes = std::uint64_t{4} << 20;

/// Where the next bytes of a write go.
struct Target {
    std::uint64_t size_bytes = 0;
    std::uint64_t extent_offset_bytes = 0;  ///< Written over; else a new place is needed, best at this one.
    bool is_overwrite = false;
};

Target next_target(const ChangeSet::Records& records, const Keeper& keeper, const InodeRecord* inode,
                   std::uint64_t begin, std::uint64_t end) {
    if (!inode) return {.size_bytes = end - begin};
    const Extents extents = records.extents(*inode);
    std::uint64_t previous_end = 0;
    if (begin > 0)
        if (const auto before = extents.first_behind(begin - 1);
            before && before->offset_bytes < begin && !before->is_hole)
            previous_end = before->extent_offset_bytes + (begin - before->offset_bytes);
    std::uint64_t at = begin;
    while (at < end) {
        const auto extent = extents.first_behind(at);
        if (!extent || extent->offset_bytes >= end) break;
        const std::uint64_t from = std::max(at, extent->offset_bytes);
        const std::uint64_t to = std::min(end, extent->end_bytes());
        const std::uint64_t place = extent->extent_offset_bytes + (from - extent->offset_bytes);
        if (!extent->is_hole && keeper.may_overwrite(place, to - from)) {
            if (from == begin) return {.size_bytes = to - from, .extent_offset_bytes = place, .is_overwrite = true};
            return {.size_bytes = from - begin, .extent_offset_bytes = previous_end};
        }
        at = to;
    }
    return {.size_bytes = end - begin, .extent_offset_bytes = previous_end};
}

}  // namespace

/// Puts the next bytes of a write where they go, and makes them the file's. Returns how many they were.
Result<std::size_t> UnionFs::Impl::write_some(change::Write write, std::span<const std::byte> data) {
    const Target target =
        next_target(records, *keeper, records.inode(write.node), write.offset_bytes, write.offset_bytes + data.size());
    const auto part = data.first(target.size_bytes);
    write.size_bytes = part.size();
    write.extent_offset_bytes = target.extent_offset_bytes;
    bool is_in_place = false;
    if (target.is_overwrite) {  // A full disk is no reason against it.
        if (const auto reserved = reserve(write, 0); !reserved) return std::unexpected(reserved.error());
        const auto over = keeper->overwrite(target.extent_offset_bytes, part);
        is_in_place = over.has_value();
        if (!over && over.error() != Errno{EAGAIN}) return std::unexpected(over.error());
    }
    if (!is_in_place) {
        if (const auto reserved = reserve(write, part.size()); !reserved) return std::unexpected(reserved.error());
        const auto place = keeper->place(part, target.is_overwrite ? 0 : target.extent_offset_bytes);
        if (!place) return std::unexpected(place.error());
        write.extent_offset_bytes = *place;
    }
    if (const auto applied = apply(write); !applied) {
        if (!is_in_place) keeper->release(write.extent_offset_bytes, write.size_bytes);
        return std::unexpected(applied.error());
    }
    return part.size();
}

/// The keeper has the bytes first, then the records say so. A full disk may take a part of them.
Result<std::size_t> UnionFs::Impl::write_kept(change::Write write, std::span<const std::byte> data) {
    write.size_bytes = data.size();
    if (const auto reserved = reserve(write, data.size()); !reserved) return std::unexpected(reserved.error());
    const auto written = files->write(write, data);
    if (!written) return written;
    write.size_bytes = *written;
    if (const auto done = perform_kept(write); !done) return std::unexpected(done.error());
    return written;
}

Result<std::size_t> UnionFs::write(NodeId node, std::uint64_t offset_bytes, std::span<const std::byte> data,
                                   WriteBy by) {
    const std::lock_guard lock(impl_->mutex);
    if (const auto can = impl_->can_change(); !can) return std::unexpected(can.error());
    const auto file = impl_->file(node);
    if (!file) return std::unexpected(file.error());
    if (data.empty()) return 0;
    if (offset_bytes > kMaxFileBytes || data.size() > kMaxFileBytes - offset_bytes) return fail(EFBIG);
    change::Write write{.node = node,
                        .clears_privileges = by == WriteBy::unprivileged,
                        .is_mapped = by == WriteBy::mapping,
                        .time = impl_->clock()};
    write.offset_bytes = offset_bytes;
    write.size_bytes = data.size();  // All of it, although it may become several changes.
    if (const auto checked = impl_->check_limits(write); !checked) return std::unexpected(checked.error());
    std::size_t done = 0;
    while (done < data.size()) {
        write.offset_bytes = offset_bytes + done;
        const auto part = data.subspan(done);
        const auto written = impl_->files ? impl_->write_kept(write, part) : impl_->write_some(write, part);
        if (!written) {
            if (done > 0) return done;  // What is written is written, as write(2) says.
            return written;
        }
        done += *written;
    }
    return done;
}

Result<void> UnionFs::Impl::allocate_kept(const Attributes& file, int mode, const FileKeeper::Range& range) {
    const std::uint64_t end = range.offset_bytes + range.size_bytes;
    const std::uint64_t new_size = (mode & FALLOC_FL_KEEP_SIZE) ? file.size_bytes : std::max(file.size_bytes, end);
    const change::Zero zero{.node = file.node,
                            .offset_bytes = end,  // The bytes are the keeper's: here only size and times count.
                            .new_size_bytes = new_size,
                            .time = clock()};
    if (const auto reserved = reserve(zero, range.size_bytes); !reserved) return reserved;
    if (const auto done = files->allocate(file.node, mode, range); !done) return done;
    return perform_kept(zero);
}

Result<void> UnionFs::allocate(NodeId node, int mode, std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    const std::lock_guard lock(impl_->mutex);
    if (const auto can = impl_->can_change(); !can) return can;
    const auto found = impl_->records.attributes(node);
    if (!found) return std::unexpected(found.error());
    if (!S_ISREG(found->mode)) return fail(S_ISDIR(found->mode) ? EISDIR : ENODEV);
    constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    const bool keeps_size = (mode & FALLOC_FL_KEEP_SIZE) != 0;
    const bool is_zero = (mode & ~FALLOC_FL_KEEP_SIZE) == FALLOC_FL_ZERO_RANGE;
    if (mode != 0 && mode != FALLOC_FL_KEEP_SIZE && mode != kPunch && !is_zero) return fail(EOPNOTSUPP);
    if (size_bytes == 0) return fail(EINVAL);
    if (offset_bytes > kMaxFileBytes || size_bytes > kMaxFileBytes - offset_bytes) return fail(EFBIG);
    if (impl_->files) return impl_->allocate_kept(*found, mode, {offset_bytes, size_bytes});
    const std::uint64_t end = offset_bytes + size_bytes;
    const std::uint64_t new_size = keeps_size ? found->size_bytes : std::max(found->size_bytes, end);
    const Timestamp now = impl_->clock();
    if (mode == kPunch || is_zero)
        return impl_->perform(change::Zero{.node = node,
                                           .offset_bytes = offset_bytes,
                                           .size_bytes = size_bytes,
                                           .new_size_bytes = new_size,
                                           .time = now});
    const change::Write all{.node = node, .offset_bytes = offset_bytes, .size_bytes = size_bytes};
    if (const auto checked = impl_->check_limits(all); !checked) return checked;
    if (size_bytes > impl_->keeper->usage().available_bytes) return fail(ENOSPC);
    if (new_size == found->size_bytes)  // Space changes no bytes, but the times: as local file systems have it.
        return impl_->perform(change::SetAttributes{.node = node, .mtime = now, .ctime = now});
    return impl_->perform(change::Resize{.node = node, .size_bytes = new_size, .time = now});
}

Result<std::size_t> UnionFs::copy_range(const CopyRange& range) {
    if (const auto can = impl_->can_change(); !can) return std::unexpected(can.error());
    const auto distance = std::max(range.from_offset_bytes, range.to_offset_bytes) -
                          std::min(range.from_offset_bytes, range.to_offset_bytes);
    if (range.from == range.to && distance < range.size_bytes) return fail(EINVAL);
    const std::uint64_t wanted = std::min(range.size_bytes, kMaxCopiedBytes);  // The caller asks again for the rest.
    std::vector<std::byte> buffer(std::min(wanted, kCopyBytes));
    std::size_t done = 0;
    while (done < wanted) {
        const auto part = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), wanted - done));
        const auto count = read(range.from, range.from_offset_bytes + done, part);
        if (!count && done == 0) return count;
        if (!count || *count == 0) break;
        const auto written = write(range.to, range.to_offset_bytes + done, part.first(*count), WriteBy::privileged);
        if (!written && done == 0) return written;
        if (!written) break;
        done += *written;
        if (*written < *count) break;
    }
    return done;
}

}  // namespace lamina::unionfs
