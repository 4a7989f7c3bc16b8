#pragma once

#include "store/blob_source.h"
#include "store/source_files.h"
#include "store/source_image.h"

#include <memory>
#include <set>
#include <string>

namespace lamina::store {

/// The images of an OCI image layout (image-spec 1.1, image-layout.md), in a folder or in a tar.
class OciLayoutSource : public ImageSource, private DocumentReader {
public:
    /// `tag`: the image whose name (annotation org.opencontainers.image.ref.name or io.containerd.image.name) it is;
    /// empty: all images. `files` holds oci-layout, index.json and blobs/.
    OciLayoutSource(std::unique_ptr<SourceFiles> files, std::string tag, oci::Platform platform);
    std::vector<SourceImage> images() override;
    std::unique_ptr<ByteSource> open_layer(std::size_t image, std::size_t layer) override;

private:
    struct Named {
        std::string name;
        oci::Descriptor descriptor;
    };
    void load_once();
    std::vector<Named> chosen_entries();
    std::vector<std::byte> read(const oci::Descriptor& descriptor) override;
    SourceLayer describe_layer(const oci::Descriptor& descriptor, const DiffId& diff_id) override;
    std::string document_name(const BlobDigest& digest) const override;

    std::unique_ptr<SourceFiles> files_;
    std::string tag_;
    oci::Platform platform_;
    std::vector<SourceImage> images_;
    bool is_loaded_ = false;
    std::uint64_t document_bytes_ = 0;  ///< Of all documents read so far.
};

std::string blob_path(const BlobDigest& digest);  ///< "blobs/sha256/<hex>"
/// Refuses what does not hold an oci-layout document of version 1.0.0.
void check_layout_version(const SourceFiles& files);

}  // namespace lamina::store
