#pragma once

#include <string>

namespace lamina::unionfs {

/// umount(2), or fusermount3 for an ordinary user. Returns 0, or the errno; EINVAL: nothing is mounted there. Not for a
/// reading thread: what unmounting writes back has to be served.
int unmount_path(const std::string& mountpoint, bool is_lazy);

/// Takes away what a killed server left on a mount point: a mount of ours that answers "transport endpoint is not
/// connected". Anything else is left alone.
void detach_dead_mount(const std::string& mountpoint);

}  // namespace lamina::unionfs
