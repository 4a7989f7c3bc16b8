#pragma once

#include "store/digest.h"
#include "store/oci.h"

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace lamina::store {

/// The config of an image that has no source's: one layer, nothing to run. The same input gives the same bytes.
std::string plain_config(const oci::Platform& platform, const DiffId& layer);

struct ConfigExtension {
    DiffId layer;
    std::string created;  ///< RFC 3339.
    std::string created_by;
};

/// The base's config with one more layer and a line of history; all else as it was. Where the base's history does not
/// cover its layers it is filled up, because other tools count it against them. malformed when `base` is no config.
std::string extended_config(std::span<const std::byte> base, const ConfigExtension& extension);

std::string rfc3339_now();  ///< "2024-05-06T07:08:09Z"

struct StoredLayer {
    DiffId diff_id;
    std::uint64_t tar_bytes = 0;
};

/// An OCI manifest over a config and uncompressed layers, bottom first.
std::string plain_manifest(std::string_view config, const std::vector<StoredLayer>& layers);

inline constexpr const char* kManifestMediaType = "application/vnd.oci.image.manifest.v1+json";

}  // namespace lamina::store
