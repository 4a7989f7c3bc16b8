#pragma once

#include "store/byte_stream.h"
#include "store/digest.h"
#include "store/layer_stream.h"
#include "store/oci.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

/// What leaves the store in any form: layers as blobs, and the manifest that names them.
namespace lamina::store {

struct LayerToWrite {
    DiffId diff_id;
    std::uint64_t tar_bytes = 0;
    std::function<void(ByteSink&)> write_tar;  ///< Writes the uncompressed tar. May throw.
};

/// Told of each piece of a tar before it is written. May throw, to end it.
using OnTarBytes = std::function<void(std::size_t)>;

/// Writes the layer's tar; throws corrupt when it has not the size and diff ID that it should have.
void write_checked_tar(const LayerToWrite& layer, ByteSink& out, const OnTarBytes& on_bytes);

/// The same, compressed: the same tar gives the same bytes (gzip_writer.h, zstd_writer.h). The blob's descriptor has
/// an OCI media type.
oci::Descriptor write_layer_blob(const LayerToWrite& layer, Compression compression, ByteSink& out,
                                 const OnTarBytes& on_bytes);

struct KnownManifest {
    std::vector<std::byte> bytes;  ///< The original ones; may be empty.
    std::string media_type;
};
struct OutgoingManifest {
    oci::Descriptor descriptor;
    std::vector<std::byte> bytes;
    bool is_new = false;
};
/// The first of `known` that names this config and exactly these layers, else a new OCI manifest.
OutgoingManifest choose_manifest(const std::vector<KnownManifest>& known, std::span<const std::byte> config,
                                 const std::vector<oci::Descriptor>& layers);

oci::Descriptor config_descriptor(std::span<const std::byte> config);
/// The OCI media type of a layer that is compressed so.
std::string layer_media_type(Compression compression);

}  // namespace lamina::store
