#pragma once

#include "store/blob_source.h"
#include "store/json.h"
#include "store/source_files.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lamina::store {

/// The images of a docker-save archive: manifest.json names config, layers and tags of each. The older form has a
/// folder for each layer (and links between them), the newer one names files in blobs/sha256/.
///
/// An image with several tags is given once for each. Layers may be compressed. Names that are digests are checked.
class DockerArchiveSource : public ImageSource {
public:
    /// `tag`: "NAME:TAG" of one image, with or without "docker.io/library/"; empty: all.
    DockerArchiveSource(std::unique_ptr<SourceFiles> files, std::string tag);
    std::vector<SourceImage> images() override;
    std::unique_ptr<ByteSource> open_layer(std::size_t image, std::size_t layer) override;

private:
    struct Loaded {
        SourceImage image;
        std::vector<std::string> layer_paths;
    };
    void load_once();
    void load();
    void count_document(std::uint64_t bytes, const json::Field& entry);
    std::vector<std::string> wanted_names(const json::Field& entry) const;
    Loaded load_image(const json::Field& entry);
    SourceLayer load_layer(const std::string& path, const DiffId& diff_id) const;

    std::unique_ptr<SourceFiles> files_;
    std::string tag_;
    std::vector<Loaded> loaded_;
    std::uint64_t document_bytes_ = 0;
};

}  // namespace lamina::store
