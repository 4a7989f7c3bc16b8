#pragma once

#include "store/blob_source.h"
#include "store/error.h"

#include <optional>
#include <string>
#include <vector>

namespace lamina::store {

/// The blobs that an image's documents lie in, as one kind of source has them.
class DocumentReader {
public:
    virtual ~DocumentReader() = default;
    /// All of a document, its size and digest checked.
    virtual std::vector<std::byte> read(const oci::Descriptor& document) = 0;
    /// What can be said of a layer without reading it.
    virtual SourceLayer describe_layer(const oci::Descriptor& layer, const DiffId& diff_id) = 0;
    virtual std::string document_name(const BlobDigest& digest) const = 0;  ///< For errors.
};

/// What `parse` returns; its errors say which document it was.
template <class Parse>
auto parse_naming(const std::string& name, Parse&& parse) {
    try {
        return parse();
    } catch (const Error& error) {
        throw with_context(error, name);
    }
}

/// What is looked for.
struct WantedImage {
    oci::Descriptor descriptor;  ///< Of a manifest, or of an image index, in which `platform` is chosen.
    oci::Platform platform;
    std::string name;              ///< Of the image that is returned.
    bool may_be_no_image = false;  ///< A manifest of something else is nullopt, not an error.
};

/// Reads and checks an image's manifest and config; image indexes may be nested four deep.
std::optional<SourceImage> load_source_image(DocumentReader& reader, const WantedImage& wanted);

/// Throws unsupported for a layer whose media type says that it cannot be unpacked.
void check_layer_type(const oci::Descriptor& layer);

}  // namespace lamina::store
