#include "fuse/libfuse.h"
#include "fuse/op_boundary.h"
#include "fuse/ops.h"
#include "fuse/waiting_call.h"

#include <linux/fs.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <ctime>
#include <span>
#include <vector>

namespace lamina::unionfs {
namespace {

/// Writes above this leave the reading thread: the disk may make them wait.
constexpr std::size_t kBigWriteBytes = 64 * 1024;
/// One COPY_FILE_RANGE does no more: the kernel asks again for the rest, and can be interrupted in between.
constexpr std::size_t kCopyLimitBytes = 16 << 20;

/// The fields of a SETATTR that libfuse passes on.
constexpr int kAllFields = FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID | FUSE_SET_ATTR_SIZE |
                           FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_CTIME | FUSE_SET_ATTR_ATIME_NOW |
                           FUSE_SET_ATTR_MTIME_NOW;

Caller caller_of(fuse_req_t request) {
    const fuse_ctx* const context = ::fuse_req_ctx(request);
    const OwnerMap& owners = context_of(request).owners;
    return {.uid = owners.kept_uid(context->uid), .gid = owners.kept_gid(context->gid), .umask = context->umask};
}

Timestamp now() {
    timespec time{};
    ::clock_gettime(CLOCK_REALTIME, &time);
    return {.seconds = time.tv_sec, .nanoseconds = static_cast<std::uint32_t>(time.tv_nsec)};
}

Timestamp to_timestamp(const timespec& time) {
    return {.seconds = time.tv_sec, .nanoseconds = static_cast<std::uint32_t>(time.tv_nsec)};
}

// The kill bit is not among those that libfuse 3.14 passes on.
bool setattr_kills_privileges() {
    const RawRequest& raw = Transport::current();
    fuse_setattr_in body{};
    if (raw.body.size() < sizeof body) return false;
    std::memcpy(&body, raw.body.data(), sizeof body);
    return (body.valid & kernel::kSetattrKillPrivileges) != 0;
}

UnionFs::WriteBy write_by() {
    const RawRequest& raw = Transport::current();
    fuse_write_in body{};
    if (raw.body.size() < sizeof body) return UnionFs::WriteBy::privileged;
    std::memcpy(&body, raw.body.data(), sizeof body);
    if ((body.write_flags & kernel::kWriteFromMapping) != 0) return UnionFs::WriteBy::mapping;
    const bool kills = (body.write_flags & kernel::kWriteKillPrivileges) != 0;
    return kills ? UnionFs::WriteBy::unprivileged : UnionFs::WriteBy::privileged;
}

AttributeChange to_change(const OwnerMap& owners, const struct stat& attributes, int valid) {
    AttributeChange change;
    if ((valid & FUSE_SET_ATTR_MODE) != 0) change.mode = attributes.st_mode & 07777;
    if ((valid & FUSE_SET_ATTR_UID) != 0) change.uid = owners.kept_uid(attributes.st_uid);
    if ((valid & FUSE_SET_ATTR_GID) != 0) change.gid = owners.kept_gid(attributes.st_gid);
    if ((valid & FUSE_SET_ATTR_SIZE) != 0) change.size_bytes = static_cast<std::uint64_t>(attributes.st_size);
    if ((valid & FUSE_SET_ATTR_ATIME) != 0) change.atime = to_timestamp(attributes.st_atim);
    if ((valid & FUSE_SET_ATTR_MTIME) != 0) change.mtime = to_timestamp(attributes.st_mtim);
    if ((valid & FUSE_SET_ATTR_CTIME) != 0) change.ctime = to_timestamp(attributes.st_ctim);
    if ((valid & FUSE_SET_ATTR_ATIME_NOW) != 0) change.atime = now();
    if ((valid & FUSE_SET_ATTR_MTIME_NOW) != 0) change.mtime = now();
    return change;
}

bool is_in_group(fuse_req_t request, std::uint32_t gid) {
    if (caller_of(request).gid == gid) return true;
    std::array<gid_t, 64> some{};
    std::vector<gid_t> all;
    std::span<gid_t> groups = some;
    int count = ::fuse_req_getgroups(request, static_cast<int>(groups.size()), groups.data());
    if (count > static_cast<int>(groups.size())) {
        all.resize(static_cast<std::size_t>(count));
        groups = all;
        count = std::min(count, ::fuse_req_getgroups(request, count, groups.data()));
    }
    const OwnerMap& owners = context_of(request).owners;
    return count > 0 && std::ranges::any_of(groups.first(static_cast<std::size_t>(count)),
                                            [&](gid_t group) { return owners.kept_gid(group) == gid; });
}

/// A file's mode when its set-id bits go, which set-gid without group execution does only where the caller is not of
/// the group.
std::uint32_t without_set_ids(fuse_req_t request, const Attributes& file) {
    const bool keeps_group = (file.mode & S_IXGRP) == 0 && is_in_group(request, file.gid);
    return file.mode & 07777 & ~std::uint32_t{S_ISUID} & ~(keeps_group ? 0U : std::uint32_t{S_ISGID});
}

/// A SETATTR without a field is a chown that changes neither owner, or goes before a change of the file's bytes that
/// takes its privileges; the kernel does not say which. Root's changes of bytes take capabilities alone. Who may not
/// change the mode keeps to what he does by a descriptor that he had before.
Result<void> resolve_empty(fuse_req_t request, const Attributes& file, AttributeChange& change) {
    const Caller caller = caller_of(request);
    const auto is_writing = [&] { return waits_in_write(static_cast<std::uint32_t>(::fuse_req_ctx(request)->pid)); };
    const bool is_owner = caller.uid == 0 || caller.uid == file.uid;
    const bool has_set_ids = !S_ISDIR(file.mode) && without_set_ids(request, file) != (file.mode & 07777);
    if (!is_owner && has_set_ids && !is_writing()) return fail(EPERM);
    change.clears_privileges = caller.uid != 0 || !is_writing();
    change.ctime = now();
    return {};
}

/// What the kernel does not say, and leaves to us.
Result<void> complete_change(fuse_req_t request, fuse_ino_t node, bool is_empty, AttributeChange& change) {
    const bool clears_set_ids = change.clears_privileges || change.uid || change.gid;
    if (!is_empty && !clears_set_ids) return {};
    const auto found = context_of(request).fs->attributes(node);
    if (!found) return std::unexpected(found.error());
    if (is_empty)
        if (const auto resolved = resolve_empty(request, *found, change); !resolved) return resolved;
    const bool keeps_group_alone = !S_ISDIR(found->mode) && (found->mode & (S_ISGID | S_IXGRP)) == S_ISGID;
    if (keeps_group_alone && !change.mode && caller_of(request).uid != 0)
        change.mode = without_set_ids(request, *found);
    return {};
}

void op_setattr(fuse_req_t request, fuse_ino_t node, struct stat* attributes, int valid, fuse_file_info*) {
    answer(request, [&]() -> Result<Attributes> {
        AttributeChange change = to_change(context_of(request).owners, *attributes, valid);
        change.clears_privileges = setattr_kills_privileges();
        if (const auto completed = complete_change(request, node, (valid & kAllFields) == 0, change); !completed)
            return std::unexpected(completed.error());
        return union_of(request).set_attributes(node, change);
    });
}

void op_mknod(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode, dev_t device) {
    answer(request,
           [&] { return union_of(request).make(parent, name, {.mode = mode, .device = device}, caller_of(request)); });
}

void op_mkdir(fuse_req_t request, fuse_ino_t parent, const char* name, mode_t mode) {
    answer(request, [&] {
        return union_of(request).make(parent, name, {.mode = S_IFDIR | (mode & 07777)}, caller_of(request));
    });
}

void op_symlink(fuse_req_t request, const char* target, fuse_ino_t parent, const char* name) {
    answer(request, [&] {
        return union_of(request).make(parent, name, {.mode = S_IFLNK | 0777, .link_target = target},
                                      caller_of(request));
    });
}

void op_link(fuse_req_t request, fuse_ino_t node, fuse_ino_t parent, const char* name) {
    answer(request, [&] { return union_of(request).link(node, parent, name); });
}

void op_unlink(fuse_req_t request, fuse_ino_t parent, const char* name) {
    answer(request, [&] { return union_of(request).unlink(parent, name); });
}

void op_rmdir(fuse_req_t request, fuse_ino_t parent, const char* name) {
    answer(request, [&] { return union_of(request).remove_directory(parent, name); });
}

void op_rename(fuse_req_t request, fuse_ino_t from, const char* old_name, fuse_ino_t to, const char* new_name,
               unsigned flags) {
    answer(request, [&]() -> Result<void> {
        const bool no_replace = (flags & RENAME_NOREPLACE) != 0;
        const bool exchange = (flags & RENAME_EXCHANGE) != 0;
        if ((flags & ~unsigned{RENAME_NOREPLACE | RENAME_EXCHANGE}) != 0 || (no_replace && exchange)) {
            return fail(EINVAL);
        }
        return union_of(request).rename({from, old_name}, {to, new_name},
                                        {.no_replace = no_replace, .exchange = exchange});
    });
}

Result<WrittenBytes> written(Result<std::size_t> count) {
    if (!count) return std::unexpected(count.error());
    return WrittenBytes{*count};
}

/// A big write on its way to a worker, with the buffer that holds its bytes.
class BigWrite {
public:
    BigWrite(MountContext& context, std::unique_ptr<LockedBuffer> buffer)
        : context_(&context), buffer_(std::move(buffer)) {}
    BigWrite(BigWrite&&) = default;
    BigWrite& operator=(BigWrite&&) = delete;
    ~BigWrite() {
        if (buffer_) context_->transport->buffers().give_back(std::move(buffer_));
    }
    fuse_ino_t node = 0;
    std::uint64_t offset_bytes = 0;
    std::span<const std::byte> data;  ///< Inside the buffer.
    UnionFs::WriteBy by = UnionFs::WriteBy::privileged;
    Result<WrittenBytes> operator()() { return written(context_->fs->write(node, offset_bytes, data, by)); }

private:
    MountContext* context_;
    std::unique_ptr<LockedBuffer> buffer_;
};

void op_write(fuse_req_t request, fuse_ino_t node, const char* bytes, std::size_t size_bytes, off_t offset,
              fuse_file_info*) {
    MountContext& context = context_of(request);
    const auto data = std::as_bytes(std::span(bytes, size_bytes));
    const auto offset_bytes = static_cast<std::uint64_t>(offset);
    const UnionFs::WriteBy by = write_by();
    if (size_bytes > kBigWriteBytes) {
        if (auto kept = context.transport->keep_current()) {
            BigWrite later(context, std::move(kept));
            later.node = node;
            later.offset_bytes = offset_bytes;
            later.data = data;
            later.by = by;
            answer_later(request, std::move(later));
            return;
        }
    }
    answer(request, [&] { return written(context.fs->write(node, offset_bytes, data, by)); });
}

void op_fallocate(fuse_req_t request, fuse_ino_t node, int mode, off_t offset, off_t size, fuse_file_info*) {
    answer(request, [&] {
        return union_of(request).allocate(node, mode, static_cast<std::uint64_t>(offset),
                                          static_cast<std::uint64_t>(size));
    });
}

void op_copy_file_range(fuse_req_t request, fuse_ino_t from, off_t from_offset, fuse_file_info*, fuse_ino_t to,
                        off_t to_offset, fuse_file_info*, std::size_t size_bytes, int flags) {
    UnionFs& fs = union_of(request);
    const UnionFs::CopyRange range{.from = from,
                                   .from_offset_bytes = static_cast<std::uint64_t>(from_offset),
                                   .to = to,
                                   .to_offset_bytes = static_cast<std::uint64_t>(to_offset),
                                   .size_bytes = std::min(size_bytes, kCopyLimitBytes)};
    answer_later(request, [&fs, range, flags]() -> Result<WrittenBytes> {
        if (flags != 0) return fail(EINVAL);
        return written(fs.copy_range(range));
    });
}

void op_removexattr(fuse_req_t request, fuse_ino_t node, const char* name) {
    answer(request, [&] { return union_of(request).remove_xattr(node, name); });
}

}  // namespace

void add_changing_operations(fuse_lowlevel_ops& table) {
    table.setattr = op_setattr;
    table.mknod = op_mknod;
    table.mkdir = op_mkdir;
    table.symlink = op_symlink;
    table.link = op_link;
    table.unlink = op_unlink;
    table.rmdir = op_rmdir;
    table.rename = op_rename;
    table.write = op_write;
    table.fallocate = op_fallocate;
    table.copy_file_range = op_copy_file_range;
    table.removexattr = op_removexattr;
}

}  // namespace lamina::unionfs
