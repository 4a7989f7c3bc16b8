#include "fuse/ops.h"

#include "fuse/libfuse.h"

namespace lamina::unionfs {
namespace {

// Answered once: from then on the kernel opens and closes by itself and never sends OPEN, OPENDIR, FLUSH, RELEASE.
// CREATE is answered so (by having no function): the kernel then sends MKNOD and opens by itself; with a CREATE there
// would be a RELEASE for each file.
void op_open(fuse_req_t request, fuse_ino_t, fuse_file_info*) {
    ::fuse_reply_err(request, ENOSYS);
}

// ENOSYS would reach programs as it is; they expect this from files that know no such control.
void op_ioctl(fuse_req_t request, fuse_ino_t, unsigned, void*, fuse_file_info*, unsigned, const void*, std::size_t,
              std::size_t) {
    ::fuse_reply_err(request, ENOTTY);
}

fuse_lowlevel_ops make_table() {
    fuse_lowlevel_ops table{};
    table.open = op_open;
    table.opendir = op_open;
    table.flush = op_open;
    table.ioctl = op_ioctl;
    add_reading_operations(table);
    add_listing_operations(table);
    add_changing_operations(table);
    return table;
}

}  // namespace

const fuse_lowlevel_ops& operations() {
    static const fuse_lowlevel_ops table = make_table();
    return table;
}

}  // namespace lamina::unionfs
