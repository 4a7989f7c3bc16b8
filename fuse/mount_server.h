#pragma once

#include "fuse/mount_options.h"

#include <functional>

namespace lamina::unionfs {

/// Serves one mount until it ends: unmounted from outside, asked to stop over the control socket, or by SIGTERM or
/// SIGINT. `on_ready` is called when the mount serves requests. Returns when everything is durable and the mount's lock
/// is free. Throws store::Error when it cannot start; then nothing is mounted.
///
/// Call it from the only thread of the process: it blocks signals for all that it starts.
void serve_mount(const ServerOptions& options, const std::function<void()>& on_ready);

/// The mount point as an absolute path without links; a dead mount of ours on it is taken away first.
/// not_found; malformed: no folder, or inside the store.
std::string checked_mountpoint(const std::string& mountpoint, const std::string& mount_folder);

}  // namespace lamina::unionfs
