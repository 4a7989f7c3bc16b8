#include "store/repair.h"

#include "store/error.h"
#include "store/layer_importer.h"
#include "store/opened_tar.h"
#include "store/pack_builder.h"
#include "store/pack_reader.h"
#include "store/printable.h"
#include "store/recipe.h"
#include "store/tree_builder.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

// First the chunk index, which the packs have it all for. Then every pack is read. Of those that are damaged, whatever
// can still be read goes into one new pack, together with what the sources have of the rest: a chunk is good when it
// has its digest, wherever it comes from, so a source can be wrong, and be told so, but cannot do harm. A recipe is
// taken only from a layer that has the right diff ID to its last byte. The new pack replaces the damaged ones in one
// transaction; their files are moved into quarantine/, not removed: what they had is nowhere else, and a bad place of a
// disk is not given to another file. Trees come last: they follow from the recipes.
//
// gc is kept out, since the damaged packs are not to go as garbage meanwhile. Imports may run: what a job has found in
// a damaged pack it finds in the new one, which its lease then keeps too.

namespace lamina::store {

namespace {

class Repair {
public:
    Repair(StoreCore& core, const RepairRequest& request, const std::stop_token& stop)
        : core_(core),
          request_(request),
          stop_(stop),
          lease_(core.leases.take()),
          folder_(core),
          pool_(std::thread::hardware_concurrency(), kImportLevel) {}

    std::vector<std::string> run() {
        const std::lock_guard collecting(core_.collecting);
        for (const PackRow& pack : core_.index->packs()) total_bytes_ += pack.file_bytes;
        mend_chunk_index();
        for (const PackRow& pack : core_.index->packs()) look_at_pack(pack);
        look_at_layers();
        begin_pack();
        for (const std::uint32_t pack : bad_packs_) save_from(pack);
        if (needs_sources()) {
            for (const std::string& source : request_.sources) read_source(source);
        }
        replace_packs();
        for (const auto& [layer, recipe] : recipes_) replace_recipe(layer, recipe);
        mend_trees();
        return std::move(done_);
    }

private:
    struct NewRecipe {
        std::string path;
        ImportedLayer layer;
    };
    class Sink;

    void mend_chunk_index();
    void look_at_pack(const PackRow& pack);
    void look_at_layers();
    void begin_pack();
    void save_from(std::uint32_t pack);
    bool needs_sources() const { return !bad_recipes_.empty() || !hit_layers_.empty(); }
    void read_source(const std::string& text);
    void read_layer(ImageSource& source, const SourceImage& image, std::size_t position, std::size_t layer);
    void replace_packs();
    void quarantine(std::uint32_t pack);
    void replace_recipe(const DiffId& layer, const NewRecipe& recipe);
    void mend_trees();
    void mend_tree(const TreeRow& row);

    bool is_wanted(const ChunkId& chunk) const {
        const auto place = core_.chunks->find(chunk);
        return !place || bad_packs_.contains(place->pack);
    }
    void poll() const {
        if (stop_.stop_requested()) throw Error(Errc::cancelled, "stopped");
    }
    void tell(std::string line) { done_.push_back(std::move(line)); }
    void report(const std::string& phase, const std::string& item) const {
        if (request_.progress) request_.progress({phase, item, done_bytes_, total_bytes_});
    }

    StoreCore& core_;
    const RepairRequest& request_;
    const std::stop_token& stop_;
    Leases::Lease lease_;
    const JobFolder folder_;
    CompressionPool pool_;
    std::optional<PackBuilder> pack_;
    PackBuilder::Lane* lane_ = nullptr;
    std::uint32_t number_ = 0;
    std::set<std::uint32_t> bad_packs_;
    std::set<DiffId> bad_recipes_;
    std::set<DiffId> hit_layers_;  ///< Whose recipes are good, and some of whose chunks lie in bad packs, or nowhere.
    std::map<DiffId, NewRecipe> recipes_;
    std::uint64_t next_recipe_ = 1;
    std::uint64_t from_sources_ = 0;  ///< Chunks.
    std::uint64_t done_bytes_ = 0;
    std::uint64_t total_bytes_ = 0;
    std::vector<std::string> done_;
};

/// Takes the chunks that are wanted, whatever layer they come from.
class Repair::Sink : public ChunkSink {
public:
    explicit Sink(Repair& repair) : repair_(repair) {}
    ChunkId add(std::span<const std::byte> data) override {
        const ChunkId id{Digest::of(data)};
        if (!repair_.pack_->contains(id) && repair_.is_wanted(id)) {
            repair_.pack_->add(*repair_.lane_, id, data);
            ++repair_.from_sources_;
        }
        return id;
    }

private:
    Repair& repair_;
};

void Repair::mend_chunk_index() {
    const bool is_sound =
        check_chunk_index(core_.paths.packs()).empty() && core_.chunks->indexed_packs() == core_.index->pack_numbers();
    if (is_sound) return;
    const std::lock_guard publishing(core_.publishing);
    core_.chunks->rebuild(core_.index->pack_numbers());
    tell("chunk index: made anew from the packs");
}

void Repair::look_at_pack(const PackRow& pack) {
    poll();
    report("checking packs", "pack " + std::to_string(pack.number));
    if (!check_pack(core_.paths.packs(), pack.number, true, nullptr).empty()) bad_packs_.insert(pack.number);
    done_bytes_ += pack.file_bytes;
}

void Repair::look_at_layers() {
    for (const LayerRow& row : core_.index->layers()) {
        poll();
        try {
            const auto recipe = Recipe::open(core_.paths.recipe(row.diff_id));
            for (const auto entries = recipe->entries(); entries->next();) {
            }
            const std::vector<ChunkId> chunks = recipe->chunks();
            const bool is_hit = std::ranges::any_of(chunks, [&](const ChunkId& chunk) { return is_wanted(chunk); });
            if (is_hit) hit_layers_.insert(row.diff_id);
            if (recipe->diff_id() == row.diff_id) continue;
        } catch (const Error& error) {  // What is damaged is looked for here.
            if (error.code() == Errc::cancelled) throw;
        }
        bad_recipes_.insert(row.diff_id);
    }
}

void Repair::begin_pack() {
    if (bad_packs_.empty() && !needs_sources()) return;
    number_ = core_.index->allocate_pack();
    lease_.keep_pack(number_);
    pack_.emplace(
        PackBuilder::Options{
            .packs_folder = core_.paths.packs(), .staging_folder = folder_.path(), .pack_number = number_},
        pool_);
    lane_ = &pack_->add_lane();
}

/// All of it, needed or not: a job may have found any of it.
void Repair::save_from(std::uint32_t pack) {
    std::vector<NewChunk> table;
    try {
        table = read_pack_table(core_.paths.packs(), pack);
    } catch (const Error&) {  // Nothing of it can be told apart.
        return;
    }
    PackFiles files(core_.paths.packs());
    std::shared_ptr<const Frame> frame;
    std::uint64_t tried_offset_bytes = 0;  // No frame lies there.
    for (const NewChunk& chunk : table) {
        poll();
        try {
            if (chunk.place.frame_offset_bytes != std::exchange(tried_offset_bytes, chunk.place.frame_offset_bytes)) {
                frame = nullptr;
                frame = files.read_frame(chunk.place);
            }
            if (!frame) continue;
            const auto bytes = frame->bytes_at(chunk.id, chunk.place.offset_in_frame_bytes);
            if (!bytes.empty() && Digest::of(bytes) == chunk.id.digest) pack_->add(*lane_, chunk.id, bytes);
        } catch (const Error& error) {  // Where it is damaged.
            if (error.code() != Errc::corrupt && error.code() != Errc::not_found && error.code() != Errc::unavailable) {
                throw;
            }
        }
    }
}

void Repair::read_source(const std::string& text) {
    try {
        const auto source = open_source(text, request_.platform);
        const std::vector<SourceImage> images = source->images();
        for (std::size_t image = 0; image < images.size(); ++image) {
            for (std::size_t layer = 0; layer < images[image].layers.size(); ++layer) {
                read_layer(*source, images[image], image, layer);
            }
        }
    } catch (const Error& error) {  // Another source may do.
        if (error.code() == Errc::cancelled || error.code() == Errc::no_space || error.code() == Errc::quota) throw;
        tell("source " + store::quote(text) + ": " + error.what());
    }
}

void Repair::read_layer(ImageSource& source, const SourceImage& image, std::size_t position, std::size_t layer) {
    const SourceLayer& description = image.layers[layer];
    const auto& diff_id = description.diff_id;
    if (diff_id && !bad_recipes_.contains(*diff_id) && !hit_layers_.contains(*diff_id)) return;
    if (diff_id && recipes_.contains(*diff_id)) return;
    poll();
    report("reading", diff_id ? diff_id->digest.text() : image.name);
    const std::string path = folder_.path() + "/" + std::to_string(next_recipe_++) + kRecipeSuffix;
    const OpenedTar opened = open_tar(source, {position, layer, description}, stop_);
    Sink sink(*this);
    const ImportedLayer imported = import_layer(*opened.tar, sink, path, LayerLimits{}, stop_);
    if (diff_id && imported.diff_id != *diff_id) {
        throw Error(Errc::corrupt, "a layer has the diff ID " + imported.diff_id.digest.text() + ", promised is " +
                                       diff_id->digest.text());
    }
    recipes_.emplace(imported.diff_id, NewRecipe{path, imported});
}

/// The new pack counts instead of the damaged ones.
void Repair::replace_packs() {
    if (!pack_) return;
    const std::vector<std::uint32_t> bad(bad_packs_.begin(), bad_packs_.end());
    const std::optional<FinishedPack> finished = pack_->finish();
    if (!finished && bad.empty()) return;
    std::vector<PackRow> added;
    if (finished) added.push_back({finished->number, finished->file_bytes, finished->raw_bytes, finished->dense_bytes});
    {
        const std::lock_guard publishing(core_.publishing);
        const auto commit = [&](const Leases::Held&, const std::vector<std::uint32_t>&) {
            core_.index->replace_packs(added, bad);
            return false;  // Nothing is to stay hidden: what is left of it lies in the new pack.
        };
        core_.leases.retire(bad, finished ? std::optional(number_) : std::nullopt, commit);
        core_.chunks->replace_packs(finished ? &*finished : nullptr, bad);
    }
    for (const std::uint32_t pack : bad) quarantine(pack);
    if (from_sources_ > 0) tell(std::to_string(from_sources_) + " chunks: taken from the sources");
}

void Repair::quarantine(std::uint32_t pack) {
    const std::string folder = core_.paths.root + "/quarantine";
    const std::string path = pack_path(core_.paths.packs(), pack);
    const std::string what = "pack " + std::to_string(pack);
    if (!exists(path)) return tell(what + ": its file was gone");
    make_folder(folder);
    rename_durably(path, pack_path(folder, pack));
    tell(what + ": damaged; what could be read was copied, the file is in quarantine/");
}

void Repair::replace_recipe(const DiffId& layer, const NewRecipe& recipe) {
    if (!bad_recipes_.contains(layer)) return;
    lease_.keep_layer(layer);
    rename_durably(recipe.path, core_.paths.recipe(layer));
    core_.index->renew_layer({.diff_id = layer,
                              .tar_bytes = recipe.layer.tar_bytes,
                              .entry_count = recipe.layer.entry_count,
                              .recipe_bytes = file_size(core_.paths.recipe(layer))});
    tell("layer " + layer.digest.text() + ": its recipe is made anew from a source");
}

void Repair::mend_trees() {
    for (const TreeRow& row : core_.index->trees()) {
        poll();
        try {
            if (ImageTree::open(core_.paths.tree(row.digest), row.digest)->check().empty()) continue;
        } catch (const Error&) {  // As damaged as can be.
        }
        try {
            mend_tree(row);
        } catch (const Error& error) {  // A recipe that it needs: verify tells of it.
            if (error.code() != Errc::corrupt && error.code() != Errc::not_found) throw;
        }
    }
}

void Repair::mend_tree(const TreeRow& row) {
    const std::vector<ImageRow> images = core_.index->all_images();
    const auto image = std::ranges::find_if(images, [&](const ImageRow& one) { return one.tree.digest == row.digest; });
    if (image == images.end()) return;
    std::vector<std::unique_ptr<Recipe>> layers;
    for (const DiffId& layer : image->layers) layers.push_back(Recipe::open(core_.paths.recipe(layer)));
    const BuiltTree built = build_tree(layers, folder_.path(), stop_);
    if (built.digest != row.digest) return;
    lease_.keep_tree(row.digest);
    rename_durably(folder_.path() + "/" + built.digest.digest.hex(), core_.paths.tree(row.digest));
    tell("tree " + row.digest.digest.text() + ": made anew from the layers' recipes");
}

}  // namespace

std::vector<std::string> repair_store(StoreCore& core, const RepairRequest& request, const std::stop_token& stop) {
    return Repair(core, request, stop).run();
}

}  // namespace lamina::store
