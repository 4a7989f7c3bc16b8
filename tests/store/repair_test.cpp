#include "store/error.h"
#include "store/file.h"
#include "store/store.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <algorithm>
#include <string>
#include <vector>

// Repair: what follows from other parts is made anew, the rest comes from sources that need not be trusted.

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::RepairReport;
using store::Store;

namespace {

/// Bodies of their own frames, so that damage to one leaves the others.
const test::Files kBase{{"big", test::some_text(250'000, 1)}, {"other", test::some_text(240'000, 2)}};
const test::Files kTop{{"app", test::some_text(200'000, 3)}};

/// A closed store with "base:1" and "work:1", which shares base's layer.
struct Place {
    Place() {
        source = test::write_layout(folder / "layout", {{"base:1", {kBase}}, {"work:1", {kBase, kTop}}});
        test::import_from(*open(), source + ":base:1");  // First, so that its first frame is the store's.
        test::import_from(*open(), source);
    }
    std::string root() const { return folder / "s"; }
    std::unique_ptr<Store> open() const { return Store::open(root()); }

    test::TempDir folder;
    std::string source;
};

std::vector<std::string> files_in(const std::string& folder, const std::string& suffix) {
    std::vector<std::string> paths;
    for (const std::string& name : store::list_folder(folder)) {
        if (name.ends_with(suffix)) paths.push_back(folder + "/" + name);
    }
    std::ranges::sort(paths);
    REQUIRE(!paths.empty());
    return paths;
}

void flip(const std::string& path, std::uint64_t offset_bytes) {
    store::File file = store::File::open_append(path);
    std::byte byte{};
    store::read_exact(file.fd(), offset_bytes, {&byte, 1}, path);
    byte ^= std::byte{4};
    file.write_at(offset_bytes, {&byte, 1});
}

void flip_in_first_frame(const Place& place) {
    flip(files_in(place.root() + "/packs", ".lpk").at(0), 1000);
}

RepairReport repair(Store& store, std::vector<std::string> sources) {
    return store.repair({.sources = std::move(sources), .progress = {}}, {});
}

std::string text_of(const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines) text += line + "\n";
    return text;
}

void check_whole(Store& store) {
    CHECK(test::problems_of(store) == "");
    CHECK(test::has_files(store, "base:1", kBase));
    CHECK(test::has_files(store, "work:1", kBase));
    CHECK(test::has_files(store, "work:1", kTop));
}

}  // namespace

TEST_CASE("a sound store has nothing to repair", "[store][repair]") {
    const Place place;
    const auto opened = place.open();
    const auto before = test::bytes_on_disk(place.root() + "/packs");
    const RepairReport report = repair(*opened, {place.source});
    CHECK(text_of(report.done) == "");
    CHECK(report.left.problems.empty());
    CHECK(report.left.bytes_checked > 0);
    CHECK(test::bytes_on_disk(place.root() + "/packs") == before);
}

TEST_CASE("damaged frames are healed from a source, and the damaged pack is put aside", "[store][repair]") {
    const Place place;
    flip_in_first_frame(place);
    const auto opened = place.open();
    CHECK(test::problems_of(*opened) != "");
    const RepairReport report = repair(*opened, {place.source});
    CHECK(report.left.problems.empty());
    CHECK_THAT(text_of(report.done), ContainsSubstring("taken from the sources"));
    CHECK_THAT(text_of(report.done), ContainsSubstring("quarantine"));
    CHECK(files_in(place.root() + "/quarantine", ".lpk").size() == 1);
    check_whole(*opened);
    opened->gc(false, {});
    check_whole(*opened);
    const store::DiskUsage usage = opened->disk_usage();
    CHECK(usage.pack_bytes + usage.index_bytes + usage.recipe_bytes + usage.tree_bytes + usage.mount_bytes +
              usage.other_bytes ==
          test::bytes_on_disk(place.root()));
}

TEST_CASE("whatever part of a store is damaged or missing comes back", "[store][repair]") {
    const Place place;
    const std::string root = place.root();
    SECTION("a pack") {
        store::remove_file(files_in(root + "/packs", ".lpk").at(0));
    }
    SECTION("a pack's footer") {
        const std::string pack = files_in(root + "/packs", ".lpk").at(0);
        flip(pack, store::file_size(pack) - 10);
    }
    SECTION("a recipe") {
        const std::string recipe = files_in(root + "/layers", ".recipe").at(0);
        flip(recipe, store::file_size(recipe) / 2);
    }
    SECTION("all recipes") {
        for (const std::string& recipe : files_in(root + "/layers", ".recipe")) store::remove_file(recipe);
    }
    SECTION("trees") {
        for (const std::string& tree : files_in(root + "/trees", ".tree")) flip(tree, store::file_size(tree) - 5);
    }
    SECTION("the chunk index") {
        for (const std::string& segment : files_in(root + "/packs", ".idx")) {
            flip(segment, store::file_size(segment) - 40);
        }
    }
    SECTION("all of it") {
        for (const std::string& pack : files_in(root + "/packs", ".lpk")) store::remove_file(pack);
        for (const std::string& recipe : files_in(root + "/layers", ".recipe")) store::remove_file(recipe);
        for (const std::string& tree : files_in(root + "/trees", ".tree")) store::remove_file(tree);
    }
    const auto opened = place.open();
    const RepairReport report = repair(*opened, {place.source});
    CAPTURE(text_of(report.done), text_of(report.left.problems));
    CHECK(!report.done.empty());
    CHECK(report.left.problems.empty());
    check_whole(*opened);
    opened->save({.image = "work:1", .target = "oci:" + (place.folder / "out"), .progress = {}}, {});
}

TEST_CASE("without a source what is damaged is put aside, and everything else goes on", "[store][repair][bad]") {
    const Place place;
    flip_in_first_frame(place);
    const auto opened = place.open();
    const RepairReport report = repair(*opened, {});
    CHECK_THAT(text_of(report.left.problems), ContainsSubstring("\"/big\" cannot be read"));
    CHECK(text_of(report.left.problems).find("\"/other\"") == std::string::npos);
    CHECK(text_of(report.left.problems).find("\"/app\"") == std::string::npos);
    CHECK(test::file_of(*opened, "base:1", "other") == kBase.at("other"));
    CHECK(test::has_files(*opened, "work:1", kTop));
    CHECK(test::error_of([&] { static_cast<void>(test::file_of(*opened, "base:1", "big")); }) != "");
    CHECK(repair(*opened, {place.source}).left.problems.empty());  // A source that is found later does it, too.
    check_whole(*opened);
}

TEST_CASE("a source that lies is told so, and does no harm", "[store][repair][bad]") {
    const Place place;
    test::TestLayout other(place.folder / "other");
    other.add_image({.name = "base:1", .layers = {{.tar = test::layer_tar(kBase)}}});
    other.finish();
    for (const auto& layer : other.layers) flip(other.blob_file(layer), 60);
    flip_in_first_frame(place);
    const auto opened = place.open();
    const std::string before = test::problems_of(*opened);
    const RepairReport report = repair(*opened, {"oci:" + other.folder(), "oci:" + (place.folder / "nowhere")});
    CHECK_THAT(text_of(report.done), ContainsSubstring("source \"oci:" + other.folder() + "\": "));
    CHECK_THAT(text_of(report.done), ContainsSubstring("source \"oci:" + (place.folder / "nowhere") + "\": "));
    CHECK(!report.left.problems.empty());
    CHECK(test::has_files(*opened, "work:1", kTop));
    CHECK(repair(*opened, {place.source}).left.problems.empty());
    check_whole(*opened);
}

TEST_CASE("a folder with the same bytes heals what it has", "[store][repair]") {
    const Place place;
    test::write_text((place.folder / "dir/") + "elsewhere", kBase.at("big"));
    flip_in_first_frame(place);
    const auto opened = place.open();
    CHECK(repair(*opened, {"dir:" + (place.folder / "dir")}).left.problems.empty());
    check_whole(*opened);
}

TEST_CASE("a repair that is stopped leaves the store as it was", "[store][repair]") {
    const Place place;
    flip_in_first_frame(place);
    const auto opened = place.open();
    const std::string before = test::problems_of(*opened);
    std::stop_source stop;
    const auto progress = [&](const store::Progress&) { stop.request_stop(); };
    CHECK_THAT(
        test::error_of([&] { opened->repair({.sources = {place.source}, .progress = progress}, stop.get_token()); }),
        ContainsSubstring("cancelled: "));
    CHECK(test::problems_of(*opened) == before);
    CHECK(store::list_folder(place.root() + "/staging").empty());
}
