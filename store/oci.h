#pragma once

#include "store/digest.h"
#include "store/layer_stream.h"

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// OCI image-spec 1.1 documents, and their Docker twins (image manifest v2 schema 2): parse and check.
///
/// Documents are hostile: at most 4 MiB, nesting 64, duplicate keys refused, body's mediaType must agree with the
/// descriptor's, a document with both "layers" and "manifests" is refused. All throw Errc::malformed naming field and
/// reason.
namespace lamina::store::oci {

inline constexpr std::uint64_t kMaxDocumentBytes = 4ull << 20;
inline constexpr std::size_t kMaxLayers = 500;

struct Platform {
    std::string os;
    std::string architecture;
    std::string variant;
    static Platform parse(std::string_view text);  ///< "linux/arm64/v8"
    static Platform host();
    std::string text() const;
    bool matches(const Platform& wanted) const;  ///< An empty variant of either side matches.
};

struct Descriptor {
    std::string media_type;
    BlobDigest digest;
    std::uint64_t size_bytes = 0;
    std::optional<Platform> platform;
    std::map<std::string, std::string> annotations;
};

struct Manifest {
    std::string media_type;
    Descriptor config;
    std::vector<Descriptor> layers;  ///< Bottom first.
};

struct ImageIndex {
    std::vector<Descriptor> manifests;
};

struct Config {
    Platform platform;
    std::string created;
    std::vector<DiffId> diff_ids;
};

bool is_image_index(std::string_view media_type);
bool is_manifest(std::string_view media_type);
/// none, gzip or zstd of a layer media type, OCI or Docker; nullopt when it is no layer type that we know.
std::optional<Compression> layer_compression(std::string_view media_type);

Manifest parse_manifest(std::span<const std::byte> document, std::string_view expected_media_type);
ImageIndex parse_image_index(std::span<const std::byte> document);
Config parse_config(std::span<const std::byte> document);
/// The first entry that matches; malformed ("no image for linux/arm64; there are: ...") when none does.
const Descriptor& choose_platform(const ImageIndex& index, const Platform& wanted);

/// An OCI manifest over a config and layers, as bytes: the same input gives the same bytes.
std::string write_manifest(const Descriptor& config, const std::vector<Descriptor>& layers);

}  // namespace lamina::store::oci
