#include "fuse/op_boundary.h"

#include <sys/statvfs.h>

namespace lamina::unionfs {
namespace {

timespec to_timespec(const Timestamp& time) {
    return {.tv_sec = time.seconds, .tv_nsec = static_cast<long>(time.nanoseconds)};
}

// A reply that finds its caller gone (interrupted) gave the kernel no entry: the look-up that it counted is taken back.
void send_entry(fuse_req_t request, const Entry& entry) {
    MountContext& context = context_of(request);  // The request is gone with its reply.
    const fuse_entry_param param = to_entry_param(context, entry);
    if (::fuse_reply_entry(request, &param) == -ENOENT) forget(context, entry.attributes.node, 1);
}

}  // namespace

void forget(MountContext& context, NodeId node, std::uint64_t count) noexcept {
    static_cast<void>(contain_request(context, Transport::current(), [&]() -> Result<void> {
        context.fs->forget(node, count);
        return {};
    }));
}

struct stat to_stat(const MountContext& context, const Attributes& attributes) {
    struct stat result {};
    result.st_ino = attributes.shown_number();
    result.st_mode = attributes.mode;
    result.st_nlink = attributes.nlink;
    result.st_uid = context.owners.shown_uid(attributes.uid);
    result.st_gid = context.owners.shown_gid(attributes.gid);
    result.st_rdev = attributes.device;
    result.st_size = static_cast<off_t>(attributes.size_bytes);
    result.st_blksize = kBlockBytes;
    result.st_blocks = static_cast<blkcnt_t>(attributes.allocated_bytes / 512);
    result.st_atim = to_timespec(attributes.atime);
    result.st_mtim = to_timespec(attributes.mtime);
    result.st_ctim = to_timespec(attributes.ctime);
    return result;
}

fuse_entry_param to_entry_param(const MountContext& context, const Entry& entry) {
    fuse_entry_param param{};
    param.ino = entry.attributes.node;
    param.attr = to_stat(context, entry.attributes);
    param.attr_timeout = kForeverSeconds;
    param.entry_timeout = kForeverSeconds;
    return param;
}

void send(fuse_req_t request, const Entry& entry) {
    send_entry(request, entry);
}

void send(fuse_req_t request, const std::optional<Entry>& entry) {
    if (entry) {
        send_entry(request, *entry);
        return;
    }
    fuse_entry_param absent{};
    absent.entry_timeout = kForeverSeconds;
    ::fuse_reply_entry(request, &absent);
}

void send(fuse_req_t request, const Attributes& attributes) {
    const struct stat result = to_stat(context_of(request), attributes);
    ::fuse_reply_attr(request, &result, kForeverSeconds);
}

void send(fuse_req_t request, const WrittenBytes& written) {
    ::fuse_reply_write(request, written.count);
}

void send(fuse_req_t request, const DataBytes& data) {
    ::fuse_reply_buf(request, reinterpret_cast<const char*>(data.data.data()), data.data.size());
}

void send(fuse_req_t request, const LinkText& link) {
    ::fuse_reply_readlink(request, link.target.c_str());
}

void send(fuse_req_t request, const SizedValue& value) {
    if (value.room == 0) {
        ::fuse_reply_xattr(request, value.value.size());
    } else if (value.value.size() > value.room) {
        ::fuse_reply_err(request, ERANGE);
    } else {
        ::fuse_reply_buf(request, value.value.data(), value.value.size());
    }
}

void send(fuse_req_t request, const FileOffset& offset) {
    ::fuse_reply_lseek(request, static_cast<off_t>(offset.offset_bytes));
}

void send(fuse_req_t request, const UnionFs::FileSystemUsage& usage) {
    struct statvfs result {};
    result.f_bsize = usage.block_bytes;
    result.f_frsize = usage.block_bytes;
    result.f_blocks = usage.blocks;
    result.f_bfree = usage.free_blocks;
    result.f_bavail = usage.available_blocks;
    result.f_files = usage.inodes;
    result.f_ffree = usage.free_inodes;
    result.f_favail = usage.free_inodes;
    result.f_namemax = 255;
    ::fuse_reply_statfs(request, &result);
}

bool waits_for_room(MountContext& context, Errno error) noexcept {
    if ((error != Errno{ENOSPC} && error != Errno{EDQUOT}) || !context.fs->awaits_forget()) return false;
    context.fs->wait_for_forget(kForgetPatience);
    return true;
}

void log_failure(MountContext& context, const RawRequest& request, const char* why) noexcept {
    try {
        context.log->line(fmt::format("{} of inode {} by process {}: {}", opcode_name(request.header.opcode),
                                      request.header.nodeid, request.header.pid, why));
    } catch (const std::exception&) {
        // Nothing can be said any more; the request is answered all the same.
    }
}

}  // namespace lamina::unionfs
