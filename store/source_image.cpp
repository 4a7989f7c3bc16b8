#include "store/source_image.h"

#include "store/error.h"
#include "store/printable.h"

namespace lamina::store {

namespace {

constexpr int kMaxNestedIndexes = 4;

bool is_image_config(std::string_view media_type) {
    return media_type == "application/vnd.oci.image.config.v1+json" ||
           media_type == "application/vnd.docker.container.image.v1+json";
}

oci::Descriptor resolve_manifest(DocumentReader& reader, const WantedImage& wanted, std::vector<std::byte>& document) {
    oci::Descriptor descriptor = wanted.descriptor;
    for (int depth = 0; depth <= kMaxNestedIndexes; ++depth) {
        const std::string name = reader.document_name(descriptor.digest);
        const bool is_index = oci::is_image_index(descriptor.media_type);
        if (!is_index && !oci::is_manifest(descriptor.media_type)) {
            throw Error(Errc::unsupported, name + ": media type " + quote(descriptor.media_type) +
                                               " is neither a manifest's nor an image index's");
        }
        document = reader.read(descriptor);
        if (!is_index) return descriptor;
        descriptor = parse_naming(name, [&]() -> oci::Descriptor {
            return oci::choose_platform(oci::parse_image_index(document), wanted.platform);
        });
    }
    throw Error(Errc::malformed, reader.document_name(descriptor.digest) + ": image indexes nested deeper than " +
                                     std::to_string(kMaxNestedIndexes));
}

}  // namespace

void check_layer_type(const oci::Descriptor& layer) {
    if (oci::layer_compression(layer.media_type)) return;
    throw Error(Errc::unsupported, "layer " + layer.digest.digest.text() + ": media type " + quote(layer.media_type) +
                                       " is none that can be unpacked");
}

std::optional<SourceImage> load_source_image(DocumentReader& reader, const WantedImage& wanted) {
    SourceImage image{.name = wanted.name};
    const oci::Descriptor descriptor = resolve_manifest(reader, wanted, image.manifest);
    image.manifest_media_type = descriptor.media_type;
    const std::string manifest_name = reader.document_name(descriptor.digest);
    const oci::Manifest manifest =
        parse_naming(manifest_name, [&] { return oci::parse_manifest(image.manifest, descriptor.media_type); });
    if (!is_image_config(manifest.config.media_type)) {
        if (wanted.may_be_no_image) return std::nullopt;
        throw Error(Errc::unsupported,
                    manifest_name + ": not an image: its config has media type " + quote(manifest.config.media_type));
    }
    image.config = reader.read(manifest.config);
    const std::string config_name = reader.document_name(manifest.config.digest);
    const oci::Config config = parse_naming(config_name, [&] { return oci::parse_config(image.config); });
    if (config.diff_ids.size() != manifest.layers.size()) {
        throw Error(Errc::malformed, config_name + ": " + std::to_string(config.diff_ids.size()) +
                                         " diff IDs, the manifest has " + std::to_string(manifest.layers.size()) +
                                         " layers");
    }
    for (std::size_t i = 0; i < manifest.layers.size(); ++i) {
        image.layers.push_back(reader.describe_layer(manifest.layers[i], config.diff_ids[i]));
        image.total_blob_bytes += manifest.layers[i].size_bytes;
    }
    return image;
}

}  // namespace lamina::store
