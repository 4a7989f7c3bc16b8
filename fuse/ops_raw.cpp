// Requests that libfuse 3.14 does not know, or not in full, taken apart here. The kernel pads nothing and terminates
// names with NUL; each length is checked all the same.
#include "fuse/op_boundary.h"
#include "fuse/ops.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <array>
#include <cstring>
#include <optional>
#include <string_view>

namespace lamina::unionfs {
namespace {

using kernel::SetxattrIn;
using kernel::StatxIn;
using kernel::StatxOut;
using kernel::StatxTime;

constexpr std::uint64_t kForever = static_cast<std::uint64_t>(kForeverSeconds);

template <class Body>
std::optional<Body> body_of(const RawRequest& request) {
    if (request.body.size() < sizeof(Body)) return std::nullopt;
    Body body{};
    std::memcpy(&body, request.body.data(), sizeof body);
    return body;
}

/// The NUL-terminated name at `offset` of the body; nullopt when it does not end inside.
std::optional<std::string_view> name_at(const RawRequest& request, std::size_t offset) {
    if (offset >= request.body.size()) return std::nullopt;
    const auto rest = request.body.subspan(offset);
    const void* const end = std::memchr(rest.data(), 0, rest.size());
    if (end == nullptr) return std::nullopt;
    const auto* const begin = reinterpret_cast<const char*>(rest.data());
    return std::string_view(begin, static_cast<std::size_t>(static_cast<const char*>(end) - begin));
}

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
    return std::as_bytes(std::span(&value, 1));
}

fuse_attr to_kernel(const OwnerMap& owners, const Attributes& attributes) {
    fuse_attr result{};
    result.ino = attributes.shown_number();
    result.size = attributes.size_bytes;
    result.blocks = attributes.allocated_bytes / 512;
    result.atime = static_cast<std::uint64_t>(attributes.atime.seconds);
    result.mtime = static_cast<std::uint64_t>(attributes.mtime.seconds);
    result.ctime = static_cast<std::uint64_t>(attributes.ctime.seconds);
    result.atimensec = attributes.atime.nanoseconds;
    result.mtimensec = attributes.mtime.nanoseconds;
    result.ctimensec = attributes.ctime.nanoseconds;
    result.mode = attributes.mode;
    result.nlink = attributes.nlink;
    result.uid = owners.shown_uid(attributes.uid);
    result.gid = owners.shown_gid(attributes.gid);
    result.rdev = static_cast<std::uint32_t>(attributes.device);
    result.blksize = kBlockBytes;
    return result;
}

StatxTime to_statx(const Timestamp& time) {
    return {.seconds = time.seconds, .nanoseconds = time.nanoseconds, .reserved = 0};
}

StatxOut to_statx(const OwnerMap& owners, const Attributes& attributes) {
    StatxOut out{};
    out.attr_valid_s = kForever;
    auto& stat = out.stat;
    stat.mask = STATX_BASIC_STATS | STATX_BTIME;
    stat.block_bytes = kBlockBytes;
    stat.nlink = attributes.nlink;
    stat.uid = owners.shown_uid(attributes.uid);
    stat.gid = owners.shown_gid(attributes.gid);
    stat.mode = static_cast<std::uint16_t>(attributes.mode);
    stat.ino = attributes.shown_number();
    stat.size_bytes = attributes.size_bytes;
    stat.blocks = attributes.allocated_bytes / 512;
    stat.atime = to_statx(attributes.atime);
    stat.birth = to_statx(attributes.birth);
    stat.ctime = to_statx(attributes.ctime);
    stat.mtime = to_statx(attributes.mtime);
    stat.rdev_major = gnu_dev_major(attributes.device);
    stat.rdev_minor = gnu_dev_minor(attributes.device);
    return out;
}

void answer_statx(MountContext& context, const RawRequest& request) {
    const auto attributes = contain_request(context, request, [&]() -> Result<Attributes> {
        if (!body_of<StatxIn>(request)) return fail(EINVAL);
        return context.fs->attributes(request.header.nodeid);
    });
    if (!attributes) {
        context.transport->reply(request.header.unique, std::to_underlying(attributes.error()));
        return;
    }
    context.transport->reply(request.header.unique, 0, bytes_of(to_statx(context.owners, *attributes)));
}

/// To TMPFILE with what an open answers behind it, to all others alone.
void reply_entry(MountContext& context, const RawRequest& request, const Result<Entry>& entry) {
    if (!entry) {
        context.transport->reply(request.header.unique, std::to_underlying(entry.error()));
        return;
    }
    struct Reply {
        fuse_entry_out entry;
        fuse_open_out open;
    } reply{};
    static_assert(sizeof(Reply) == sizeof(fuse_entry_out) + sizeof(fuse_open_out));
    reply.entry.nodeid = entry->attributes.node;
    reply.entry.entry_valid = reply.entry.attr_valid = kForever;
    reply.entry.attr = to_kernel(context.owners, entry->attributes);
    reply.open.open_flags = FOPEN_KEEP_CACHE;
    const bool opens = request.header.opcode == kernel::kOpTmpfile;
    context.transport->reply(request.header.unique, 0, opens ? bytes_of(reply) : bytes_of(reply.entry));
}

void answer_tmpfile(MountContext& context, const RawRequest& request) {
    const auto made = contain_request(context, request, [&]() -> Result<Entry> {
        const auto body = body_of<fuse_create_in>(request);
        if (!body) return fail(EINVAL);
        const Caller caller{.uid = context.owners.kept_uid(request.header.uid),
                            .gid = context.owners.kept_gid(request.header.gid),
                            .umask = body->umask};
        return context.fs->make_unnamed(request.header.nodeid, {.mode = S_IFREG | (body->mode & 07777)}, caller);
    });
    reply_entry(context, request, made);
}

void answer_setxattr(MountContext& context, const RawRequest& request) {
    const auto done = contain_request(context, request, [&]() -> Result<void> {
        const auto body = body_of<SetxattrIn>(request);
        if (!body) return fail(EINVAL);
        const auto name = name_at(request, sizeof(SetxattrIn));
        if (!name) return fail(EINVAL);
        const std::size_t value_at = sizeof(SetxattrIn) + name->size() + 1;
        if (request.body.size() - value_at < body->size_bytes) return fail(EINVAL);
        const auto* const value = reinterpret_cast<const char*>(request.body.data() + value_at);
        return context.fs->set_xattr(request.header.nodeid, *name, std::string_view(value, body->size_bytes),
                                     static_cast<int>(body->flags),
                                     (body->setxattr_flags & kernel::kSetxattrKillSetGid) != 0);
    });
    context.transport->reply(request.header.unique, done ? 0 : std::to_underlying(done.error()));
}

// Whether the kernel sends SETXATTR in the longer form was agreed on in INIT.
bool has_long_setxattr(const MountContext& context) {
    return (context.transport->init_reply().flags & FUSE_SETXATTR_EXT) != 0;
}

}  // namespace

bool handle_raw(MountContext& context, const RawRequest& request) {
    switch (request.header.opcode) {
        case kernel::kOpStatx:
            answer_statx(context, request);
            return true;
        case kernel::kOpTmpfile:
            answer_tmpfile(context, request);
            return true;
        case FUSE_SETXATTR:
            if (!has_long_setxattr(context)) {
                context.transport->reply(request.header.unique, EOPNOTSUPP);
            } else {
                answer_setxattr(context, request);
            }
            return true;
        default:
            return false;
    }
}

void answer_done_before(MountContext& context, const RawRequest& request, std::uint64_t node) {
    switch (request.header.opcode) {
        case FUSE_MKNOD:
        case FUSE_MKDIR:
        case FUSE_SYMLINK:
        case FUSE_LINK:
        case kernel::kOpTmpfile:
            reply_entry(context, request, contain_request(context, request, [&] { return context.fs->entry(node); }));
            break;
        default:  // Names that went, or xattrs. An inode that lost its last name goes now, if it did not before.
            if (node != 0) forget(context, node, 0);
            context.transport->reply(request.header.unique, 0);
    }
}

}  // namespace lamina::unionfs
