#pragma once

#include "fuse/transport.h"

struct fuse_lowlevel_ops;

namespace lamina::unionfs {

/// The operations of a mount: each takes a request apart, calls UnionFs and replies; nothing else. What may block is
/// handed to the workers. User data is a MountContext.
const fuse_lowlevel_ops& operations();

/// STATX, TMPFILE and SETXATTR, which libfuse 3.14 does not know, or not in full. For Transport.
bool handle_raw(MountContext& context, const RawRequest& request);

/// The answer to a request that a former server has carried out, without one to hear it. For Transport.
void answer_done_before(MountContext& context, const RawRequest& request, std::uint64_t node);

// Parts of operations(), by kind.
void add_reading_operations(fuse_lowlevel_ops& table);
void add_listing_operations(fuse_lowlevel_ops& table);
void add_changing_operations(fuse_lowlevel_ops& table);

}  // namespace lamina::unionfs
