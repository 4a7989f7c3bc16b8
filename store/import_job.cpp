#include "store/import_job.h"

#include "store/error.h"
#include "store/recipe.h"
#include "store/tree_builder.h"

#include <algorithm>
#include <ctime>
#include <thread>
#include <utility>

// A layer is stored in this order, each step durable before the next: pack in packs/, recipe in layers/, one index
// transaction that names both, the chunk index segment. An image follows when all its layers are there: tree in trees/,
// then one index transaction that makes the image and its name. So what a crash leaves is files that no row names
// (removed by the next open) or layers that no image names (used by the next try, or collected).
//
// Before it asks whether a layer, a tree or a chunk is there, a job puts the thing on its lease; gc.cpp says why that
// is enough. Two jobs that need the same new layer do not both make it: the second waits for the first's claim and then
// finds it known.

namespace lamina::store {

namespace {

constexpr std::uint64_t kReportEveryBytes = 1 << 20;

/// A layer's tar on its way in: reports and polls for stop.
class MeteredTar : public ByteSource {
public:
    MeteredTar(OpenedTar opened, Meter& meter, std::stop_token stop)
        : opened_(std::move(opened)), meter_(meter), stop_(std::move(stop)) {}
    std::size_t read(std::span<std::byte> out) override {
        if (stop_.stop_requested()) throw Error(Errc::cancelled, "stopped");
        const std::size_t size_bytes = opened_.tar->read(out);
        tar_bytes_ += size_bytes;
        meter_.advance(opened_.read_bytes ? opened_.read_bytes() : tar_bytes_);
        return size_bytes;
    }

private:
    OpenedTar opened_;
    Meter& meter_;
    std::stop_token stop_;
    std::uint64_t tar_bytes_ = 0;
};

std::optional<ChainId> chain_of(const std::vector<DiffId>& layers) {
    std::optional<ChainId> chain;
    for (const DiffId& layer : layers) chain = chain_id(chain ? &*chain : nullptr, layer);
    return chain;
}

}  // namespace

/// Takes away what a failed layer had already moved into packs/ and layers/, unless its transaction had happened.
class ImportJob::Undo {
public:
    Undo(StoreCore& core, std::uint32_t pack) : core_(core), pack_(pack) {}
    ~Undo() {
        if (is_committed) return;
        try {
            if (!core_.index->has_pack(pack_)) remove_file(pack_path(core_.paths.packs(), pack_));
            if (layer && !core_.index->find_layer(*layer)) remove_file(core_.paths.recipe(*layer));
        } catch (const Error&) {  // The first error is on its way; gc and the next open remove strays.
        }
    }
    Undo(const Undo&) = delete;
    Undo& operator=(const Undo&) = delete;

    std::optional<DiffId> layer;
    bool is_committed = false;

private:
    StoreCore& core_;
    const std::uint32_t pack_;
};

void Meter::begin(const std::string& phase, const std::string& item) {
    phase_ = phase;
    item_ = item;
    report(0);
}

void Meter::advance(std::uint64_t bytes) {
    if (bytes >= reported_bytes_ + kReportEveryBytes) report(bytes);
}

void Meter::end_at(std::uint64_t done_bytes) {
    base_bytes_ = done_bytes;
    report(0);
}

void Meter::report(std::uint64_t bytes) {
    reported_bytes_ = bytes;
    if (!function_) return;
    const std::uint64_t done_bytes = base_bytes_ + bytes;
    function_({phase_, item_, total_bytes_ ? std::min(done_bytes, total_bytes_) : done_bytes, total_bytes_});
}

ImportJob::ImportJob(StoreCore& core, const ProgressFunction& progress, std::uint64_t total_bytes, std::stop_token stop)
    : core_(core), lease_(core.leases.take()), folder_(core), meter_(progress, total_bytes), stop_(std::move(stop)) {
    agree_chunk_index(core_);
}

std::optional<LayerRow> ImportJob::known_layer(const DiffId& diff_id) {
    lease_.keep_layer(diff_id);
    return core_.index->find_layer(diff_id);
}

LayerRow ImportJob::layer(const std::optional<DiffId>& promised, const OpenTar& open_tar) {
    if (!promised) return make_layer(promised, open_tar);
    const Leases::Claim claim = core_.leases.claim_layer(*promised, stop_);
    if (auto known = known_layer(*promised)) return *known;
    return make_layer(promised, open_tar);
}

LayerRow ImportJob::make_layer(const std::optional<DiffId>& promised, const OpenTar& open_tar) {
    const std::uint32_t pack = core_.index->allocate_pack();
    lease_.keep_pack(pack);
    LeasedChunks known(*core_.chunks, lease_);
    PackWriter writer({.packs_folder = core_.paths.packs(),
                       .staging_folder = folder_.path(),
                       .pack_number = pack,
                       .thread_count = std::max(1u, std::thread::hardware_concurrency())},
                      known);
    const std::string recipe = new_path(kRecipeSuffix);
    MeteredTar tar(open_tar(), meter_, stop_);
    const ImportedLayer layer = import_layer(tar, writer, recipe, LayerLimits{}, stop_);
    if (promised && layer.diff_id != *promised) {
        throw Error(Errc::corrupt,
                    "diff ID is " + layer.diff_id.digest.text() + ", the config promises " + promised->digest.text());
    }
    std::optional<Leases::Claim> claim;
    if (!promised) {
        claim.emplace(core_.leases.claim_layer(layer.diff_id, stop_));
        if (auto row = known_layer(layer.diff_id)) return *row;
    }
    Undo undo(core_, pack);
    return publish_layer(layer, recipe, writer, undo);
}

LayerRow ImportJob::publish_layer(const ImportedLayer& layer, const std::string& recipe, PackWriter& writer,
                                  Undo& undo) {
    const std::optional<FinishedPack> pack = writer.finish();
    const LayerRow row{.diff_id = layer.diff_id,
                       .tar_bytes = layer.tar_bytes,
                       .entry_count = layer.entry_count,
                       .recipe_bytes = file_size(recipe)};
    undo.layer = layer.diff_id;
    rename_durably(recipe, core_.paths.recipe(layer.diff_id));
    const std::lock_guard publishing(core_.publishing);
    std::optional<PackRow> pack_row;
    if (pack) pack_row = PackRow{pack->number, pack->file_bytes, pack->raw_bytes};
    core_.index->add_layer(row, pack_row);
    undo.is_committed = true;
    if (pack) add_segment(*pack, layer.diff_id, undo);
    return row;
}

/// Lets the pack's chunks be found. When that fails, on a full disk, the layer is taken back: nobody can have used it,
/// because its claim is ours and its pack was hidden from the moment that the chunk index might have named it.
void ImportJob::add_segment(const FinishedPack& pack, const DiffId& layer, Undo& undo) {
    core_.leases.hide({pack.number});
    try {
        core_.chunks->add_segment(pack);
    } catch (const Error&) {
        core_.index->remove({.layers = {layer}, .packs = {pack.number}});
        undo.is_committed = false;
        throw;
    }
    core_.leases.show({pack.number});
}

TreeRow ImportJob::tree(const std::optional<ChainId>& chain, const std::vector<DiffId>& layers) {
    if (const auto known = chain ? core_.index->find_tree(*chain) : std::nullopt) {
        lease_.keep_tree(known->digest);
        if (core_.index->has_tree(known->digest)) return *known;  // Asked again: now nobody can take it away.
    }
    std::vector<std::unique_ptr<Recipe>> recipes;
    for (const DiffId& layer : layers) recipes.push_back(Recipe::open(core_.paths.recipe(layer)));
    const BuiltTree built = build_tree(recipes, folder_.path(), stop_);
    lease_.keep_tree(built.digest);
    rename_durably(folder_.path() + "/" + built.digest.digest.hex(), core_.paths.tree(built.digest));
    return {built.digest, built.file_bytes, built.inode_count, built.logical_bytes};
}

ImageRow ImportJob::image(const ImageParts& parts) {
    const oci::Config config = oci::parse_config(parts.config);
    if (config.diff_ids != parts.layers) {
        throw Error(Errc::malformed, "the config's diff IDs are not those of the layers");
    }
    const auto chain = chain_of(parts.layers);
    meter_.begin("writing tree", parts.name ? parts.name->text() : "");
    const TreeRow tree_row = tree(chain, parts.layers);
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
