#pragma once

#include "store/byte_stream.h"
#include "store/digest.h"
#include "store/outgoing_image.h"
#include "store/progress.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::store {

/// An image that leaves the store.
struct ImageToWrite {
    std::string name;                 ///< "debian:12": the name inside the target when that names none. May be empty.
    std::vector<std::byte> manifest;  ///< The original bytes: written again when the blobs come out as they went in.
    std::string manifest_media_type;
    std::vector<std::byte> config;     ///< Written byte for byte.
    std::vector<LayerToWrite> layers;  ///< Bottom first.
};

/// Writes `image` to "oci:DIR[:TAG]" (layers gzip-compressed; added to an existing layout, where it takes the place of
/// an image of the same TAG), "oci-archive:FILE[:TAG]" (likewise, one tar), or "docker-archive:FILE[:NAME:TAG]" (layers
/// uncompressed). Paths are absolute.
///
/// A file appears under its name, and an image in index.json, only when everything is written, checked and synced;
/// whatever goes wrong before, nothing stays behind. Throws corrupt when a layer's bytes do not have its diff ID or
/// size, already_exists when FILE does, busy when DIR is being written to, cancelled, malformed for a target that is
/// none or a layout that is broken, and what writing throws. Modes follow the process's umask.
void write_image(const ImageToWrite& image, const std::string& target, const ProgressFunction& progress,
                 std::stop_token stop);

}  // namespace lamina::store
