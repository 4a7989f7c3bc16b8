#pragma once

#include "store/layer_importer.h"
#include "store/recipe.h"
#include "support/tar_builder.h"
#include "support/temp_dir.h"

#include <memory>
#include <string>
#include <vector>

namespace lamina::test {

/// A layer that was imported into memory: chunks, and a recipe in a folder that goes with it.
struct ImportedLayer {
    TempDir folder;
    MemoryChunks chunks;
    store::ImportedLayer layer{store::DiffId{store::Digest::of({})}, 0, 0};

    std::string recipe_path() const { return folder / "recipe"; }
    std::unique_ptr<store::Recipe> recipe() const { return store::Recipe::open(recipe_path()); }
    std::string tar();                                       ///< As the recipe gives it back.
    std::vector<store::LayerEntry> entries() const;          ///< As the recipe has them.
    store::LayerEntry entry(const std::string& path) const;  ///< Fails the test when there is none.
    std::string body(const std::string& path) const;
};
std::unique_ptr<ImportedLayer> import_tar(const std::string& tar, const store::LayerLimits& limits = {});

}  // namespace lamina::test
