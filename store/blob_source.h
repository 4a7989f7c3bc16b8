#pragma once

#include "store/byte_stream.h"
#include "store/layer_stream.h"
#include "store/oci.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::store {

/// One layer as a source offers it.
struct SourceLayer {
    std::optional<DiffId> diff_id;              ///< What the image's config promises; nullopt: not known yet (dir:).
    std::optional<LayerStream::Expected> blob;  ///< nullopt: the source has none to promise (dir:).
    std::optional<Compression> compression = Compression::none;  ///< nullopt: its first bytes say it.
};

/// One image of a source, its documents read and checked.
struct SourceImage {
    std::string name;                 ///< As the source calls it ("debian:12"); empty: it has none.
    std::vector<std::byte> manifest;  ///< The original bytes. Where the source has none (docker archives) one is made.
    std::string manifest_media_type;
    std::vector<std::byte> config;    ///< The original bytes.
    std::vector<SourceLayer> layers;  ///< Bottom first; as many as config.rootfs.diff_ids.
    std::uint64_t total_blob_bytes = 0;
};

/// Where images come from. open_layer() is thread-safe once images() has returned, and each stream is for one thread.
class ImageSource {
public:
    virtual ~ImageSource() = default;
    virtual std::vector<SourceImage> images() = 0;
    /// The blob of images()[image].layers[layer], as it lies in the source.
    virtual std::unique_ptr<ByteSource> open_layer(std::size_t image, std::size_t layer) = 0;
    /// The same, from where reading may wait; `stop` ends the wait.
    virtual std::unique_ptr<ByteSource> open_layer_until(std::size_t image, std::size_t layer, const std::stop_token&) {
        return open_layer(image, layer);
    }
    /// Told when a layer's blob was not what the image promises. True: open_layer() now gives it from somewhere else.
    /// Thread-safe.
    virtual bool distrust(std::size_t, std::size_t) { return false; }
};

/// "oci:DIR[:TAG]", "oci-archive:FILE[:TAG]", "docker-archive:FILE[:NAME:TAG]", "dir:DIR". Paths are absolute.
/// Archives may be compressed (gzip, zstd) as a whole, which `skopeo` and `docker save | gzip` users expect.
/// `platform`: chosen in image indexes. Files of a layout that are links are refused. A dir: source is one image of one
/// layer, whose diff ID is known only when the folder has been read: `layers[0].diff_id` is nullopt, config and
/// manifest are made by the importer. Throws not_found, malformed, unsupported.
std::unique_ptr<ImageSource> open_source(const std::string& source, const oci::Platform& platform);

}  // namespace lamina::store
