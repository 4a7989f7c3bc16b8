#include "store/outgoing_image.h"

#include "store/error.h"
#include "store/gzip_writer.h"
#include "store/zstd_writer.h"

#include <algorithm>

// A layer's bytes run through a chain of sinks: TarCheck compares them with what is promised, a writer compresses, and
// BlobSink counts and hashes what came out.
namespace lamina::store {

namespace {

constexpr std::string_view kConfigType = "application/vnd.oci.image.config.v1+json";
constexpr std::string_view kLayerType = "application/vnd.oci.image.layer.v1.tar";
constexpr std::string_view kManifestType = "application/vnd.oci.image.manifest.v1+json";

class TarCheck : public ByteSink {
public:
    TarCheck(const LayerToWrite& layer, ByteSink& out, const OnTarBytes& on_bytes)
        : layer_(layer), out_(out), on_bytes_(on_bytes) {}

    void write(std::span<const std::byte> data) override {
        if (on_bytes_) on_bytes_(data.size());
        if (data.size() > layer_.tar_bytes - size_bytes_) {
            throw Error(Errc::corrupt,
                        name() + ": more bytes than the " + std::to_string(layer_.tar_bytes) + " that it had");
        }
        hasher_.update(data);
        out_.write(data);
        size_bytes_ += data.size();
    }

    void finish() {
        if (size_bytes_ != layer_.tar_bytes) {
            throw Error(Errc::corrupt, name() + ": " + std::to_string(size_bytes_) + " bytes instead of " +
                                           std::to_string(layer_.tar_bytes));
        }
        const Digest found = hasher_.finish();
        if (found != layer_.diff_id.digest) {
            throw Error(Errc::corrupt, name() + ": its bytes have the diff ID " + found.text());
        }
    }

private:
    std::string name() const { return "layer " + layer_.diff_id.digest.text(); }

    const LayerToWrite& layer_;
    ByteSink& out_;
    const OnTarBytes& on_bytes_;
    Hasher hasher_;
    std::uint64_t size_bytes_ = 0;
};

/// The blob's bytes as they are written.
class BlobSink : public ByteSink {
public:
    explicit BlobSink(ByteSink& out) : out_(out) {}
    void write(std::span<const std::byte> data) override {
        hasher_.update(data);
        size_bytes_ += data.size();
        out_.write(data);
    }
    oci::Descriptor finish(std::string media_type) {
        return {.media_type = std::move(media_type), .digest = {hasher_.finish()}, .size_bytes = size_bytes_};
    }

private:
    ByteSink& out_;
    Hasher hasher_;
    std::uint64_t size_bytes_ = 0;
};

oci::Descriptor descriptor_of(std::string_view media_type, std::span<const std::byte> bytes) {
    return {.media_type = std::string(media_type), .digest = {Digest::of(bytes)}, .size_bytes = bytes.size()};
}

bool has_same_layers(const oci::Manifest& manifest, const std::vector<oci::Descriptor>& layers) {
    return std::equal(manifest.layers.begin(), manifest.layers.end(), layers.begin(), layers.end(),
                      [](const oci::Descriptor& a, const oci::Descriptor& b) { return a.digest == b.digest; });
}

}  // namespace

std::string layer_media_type(Compression compression) {
    switch (compression) {
        case Compression::none:
            return std::string(kLayerType);
        case Compression::gzip:
            return std::string(kLayerType) + "+gzip";
        case Compression::zstd:
            return std::string(kLayerType) + "+zstd";
    }
    return std::string(kLayerType);
}

void write_checked_tar(const LayerToWrite& layer, ByteSink& out, const OnTarBytes& on_bytes) {
    TarCheck tar(layer, out, on_bytes);
    layer.write_tar(tar);
    tar.finish();
}

oci::Descriptor write_layer_blob(const LayerToWrite& layer, Compression compression, ByteSink& out,
                                 const OnTarBytes& on_bytes) {
    BlobSink blob(out);
    if (compression == Compression::gzip) {
        GzipWriter gzip(blob);
        write_checked_tar(layer, gzip, on_bytes);
        gzip.finish();
    } else if (compression == Compression::zstd) {
        ZstdWriter zstd(blob);
        write_checked_tar(layer, zstd, on_bytes);
        zstd.finish();
    } else {
        write_checked_tar(layer, blob, on_bytes);
    }
    return blob.finish(layer_media_type(compression));
}

OutgoingManifest choose_manifest(const std::vector<KnownManifest>& known, std::span<const std::byte> config,
                                 const std::vector<oci::Descriptor>& layers) {
    const oci::Descriptor config_blob = config_descriptor(config);
    for (const KnownManifest& original : known) {
        if (original.bytes.empty()) continue;
        const oci::Manifest manifest = oci::parse_manifest(original.bytes, original.media_type);
        if (manifest.config.digest == config_blob.digest && has_same_layers(manifest, layers)) {
            return {.descriptor = descriptor_of(original.media_type, original.bytes), .bytes = original.bytes};
        }
    }
    const std::string text = oci::write_manifest(config_blob, layers);
    const auto bytes = as_bytes(text);
    return {.descriptor = descriptor_of(kManifestType, bytes), .bytes = {bytes.begin(), bytes.end()}, .is_new = true};
}

oci::Descriptor config_descriptor(std::span<const std::byte> config) {
    return descriptor_of(kConfigType, config);
}

}  // namespace lamina::store
