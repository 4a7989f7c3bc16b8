#include "store/importer.h"

#include "store/blob_source.h"
#include "store/error.h"
#include "store/image_config.h"
#include "store/import_job.h"

#include <optional>
#include <utility>

namespace lamina::store {

namespace {

constexpr std::size_t kCopyBytes = 256 << 10;

std::vector<std::byte> bytes_of(std::string_view text) {
    const auto bytes = as_bytes(text);
    return {bytes.begin(), bytes.end()};
}

/// A compressed layer of which nothing is promised: read once for what LayerStream wants to hold it to.
LayerStream::Expected measure(ByteSource& blob) {
    Hasher hasher;
    std::vector<std::byte> buffer(kCopyBytes);
    std::uint64_t size_bytes = 0;
    while (const std::size_t got = blob.read(buffer)) {
        hasher.update(std::span(buffer).first(got));
        size_bytes += got;
    }
    return {.digest = {hasher.finish()}, .size_bytes = size_bytes};
}

OpenedTar open_tar(ImageSource& source, std::size_t image, std::size_t layer, const SourceLayer& description) {
    if (!description.blob && description.compression == Compression::none) {
        return {.tar = source.open_layer(image, layer), .read_bytes = {}};
    }
    const LayerStream::Expected expected =
        description.blob ? *description.blob : measure(*source.open_layer(image, layer));
    auto stream = LayerStream::open(source.open_layer(image, layer), description.compression, expected, StreamLimits{});
    auto read_bytes = [stream = stream.get()] { return stream->blob_bytes_read(); };
    return {.tar = std::move(stream), .read_bytes = std::move(read_bytes)};
}

class Import {
public:
    Import(StoreCore& core, const ImportRequest& request, const std::stop_token& stop)
        : request_(request),
          source_(open_source(request.source, request.platform)),
          images_(source_->images()),
          names_(names()),
          job_(core, request.progress, total_bytes(), stop) {}

    std::vector<ImageRow> run() {
        std::vector<ImageRow> rows;
        for (std::size_t image = 0; image < images_.size(); ++image) rows.push_back(import_image(image));
        return rows;
    }

private:
    std::vector<std::optional<ImageName>> names() const {
        if (request_.name && images_.size() != 1) {
            throw Error(Errc::malformed, request_.source + ": has " + std::to_string(images_.size()) +
                                             " images, a name can be given to one: choose it by its tag");
        }
        std::vector<std::optional<ImageName>> names;
        for (const SourceImage& image : images_) {
            if (request_.name) {
                names.push_back(request_.name);
            } else if (!image.name.empty()) {
                names.push_back(ImageName::parse(image.name));
            } else {
                names.emplace_back();
            }
        }
        return names;
    }

    std::uint64_t total_bytes() const {
        std::uint64_t total_bytes = 0;
        for (const SourceImage& image : images_) total_bytes += image.total_blob_bytes;
        return total_bytes;
    }

    std::string label(std::size_t image) const { return names_[image] ? names_[image]->text() : request_.source; }

    ImageRow import_image(std::size_t image) {
        const SourceImage& description = images_[image];
        const std::uint64_t begun_at = job_.meter().done_bytes();
        std::vector<StoredLayer> layers;
        std::uint64_t done_bytes = begun_at;
        for (std::size_t layer = 0; layer < description.layers.size(); ++layer) {
            const LayerRow row = import_layer(image, layer);
            layers.push_back({row.diff_id, row.tar_bytes});
            const auto& blob = description.layers[layer].blob;
            done_bytes += blob ? blob->size_bytes : row.tar_bytes;
            job_.meter().end_at(done_bytes);
        }
        ImageRow row = make_image(image, layers);
        job_.meter().end_at(begun_at + description.total_blob_bytes);
        return row;
    }

    LayerRow import_layer(std::size_t image, std::size_t layer) {
        const SourceLayer& description = images_[image].layers[layer];
        job_.meter().begin("reading", description.diff_id ? description.diff_id->digest.text() : label(image));
        try {
            return job_.layer(description.diff_id, [&] { return open_tar(*source_, image, layer, description); });
        } catch (const Error& error) {  // Which layer it is is known here only.
            throw with_context(error, "layer " + std::to_string(layer + 1) + " of " + label(image));
        }
    }

    ImageRow make_image(std::size_t image, const std::vector<StoredLayer>& layers) {
        const SourceImage& description = images_[image];
        ImageParts parts{.manifest = description.manifest,
                         .manifest_media_type = description.manifest_media_type,
                         .config = description.config,
                         .name = names_[image]};
        for (const StoredLayer& layer : layers) parts.layers.push_back(layer.diff_id);
        if (parts.config.empty()) {  // A folder: one layer, and documents that follow from it alone.
            const std::string config = plain_config(request_.platform, parts.layers.at(0));
            parts.config = bytes_of(config);
            parts.manifest = bytes_of(plain_manifest(config, layers));
            parts.manifest_media_type = kManifestMediaType;
        }
        try {
            return job_.image(parts);
        } catch (const Error& error) {  // Which image it is is known here only.
            throw with_context(error, label(image));
        }
    }

    const ImportRequest& request_;
    std::unique_ptr<ImageSource> source_;
    std::vector<SourceImage> images_;
    std::vector<std::optional<ImageName>> names_;
    ImportJob job_;
};

}  // namespace

std::vector<ImageRow> import_images(StoreCore& core, const ImportRequest& request, const std::stop_token& stop) {
    return Import(core, request, stop).run();
}

ImageRow commit_image(StoreCore& core, const CommitRequest& request, ByteSource& layer_tar,
                      const std::stop_token& stop) {
    ImportJob job(core, request.progress, 0, stop);
    std::vector<StoredLayer> layers;
    for (const DiffId& base_layer : request.base_layers) {
        const auto row = job.known_layer(base_layer);
        if (!row) throw Error(Errc::not_found, "layer " + base_layer.digest.text() + " of the base: not in the store");
        layers.push_back({row->diff_id, row->tar_bytes});
    }
    const auto base = core.index->find_by_config({Digest::parse(request.base_config_digest)});
    if (!base || base->layers != request.base_layers) {
        throw Error(Errc::not_found, "base image " + request.base_config_digest + ": not in the store");
    }
    class Borrowed : public ByteSource {
    public:
        explicit Borrowed(ByteSource& source) : source_(source) {}
        std::size_t read(std::span<std::byte> out) override { return source_.read(out); }

    private:
        ByteSource& source_;
    };
    job.meter().begin("reading", request.name.text());
    const LayerRow layer = job.layer(std::nullopt, [&] {
        return OpenedTar{std::make_unique<Borrowed>(layer_tar), {}};
    });
    layers.push_back({layer.diff_id, layer.tar_bytes});
    const std::string config =
        extended_config(core.index->documents(base->id).config,
                        {.layer = layer.diff_id, .created = rfc3339_now(), .created_by = request.created_by});
    ImageParts parts{.manifest = bytes_of(plain_manifest(config, layers)),
                     .manifest_media_type = kManifestMediaType,
                     .config = bytes_of(config),
                     .name = request.name};
    for (const StoredLayer& stored : layers) parts.layers.push_back(stored.diff_id);
    return job.image(parts);
}

ImageSummary summary_of(const ImageRow& image) {
    return {.names = image.names,
            .manifest = image.manifest,
            .config = image.config,
            .tree = image.tree.digest,
            .layers = image.layers,
            .platform = image.platform,
            .created = image.created,
            .imported_at = image.imported_at,
            .logical_bytes = image.tree.logical_bytes,
            .inode_count = image.tree.inode_count};
}

}  // namespace lamina::store
