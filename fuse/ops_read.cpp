#include "fuse/libfuse.h"
#include "fuse/op_boundary.h"
#include "fuse/ops.h"
#include "fuse/posix_acl.h"

#include <unistd.h>

namespace lamina::unionfs {
namespace {

void op_lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
    answer(request, [&] { return union_of(request).lookup(parent, name); });
}

void op_forget(fuse_req_t request, fuse_ino_t node, std::uint64_t count) {
    forget(context_of(request), node, count);
    ::fuse_reply_none(request);
}

void op_forget_multi(fuse_req_t request, std::size_t count, fuse_forget_data* forgets) {
    for (const auto& one : std::span(forgets, count)) forget(context_of(request), one.ino, one.nlookup);
    ::fuse_reply_none(request);
}

void op_getattr(fuse_req_t request, fuse_ino_t node, fuse_file_info*) {
    answer(request, [&] { return union_of(request).attributes(node); });
}

void op_readlink(fuse_req_t request, fuse_ino_t node) {
    answer(request, [&]() -> Result<LinkText> {
        auto target = union_of(request).link_target(node);
        if (!target) return std::unexpected(target.error());
        return LinkText{std::move(*target)};
    });
}

// Each thread that reads has one reply buffer, made at its first read and as large as the largest request.
std::span<std::byte> reply_buffer(std::size_t size_bytes) {
    thread_local std::unique_ptr<LockedBuffer> buffer;
    if (!buffer || buffer->bytes().size() < size_bytes) {
        constexpr std::size_t kUsualBytes = 128 * 1024;
        buffer = std::make_unique<LockedBuffer>(std::max(size_bytes, kUsualBytes));
    }
    return buffer->bytes().first(size_bytes);
}

Result<DataBytes> read_into_buffer(UnionFs& fs, fuse_ino_t node, std::uint64_t offset_bytes, std::size_t size_bytes) {
    const auto room = reply_buffer(size_bytes);
    const auto got = fs.read(node, offset_bytes, room);
    if (!got) return std::unexpected(got.error());
    return DataBytes{room.first(*got)};
}

void op_read(fuse_req_t request, fuse_ino_t node, std::size_t size_bytes, off_t offset, fuse_file_info*) {
    UnionFs& fs = union_of(request);
    const auto offset_bytes = static_cast<std::uint64_t>(offset);
    const auto is_warm = contain_request(context_of(request), Transport::current(), [&]() -> Result<bool> {
        return fs.read_is_warm(node, offset_bytes, size_bytes);
    });
    if (is_warm.value_or(false)) {
        answer(request, [&] { return read_into_buffer(fs, node, offset_bytes, size_bytes); });
    } else {
        answer_later(request, [&fs, node, offset_bytes, size_bytes] {
            return read_into_buffer(fs, node, offset_bytes, size_bytes);
        });
    }
}

void op_statfs(fuse_req_t request, fuse_ino_t) {
    answer(request, [&]() -> Result<UnionFs::FileSystemUsage> { return union_of(request).usage(); });
}

Result<SizedValue> sized(Result<std::string> value, std::size_t room) {
    if (!value) return std::unexpected(value.error());
    return SizedValue{std::move(*value), room};
}

// An image may have bytes in the place of an ACL that the kernel does not accept: it would refuse everybody but the
// owner with an error of its own, so it is told of none.
bool is_no_acl(std::string_view name, std::string_view value) {
    return (name == kAccessAclXattr || name == kDefaultAclXattr) && !PosixAcl::parse(value);
}

// Where no xattr can be, ENOSYS says so once, and each ls -l and each exec is spared its questions. Else a missing
// SELinux label is "not supported" rather than "none": ls then asks no further file of the device.
void op_getxattr(fuse_req_t request, fuse_ino_t node, const char* name, std::size_t room) {
    answer(request, [&]() -> Result<SizedValue> {
        if (context_of(request).has_no_xattrs) return fail(ENOSYS);
        auto value = union_of(request).xattr(node, name);
        if (!value && value.error() == Errno{ENODATA} && name == std::string_view("security.selinux")) {
            return fail(EOPNOTSUPP);
        }
        if (value && is_no_acl(name, *value)) return fail(ENODATA);
        return sized(std::move(value), room);
    });
}

template <class IsHidden>
std::string names_without(const IsHidden& is_hidden, const std::string& names) {
    std::string shown;
    for (std::size_t at = 0; at < names.size();) {
        const std::string_view name(names.c_str() + at);
        if (!is_hidden(name)) shown.append(name).push_back('\0');
        at += name.size() + 1;
    }
    return shown;
}

void op_listxattr(fuse_req_t request, fuse_ino_t node, std::size_t room) {
    answer(request, [&]() -> Result<SizedValue> {
        if (context_of(request).has_no_xattrs) return fail(ENOSYS);
        UnionFs& fs = union_of(request);
        auto names = fs.xattr_names(node);
        if (!names) return std::unexpected(names.error());
        // Names that only the privileged may read are shown to nobody else; the kernel leaves this to us.
        const bool is_privileged = ::fuse_req_ctx(request)->uid == 0;
        const auto is_hidden = [&](std::string_view name) {
            if (name.starts_with("trusted.")) return !is_privileged;
            return name.starts_with("system.") && is_no_acl(name, fs.xattr(node, name).value_or(""));
        };
        return sized(names_without(is_hidden, *names), room);
    });
}

void op_lseek(fuse_req_t request, fuse_ino_t node, off_t offset, int whence, fuse_file_info*) {
    answer(request, [&]() -> Result<FileOffset> {
        if (whence != SEEK_DATA && whence != SEEK_HOLE) return fail(EINVAL);
        const auto found = union_of(request).seek(node, static_cast<std::uint64_t>(offset), whence == SEEK_DATA);
        if (!found) return std::unexpected(found.error());
        return FileOffset{*found};
    });
}

void op_fsync(fuse_req_t request, fuse_ino_t, int, fuse_file_info*) {
    UnionFs& fs = union_of(request);
    answer_later(request, [&fs] { return fs.sync(); });
}

}  // namespace

void add_reading_operations(fuse_lowlevel_ops& table) {
    table.lookup = op_lookup;
    table.forget = op_forget;
    table.forget_multi = op_forget_multi;
    table.getattr = op_getattr;
    table.readlink = op_readlink;
    table.read = op_read;
    table.statfs = op_statfs;
    table.getxattr = op_getxattr;
    table.listxattr = op_listxattr;
    table.lseek = op_lseek;
    table.fsync = op_fsync;
    table.fsyncdir = op_fsync;
}

}  // namespace lamina::unionfs
