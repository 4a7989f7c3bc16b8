#include "store/layer_importer.h"

#include "store/chunker.h"
#include "store/recipe_writer.h"
#include "store/tar_input.h"
#include "store/tar_reader.h"

namespace lamina::store {

namespace {

/// The next `bytes` of a body as chunks; of a sparse file this is one range, so that no chunk reaches over a hole.
void import_run(LayerReader& reader, std::uint64_t bytes, ChunkSink& chunks, RecipeWriter& recipe) {
    while (bytes > 0) {
        auto data = reader.peek_body(kMaxChunkBytes);
        if (data.size() > bytes) data = data.first(static_cast<std::size_t>(bytes));
        if (data.size() > kMaxChunkBytes) data = data.first(kMaxChunkBytes);
        const auto chunk = data.first(next_boundary(data));
        recipe.add_chunk(chunks.add(chunk), static_cast<std::uint32_t>(chunk.size()));
        reader.consume_body(chunk.size());
        bytes -= chunk.size();
    }
}

}  // namespace

ImportedLayer import_layer(ByteSource& tar, ChunkSink& chunks, const std::string& recipe_path,
                           const LayerLimits& limits, std::stop_token stop) {
    HashedTar input(tar, std::move(stop));
    RecipeWriter recipe(recipe_path);
    LayerReader reader(input, limits, &recipe);
    while (const auto entry = reader.next()) {
        if (entry->is_sparse) {
            for (const TarRange& range : entry->data_map) import_run(reader, range.size_bytes, chunks, recipe);
        } else {
            import_run(reader, entry->stored_bytes, chunks, recipe);
        }
    }
    const ImportedLayer layer{
        .diff_id = input.finish(), .tar_bytes = input.bytes_read(), .entry_count = reader.entry_count()};
    recipe.finish({.diff_id = layer.diff_id, .tar_bytes = layer.tar_bytes, .entry_count = layer.entry_count});
    return layer;
}

}  // namespace lamina::store
