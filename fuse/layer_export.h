#pragma once

#include "fuse/change_set.h"
#include "fuse/keeper.h"
#include "fuse/view.h"
#include "store/tar_writer.h"

namespace lamina::unionfs {

/// Writes what a mount changed as an OCI layer (image-spec, layer.md): deleted names as `.wh.NAME` before their
/// siblings, a folder that replaced one of the view with `.wh..wh..opq` in it, changed files and moved folders with all
/// their content, hard links, xattrs, holes, and the folders above with their attributes. Equal changes give equal
/// bytes. Sockets have no form in a tar and are left out.
///
/// `bytes` loads the extents. Under the lock that guards the set, or of a state that nobody changes. Throws
/// store::Error: malformed for what a layer cannot hold (a name that begins with ".wh.", a path over 4096 bytes),
/// naming the path.
void export_layer(const ChangeSet& changes, const View& view, const Keeper& bytes, store::ByteSink& out);

}  // namespace lamina::unionfs
