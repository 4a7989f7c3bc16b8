#pragma once

#include <string>

namespace lamina::unionfs {

/// What `lamina-fuse --state FOLDER --diff` and `--export` do: read a mount's changes without serving it. Of a running
/// mount as of one instant, which its server holds still; of another one as it would be mounted next. Changes nothing.
/// Throws store::Error.

struct DiffOptions {
    bool lists_moved = false;  ///< Also what lies below a folder of the image that was moved.
};
/// One line each of {"kind":"A","path":"/x","type":"file"} on standard output, sorted by path. Kinds: A added, C
/// changed, D deleted. Types: file, directory, symlink, char_device, block_device, fifo, socket.
void run_diff(const std::string& mount_folder, const DiffOptions& options, int out_fd);
/// An OCI layer (layer_export.h). busy: the mount's server was replaced meanwhile; what was written is no layer.
void run_export(const std::string& mount_folder, int out_fd);

}  // namespace lamina::unionfs
