#include "store/layer_importer.h"

#include "store/error.h"
#include "store/file.h"
#include "store/recipe.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/tar_builder.h"
#include "support/temp_dir.h"

using namespace lamina;

namespace {

struct Imported {
    test::TempDir folder;
    test::MemoryChunks chunks;
    store::ImportedLayer layer{store::DiffId{store::Digest::of({})}, 0, 0};
    std::string recipe_path() const { return folder / "recipe"; }
};

std::unique_ptr<Imported> import(const std::string& tar, const store::LayerLimits& limits = {}) {
    auto out = std::make_unique<Imported>();
    test::TextSource source(tar);
    out->layer = store::import_layer(source, out->chunks, out->recipe_path(), limits, {});
    return out;
}

std::string tar_of(Imported& imported) {
    test::StringSink out;
    store::Recipe::open(imported.recipe_path())->write_tar(imported.chunks, out);
    return out.text;
}

}  // namespace

TEST_CASE("a layer comes back byte for byte, and its diff ID covers all of it", "[store][layer]") {
    const std::string tar = test::TarBuilder()
                                .folder("etc")
                                .file("etc/motd", "hello")
                                .file("etc/empty", "")
                                .file("big", std::string(300'000, 'x') + "end")
                                .symlink("link", "etc/motd")
                                .hardlink("hard", "etc/motd")
                                .device("null", '3', {1, 3})
                                .fifo("pipe")
                                .tar() +
                            "what follows the end marker";
    const auto imported = import(tar);
    CHECK(imported->layer.diff_id.digest == store::Digest::of(store::as_bytes(tar)));
    CHECK(imported->layer.tar_bytes == tar.size());
    CHECK(imported->layer.entry_count == 8);
    CHECK(tar_of(*imported) == tar);
}
