#include "store/import_job.h"

#include "store/error.h"
#include "store/layer_importer.h"
#include "store/recipe.h"
#include "store/tree_builder.h"

#include <ctime>
#include <utility>

// A layer is stored in this order, each step durable before the next: pack in packs/, recipe in layers/, one index
// transaction that names both, the chunk index segment (job_packs.cpp). An image follows when all its layers are there:
// tree in trees/, then one index transaction that makes the image and its name. So what a crash leaves is files that no
// row names (removed by the next open), or packs and layers that no image names (used by the next try, or collected).
//
// Before it asks whether a layer, a tree or a chunk is there, a job puts the thing on its lease; gc.cpp says why that
// is enough. Two jobs that need the same new layer do not both make it: the second waits for the first's claim and then
// finds it known. A thread has one claim at a time, and waits for nothing but compression while it has it.

namespace lamina::store {

namespace {

/// A layer's tar on its way in: reports and polls for stop.
class MeteredTar : public ByteSource {
public:
    MeteredTar(OpenedTar opened, Meter::Part& part, std::stop_token stop)
        : opened_(std::move(opened)), part_(part), stop_(std::move(stop)) {}
    std::size_t read(std::span<std::byte> out) override {
        if (stop_.stop_requested()) throw Error(Errc::cancelled, "stopped");
        const std::size_t size_bytes = opened_.tar->read(out);
        tar_bytes_ += size_bytes;
        part_.reach(opened_.read_bytes ? opened_.read_bytes() : tar_bytes_);
        return size_bytes;
    }

private:
    OpenedTar opened_;
    Meter::Part& part_;
    std::stop_token stop_;
    std::uint64_t tar_bytes_ = 0;
};

std::optional<ChainId> chain_of(const std::vector<DiffId>& layers) {
    std::optional<ChainId> chain;
    for (const DiffId& layer : layers) chain = chain_id(chain ? &*chain : nullptr, layer);
    return chain;
}

}  // namespace

ImportJob::ImportJob(StoreCore& core, Meter& meter)
    : core_(core),
      meter_(meter),
      lease_(core.leases.take()),
      folder_(core),
      packs_(core, lease_, folder_.path(), JobPacks::Limits{}) {
    agree_chunk_index(core_);
}

std::optional<LayerRow> ImportJob::known_layer(const DiffId& diff_id) {
    lease_.keep_layer(diff_id);
    return core_.index->find_layer(diff_id);
}

LayerRow ImportJob::layer(const NewLayer& layer, const OpenTar& open_tar, const std::stop_token& stop) {
    if (!layer.promised) return make_layer(layer, open_tar, stop);
    const Leases::Claim claim = core_.leases.claim_layer(*layer.promised, stop);
    if (auto known = known_layer(*layer.promised)) return *known;
    return make_layer(layer, open_tar, stop);
}

LayerRow ImportJob::make_layer(const NewLayer& layer, const OpenTar& open_tar, const std::stop_token& stop) {
    const std::string recipe = new_path(kRecipeSuffix);
    MeteredTar tar(open_tar(), layer.part, stop);
    const auto lane = packs_.lane();
    const ImportedLayer imported = import_layer(tar, *lane, recipe, LayerLimits{}, stop);
    if (layer.promised && imported.diff_id != *layer.promised) {
        throw Error(Errc::corrupt, "diff ID is " + imported.diff_id.digest.text() + ", the config promises " +
                                       layer.promised->digest.text());
    }
    std::optional<Leases::Claim> claim;
    if (!layer.promised) {
        claim.emplace(core_.leases.claim_layer(imported.diff_id, stop));
        if (auto row = known_layer(imported.diff_id)) return *row;
    }
    const LayerRow row{.diff_id = imported.diff_id,
                       .tar_bytes = imported.tar_bytes,
                       .entry_count = imported.entry_count,
                       .recipe_bytes = file_size(recipe)};
    packs_.commit_layer(row, recipe);
    return row;
}

TreeRow ImportJob::tree(const std::optional<ChainId>& chain, const std::vector<DiffId>& layers,
                        const std::stop_token& stop) {
    if (const auto known = chain ? core_.index->find_tree(*chain) : std::nullopt) {
        lease_.keep_tree(known->digest);
        if (core_.index->has_tree(known->digest)) return *known;  // Asked again: now nobody can take it away.
    }
    std::vector<std::unique_ptr<Recipe>> recipes;
    for (const DiffId& layer : layers) recipes.push_back(Recipe::open(core_.paths.recipe(layer)));
    const BuiltTree built = build_tree(recipes, folder_.path(), stop);
    lease_.keep_tree(built.digest);
    rename_durably(folder_.path() + "/" + built.digest.digest.hex(), core_.paths.tree(built.digest));
    return {built.digest, built.file_bytes, built.inode_count, built.logical_bytes};
}

ImageRow ImportJob::image(const ImageParts& parts, const std::stop_token& stop) {
    const oci::Config config = oci::parse_config(parts.config);
    if (config.diff_ids != parts.layers) {
        throw Error(Errc::malformed, "the config's diff IDs are not those of the layers");
    }
    const auto chain = chain_of(parts.layers);
    meter_.begin("writing tree", parts.name ? parts.name->text() : "");
    const TreeRow tree_row = tree(chain, parts.layers, stop);
    agree_chunk_index(core_);  // Another job may have failed between a layer's transaction and its segment.
    const NewImage image{.manifest = parts.manifest,
                         .manifest_media_type = parts.manifest_media_type,
                         .config = parts.config,
                         .platform = config.platform,
                         .created = config.created,
                         .imported_at = std::time(nullptr),
                         .layers = parts.layers,
                         .chain = chain,
                         .tree = tree_row,
                         .name = parts.name};
    // Under the leases' lock, because gc decides under it which images without a name it takes away.
    return core_.leases.with_all([&](const Leases::Held&, auto&&) { return core_.index->add_image(image); });
}

}  // namespace lamina::store
