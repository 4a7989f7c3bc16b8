#pragma once

#include "fuse/holder.h"
#include "fuse/mount_options.h"

#include <functional>
#include <string>

namespace lamina::unionfs {

/// Serves one mount until it ends: unmounted from outside, asked to stop over the control socket, or by SIGTERM or
/// SIGINT. `on_ready` is called when the mount serves requests. Returns when everything is durable and the mount's lock
/// is free, as soon as the holder has ended too. Throws store::Error when it cannot start; then nothing is mounted.
///
/// Where former servers have left something with the holder, it goes on with that. Paths in `options` are absolute and
/// checked (resolve_paths()). Call it from the only thread of the process: it blocks signals for all that it starts.
void serve_mount(const ServerOptions& options, HolderLink& holder, const std::function<void()>& on_ready);

/// Has a running mount's server replaced by one of this program. Returns when it serves, one line on standard output.
/// Throws unavailable when the old program goes on, or none serves.
void upgrade_server(const std::string& mount_folder);

/// Makes the paths of a mount of an image absolute, and checks them. Not for a server that goes on: the mount point
/// would wait for it. Throws store::Error.
void resolve_paths(ServerOptions& options);

/// The mount point as an absolute path without links; a dead mount of ours on it is taken away first.
/// not_found; malformed: no folder, or inside the store.
std::string checked_mountpoint(const std::string& mountpoint, const std::string& mount_folder);

}  // namespace lamina::unionfs
