#pragma once

#include "store/blob_source.h"
#include "store/registry_blob.h"
#include "store/source_image.h"

#include <atomic>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::store {

/// What to pull.
struct RegistryPull {
    RegistryReference reference;
    RegistryAccess access;
    oci::Platform platform;
    /// Told as soon as it is known which manifest is the image's, and where from; before the config is asked for. May
    /// be null. Once for each place that is tried.
    std::function<void(const std::shared_ptr<RegistrySession>& session, const BlobDigest& manifest)> on_manifest;
};

/// One image of a registry, or of the mirrors that registries.conf names for it (tried first, in their order).
///
/// A layer is read from the first place that has it; when that one fails, reading goes on at the same byte from the
/// same place again, then from the next. distrust() says that what came was not what was promised.
class RegistrySource : public ImageSource {
public:
    /// Borrows `http`. Nothing is asked before images().
    RegistrySource(HttpClient& http, const RegistryPull& pull, const RegistriesConf& conf, const std::stop_token& stop);
    std::vector<SourceImage> images() override;
    std::unique_ptr<ByteSource> open_layer(std::size_t image, std::size_t layer) override;
    std::unique_ptr<ByteSource> open_layer_until(std::size_t image, std::size_t layer,
                                                 const std::stop_token& stop) override;
    bool distrust(std::size_t image, std::size_t layer) override;

    // Once images() has returned:
    const std::vector<oci::Descriptor>& layer_blobs() const noexcept { return layers_; }
    RegistryPlaces places() const;  ///< From the one that the manifest came from.

private:
    class Reader;
    SourceImage load_from(std::size_t first_place);

    const RegistryPull pull_;
    const std::stop_token stop_;
    RegistryPlaces sessions_;
    std::vector<oci::Descriptor> layers_;
    std::vector<SourceImage> images_;
    std::size_t best_place_ = 0;                              ///< Where the manifest came from.
    std::unique_ptr<std::atomic<std::size_t>[]> distrusted_;  ///< How many places of each layer, from best_place_ on.
};

}  // namespace lamina::store
