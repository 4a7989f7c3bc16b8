#include "support/mini_store.h"

#include "store/chunk_store.h"
#include "store/file.h"
#include "store/layer_importer.h"
#include "store/pack_writer.h"
#include "store/recipe.h"
#include "store/tree_builder.h"
#include "support/tar_builder.h"

#include <memory>

namespace lamina::test {
namespace {

constexpr std::uint64_t kCacheBytes = 8 << 20;

}  // namespace

MiniStore::MiniStore(std::string root) : root_(std::move(root)) {
    for (const char* const name : {"", "/packs", "/trees", "/layers", "/staging", "/mounts"}) {
        store::make_folders(root_ + name);
    }
}

void MiniStore::add_layer(store::ByteSource& tar) {
    const auto known = store::ChunkStore::open(root_ + "/packs", kCacheBytes);
    store::PackWriter pack({.packs_folder = root_ + "/packs",
                            .staging_folder = root_ + "/staging",
                            .pack_number = next_pack_++,
                            .compression_level = 1},
                           *known);
    const std::string staged = root_ + "/staging/layer.recipe";
    const auto layer = store::import_layer(tar, pack, staged, {}, {});
    if (const auto finished = pack.finish()) known->add_segment(*finished);
    store::rename_durably(staged, root_ + "/layers/" + layer.diff_id.digest.hex() + ".recipe");
    layers_.push_back(layer.diff_id);
}

void MiniStore::add_layer(const std::string& tar_bytes) {
    TextSource tar(tar_bytes);
    add_layer(tar);
}

std::string MiniStore::make_mount(const std::string& id, bool is_read_only) {
    std::vector<std::unique_ptr<store::Recipe>> recipes;
    for (const auto& layer : layers_) {
        recipes.push_back(store::Recipe::open(root_ + "/layers/" + layer.digest.hex() + ".recipe"));
    }
    const auto tree = store::build_tree(recipes, root_ + "/staging", {});
    const std::string hex = tree.digest.digest.hex();
    store::rename_durably(root_ + "/staging/" + hex, root_ + "/trees/" + hex + ".tree");
    const std::string folder = root_ + "/mounts/" + id;
    store::make_folders(folder);
    store::write_mount_base(folder, {.tree = tree.digest,
                                     .layers = layers_,
                                     .image = "localhost/test:latest",
                                     .manifest_digest = "",
                                     .config_digest = "",
                                     .mountpoint = "/",
                                     .is_read_only = is_read_only});
    return folder;
}

}  // namespace lamina::test
