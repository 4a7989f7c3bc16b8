#include "store/importer.h"

#include "store/blob_source.h"
#include "store/error.h"
#include "store/image_config.h"
#include "store/import_job.h"
#include "store/lazy_pull.h"
#include "store/opened_tar.h"
#include "store/ordered_tasks.h"
#include "store/registry_source.h"

#include <algorithm>
#include <deque>
#include <future>
#include <map>
#include <optional>
#include <thread>
#include <utility>

namespace lamina::store {

namespace {

std::vector<std::byte> bytes_of(std::string_view text) {
    const auto bytes = as_bytes(text);
    return {bytes.begin(), bytes.end()};
}

/// Layers are made side by side: each is a pipeline of three threads (inflating, parsing, hashing) before the job's
/// threads that compress, so that two keep a small machine busy, also while one waits for the disk.
unsigned layers_at_once() {
    constexpr unsigned kLeast = 2;
    constexpr unsigned kMost = 6;
    return std::clamp(std::thread::hardware_concurrency(), kLeast, kMost);
}

/// One import. First it is planned: which layers there are, each once however many images have it, and which of them
/// are known. Then tasks make the others, several at a time, while the calling thread makes each image when its layers
/// are there: everything happens as if one layer and image came after the other, only sooner.
class Import {
public:
    Import(StoreCore& core, const ImportRequest& request, ImageSource& source, const std::stop_token& stop)
        : request_(request),
          stop_(stop),
          source_(source),
          images_(source.images()),
          names_(names()),
          meter_(request.progress),
          job_(core, meter_) {
        plan();
    }

    std::vector<ImageRow> run() {
        const auto make = [this](std::size_t task, const std::stop_token& stop) { make_layer(*tasks_[task], stop); };
        OrderedTasks tasks(tasks_.size(), layers_at_once(), make, stop_);
        std::vector<ImageRow> rows;
        for (std::size_t image = 0; image < images_.size(); ++image) {
            for (const Layer* const layer : layers_of_[image]) {
                if (layer->task) tasks.wait(*layer->task);
            }
            rows.push_back(make_image(image));
        }
        return rows;
    }

    /// The layers that were not known before it.
    std::vector<DiffId> made() const {
        std::vector<DiffId> made;
        for (const Layer* const layer : tasks_) made.push_back(layer->row->diff_id);
        return made;
    }

private:
    /// A layer of the source, where it occurs first.
    struct Layer {
        std::size_t image;
        std::size_t position;
        std::optional<std::size_t> task = std::nullopt;  ///< nullopt: it was known from the start.
        std::optional<LayerRow> row = std::nullopt;      ///< Once it is there.
    };

    std::vector<std::optional<ImageName>> names() const;
    std::string label(std::size_t image) const { return names_[image] ? names_[image]->text() : request_.source; }
    const SourceLayer& description(const Layer& layer) const { return images_[layer.image].layers[layer.position]; }

    void plan() {
        std::map<DiffId, Layer*> found;
        std::uint64_t total_bytes = 0;
        for (std::size_t image = 0; image < images_.size(); ++image) {
            std::vector<Layer*>& layers = layers_of_.emplace_back();
            for (std::size_t position = 0; position < images_[image].layers.size(); ++position) {
                const auto& diff_id = images_[image].layers[position].diff_id;
                if (const auto known = diff_id ? found.find(*diff_id) : found.end(); known != found.end()) {
                    layers.push_back(known->second);
                    continue;
                }
                Layer& layer = layers_.emplace_back(Layer{.image = image, .position = position});
                layers.push_back(&layer);
                if (diff_id) found.emplace(*diff_id, &layer);
                if (diff_id && (layer.row = job_.known_layer(*diff_id))) continue;
                layer.task = tasks_.size();
                tasks_.push_back(&layer);
                total_bytes += blob_bytes(layer);
            }
        }
        meter_.expect(total_bytes);
    }

    std::uint64_t blob_bytes(const Layer& layer) const {
        const auto& blob = description(layer).blob;
        return blob ? blob->size_bytes : 0;
    }

    void make_layer(Layer& layer, const std::stop_token& stop) {
        const SourceLayer& source = description(layer);
        Meter::Part part(meter_, {.phase = "reading",
                                  .item = source.diff_id ? source.diff_id->digest.text() : label(layer.image),
                                  .item_total_bytes = blob_bytes(layer)});
        const auto open = [&] { return open_tar(source_, {layer.image, layer.position, source}, stop); };
        while (!layer.row) {
            try {
                layer.row = job_.layer({.promised = source.diff_id, .part = part}, open, stop);
            } catch (const Error& error) {  // Which layer it is is known here only.
                const bool is_wrong = error.code() == Errc::corrupt || error.code() == Errc::malformed;
                if (is_wrong && source_.distrust(layer.image, layer.position)) continue;
                throw with_context(error, "layer " + std::to_string(layer.position + 1) + " of " + label(layer.image));
            }
        }
        part.reach(blob_bytes(layer));
    }

    ImageRow make_image(std::size_t image) {
        const SourceImage& description = images_[image];
        ImageParts parts{.manifest = description.manifest,
                         .manifest_media_type = description.manifest_media_type,
                         .config = description.config,
                         .name = names_[image]};
        std::vector<StoredLayer> layers;
        for (const Layer* const layer : layers_of_[image])
            layers.push_back({layer->row->diff_id, layer->row->tar_bytes});
        for (const StoredLayer& layer : layers) parts.layers.push_back(layer.diff_id);
        if (parts.config.empty()) {  // A folder: one layer, and documents that follow from it alone.
            const std::string config = plain_config(request_.platform, parts.layers.at(0));
            parts.config = bytes_of(config);
            parts.manifest = bytes_of(plain_manifest(config, layers));
            parts.manifest_media_type = kManifestMediaType;
        }
        try {
            return job_.image(parts, stop_);
        } catch (const Error& error) {  // Which image it is is known here only.
            throw with_context(error, label(image));
        }
    }

    const ImportRequest& request_;
    const std::stop_token& stop_;
    ImageSource& source_;
    std::vector<SourceImage> images_;
    std::vector<std::optional<ImageName>> names_;
    std::deque<Layer> layers_;
    std::vector<std::vector<Layer*>> layers_of_;  ///< Of each image, bottom first.
    std::vector<Layer*> tasks_;                   ///< Those that must be made, in the order in which they are needed.
    Meter meter_;
    ImportJob job_;
};

std::vector<std::optional<ImageName>> Import::names() const {
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

// A layer that was known may be known from an index alone.
void complete_images(StoreCore& core, const std::vector<ImageRow>& images, const ProgressFunction& progress,
                     const std::stop_token& stop) {
    for (const ImageRow& image : images) {
        for (const DiffId& layer : image.layers) core.lazy.complete(layer, {.progress = progress}, stop);
    }
}

}  // namespace

std::vector<ImageRow> import_images(StoreCore& core, const ImportRequest& request, const std::stop_token& stop) {
    const auto source = open_source(request.source, request.platform);
    std::vector<ImageRow> rows = Import(core, request, *source, stop).run();
    complete_images(core, rows, request.progress, stop);
    return rows;
}

ImageRow pull_image(StoreCore& core, const PullRequest& request, const std::stop_token& stop) {
    const bool may_be_lazy = request.lazy != PullRequest::Lazy::never;
    std::future<PublishedBeside> beside;
    RegistryPull pull{.reference = RegistryReference::parse(request.reference),
                      .access = request.access,
                      .platform = request.platform,
                      .on_manifest = {}};
    if (may_be_lazy) {
        pull.on_manifest = [&](const auto& session, const BlobDigest& manifest) {
            beside = std::async(std::launch::async, [=] { return find_published(*session, manifest); });
        };
    }
    RegistrySource source(core.http(), pull, RegistriesConf::load(), stop);
    if (may_be_lazy) {
        if (const auto row = pull_lazily(core, request, source, beside, stop)) return *row;
    }
    const ImportRequest import{
        .source = request.reference, .name = request.name, .platform = request.platform, .progress = request.progress};
    Import job(core, import, source, stop);
    std::vector<ImageRow> rows = job.run();
    if (const std::vector<DiffId> made = job.made(); !made.empty()) {
        core.fetches.add(WholePull{.at_us = core.fetches.now_us(),
                                   .source = source.places().front()->place().reference.name(),
                                   .lacks_index = request.lazy != PullRequest::Lazy::never,
                                   .layers = made});
    }
    complete_images(core, rows, request.progress, stop);
    return rows.front();
}

ImageRow commit_image(StoreCore& core, const CommitRequest& request, ByteSource& layer_tar,
                      const std::stop_token& stop) {
    Meter meter(request.progress);
    ImportJob job(core, meter);
    std::vector<StoredLayer> layers;
    for (const DiffId& base_layer : request.base_layers) {
        const auto row = job.known_layer(base_layer);
        if (!row) throw Error(Errc::not_found, "layer " + base_layer.digest.text() + " of the base: not in the store");
        core.lazy.complete(base_layer, {.progress = request.progress}, stop);
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
    Meter::Part part(meter, {.phase = "reading", .item = request.name.text()});
    const auto open = [&] { return OpenedTar{std::make_unique<Borrowed>(layer_tar), {}}; };
    const LayerRow layer = job.layer({.promised = std::nullopt, .part = part}, open, stop);
    layers.push_back({layer.diff_id, layer.tar_bytes});
    const std::string config =
        extended_config(core.index->documents(base->id).config,
                        {.layer = layer.diff_id, .created = rfc3339_now(), .created_by = request.created_by});
    ImageParts parts{.manifest = bytes_of(plain_manifest(config, layers)),
                     .manifest_media_type = kManifestMediaType,
                     .config = bytes_of(config),
                     .name = request.name};
    for (const StoredLayer& stored : layers) parts.layers.push_back(stored.diff_id);
    return job.image(parts, stop);
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
            .used_at = image.used_at,
            .is_pinned = image.is_pinned,
            .logical_bytes = image.tree.logical_bytes,
            .inode_count = image.tree.inode_count};
}

}  // namespace lamina::store
