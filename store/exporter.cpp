#include "store/exporter.h"

#include "store/error.h"
#include "store/image_writer.h"
#include "store/recipe.h"

#include <utility>

namespace lamina::store {

void save_image(StoreCore& core, const SaveRequest& request, const std::stop_token& stop) {
    Leases::Lease lease = core.leases.take();
    const FoundImage found = keep_image(core, lease, request.image);
    for (const DiffId& layer : found.row.layers) core.lazy.complete(layer, {.progress = request.progress}, stop);
    ImageDocuments documents = core.index->documents(found.row.id);
    ImageToWrite image{.name = found.by_name             ? found.by_name->text()
                               : found.row.names.empty() ? std::string()
                                                         : found.row.names.front(),
                       .manifest = std::move(documents.manifest),
                       .manifest_media_type = std::move(documents.manifest_media_type),
                       .config = std::move(documents.config)};
    for (const DiffId& layer : found.row.layers) {
        const auto row = core.index->find_layer(layer);
        if (!row) throw Error(Errc::corrupt, "layer " + layer.digest.text() + ": not in the index");
        image.layers.push_back({.diff_id = layer,
                                .tar_bytes = row->tar_bytes,
                                .write_tar = [&core, path = core.paths.recipe(layer)](ByteSink& out) {
                                    Recipe::open(path)->write_tar(*core.chunks, out);
                                }});
    }
    write_image(image, request.target, request.progress, stop);
}

}  // namespace lamina::store
