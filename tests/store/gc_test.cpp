#include "store/gc.h"

#include "store/error.h"
#include "store/file.h"
#include "store/read_view.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/run_before.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <atomic>
#include <thread>
#include <utility>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::ImageName;
using store::Store;

namespace {

const std::string kShared = test::some_text(80'000, 21);
const test::Files kOld{{"a-gone", test::some_text(200'000, 22)}, {"b-shared", kShared}};
const test::Files kKept{{"own", test::some_text(50'000, 23)}, {"shared", kShared}};

/// "old" with a pack of its own, of which "kept" needs a part.
void import_both(Store& store, const std::string& layouts) {
    test::import_from(store, test::write_layout(layouts + "/old", {{"old:1", {kOld}}}));
    test::import_from(store, test::write_layout(layouts + "/kept", {{"kept:1", {kKept}}}));
}

}  // namespace

TEST_CASE("gc takes what nothing names and leaves the rest whole", "[store][gc]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const test::Files base{{"base", test::some_text(100'000, 1)}};
    const test::Files top{{"top", test::some_text(100'000, 2)}};
    const std::string source = test::write_layout(folder / "layout", {{"one:1", {base, top}}, {"two:1", {base}}});
    test::import_from(*opened, source + ":two:1");  // Alone, so that its layer has a pack alone.
    test::import_from(*opened, source);
    CHECK(opened->gc(false, {}).freed_bytes == 0);
    opened->remove_image("one:1", false);
    const auto bytes = [&] { return test::bytes_on_disk(folder / "s"); };
    const std::uint64_t before = bytes();
    const store::GcReport dry = opened->gc(true, {});
    CHECK(dry.is_dry_run);
    CHECK(bytes() == before);
    const store::GcReport report = opened->gc(false, {});
    CHECK(report.freed_bytes == dry.freed_bytes);
    CHECK(report.packs_removed == 1);
    CHECK(report.layers_removed == 1);
    CHECK(report.trees_removed == 1);
    CHECK(bytes() == before - report.freed_bytes);
    CHECK(test::problems_of(*opened) == "");
    CHECK(test::has_files(*opened, "two:1", base));
    test::import_from(*opened, source);
    CHECK(test::has_files(*opened, "one:1", top));
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("a pack that is more than a quarter dead is written anew, under the eyes of readers", "[store][gc]") {
    const test::TempDir folder;
    auto opened = Store::open(folder / "s");
    import_both(*opened, folder.path());
    const auto kept = opened->inspect("kept:1").summary;
    const auto early = store::ReadView::open(folder / "s", kept.tree, 1 << 20);
    opened->remove_image("old:1", false);
    CHECK(opened->gc(true, {}).packs_rewritten == 1);
    const std::uint64_t before = test::bytes_on_disk(folder / "s/packs");
    const store::GcReport report = opened->gc(false, {});
    CHECK(report.packs_rewritten == 1);
    CHECK(report.packs_removed == 0);
    CHECK(report.freed_bytes > 0);
    CHECK(test::bytes_on_disk(folder / "s/packs") < before);
    CHECK(!store::exists(folder / "s/packs/pack-0000000001.lpk"));
    CHECK(test::problems_of(*opened) == "");
    std::vector<std::byte> bytes(kShared.size());
    CHECK(early->read(early->tree().lookup(store::kTreeRoot, "shared")->ino, 0, bytes) == bytes.size());
    CHECK(test::text_of(bytes) == kShared);
    CHECK(opened->gc(false, {}).packs_rewritten == 0);
    opened.reset();
    opened = Store::open(folder / "s");
    CHECK(test::has_files(*opened, "kept:1", kKept));
}

TEST_CASE("an image that lost its name goes with gc, one that never had one stays", "[store][gc]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    import_both(*opened, folder.path());
    const auto nameless = test::import_from(*opened, test::write_layout(folder / "none", {{"", {{{"x", "y"}}}}})).at(0);
    opened->tag("kept:1", ImageName::parse("old:1"));
    CHECK(opened->images().size() == 3);
    opened->gc(false, {});
    REQUIRE(opened->images().size() == 2);
    CHECK(opened->images()[1].config == nameless.config);
    CHECK(test::has_files(*opened, "old:1", kKept));
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("a pinned image stays without a name until it is unpinned", "[store][gc][pin]") {
    const test::TempDir folder;
    auto opened = Store::open(folder / "s");
    import_both(*opened, folder.path());
    opened->set_pinned("old:1", true);
    CHECK_THAT(test::error_of([&] { opened->remove_image("old:1", false); }), ContainsSubstring("busy: "));
    CHECK_THAT(test::error_of([&] { opened->set_pinned("none:1", true); }), ContainsSubstring("not_found: "));
    const std::string id = opened->inspect("old:1").summary.config.digest.text();
    opened->tag("kept:1", ImageName::parse("old:1"));  // Takes its only name.
    opened.reset();
    opened = Store::open(folder / "s");
    CHECK(opened->gc(false, {}).layers_removed == 0);
    CHECK(opened->inspect(id).summary.is_pinned);
    CHECK(test::has_files(*opened, id, kOld));
    opened->set_pinned(id, false);
    CHECK(opened->gc(false, {}).layers_removed == 1);
    CHECK_THAT(test::error_of([&] { opened->inspect(id); }), ContainsSubstring("not_found: "));
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("a name of a pinned image can go while another is left, and force removes the image with its pin",
          "[store][pin]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    import_both(*opened, folder.path());
    opened->tag("old:1", ImageName::parse("second:1"));
    opened->set_pinned("old:1", true);
    opened->remove_image("old:1", false);
    CHECK(opened->inspect("second:1").summary.is_pinned);
    opened->remove_image("second:1", true);
    CHECK(opened->images().size() == 1);
    CHECK(opened->gc(false, {}).layers_removed == 1);
}

TEST_CASE("gc that cannot tell what is needed removes nothing", "[store][gc][bad]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    import_both(*opened, folder.path());
    const std::string id = opened->create_mount("kept:1", "/mnt", false);
    opened->remove_image("old:1", false);
    const auto packs = store::list_folder(folder / "s/packs");
    std::string path;
    SECTION("a damaged recipe") {
        path = folder / "s/layers/" + opened->inspect("kept:1").summary.layers.at(0).digest.hex() + ".recipe";
    }
    SECTION("a damaged mount base") {
        path = folder / "s/mounts/" + id + "/base";
    }
    const std::string sound = test::read_text(path);
    test::write_text(path, "x" + sound.substr(1));
    CHECK_THAT(test::error_of([&] { opened->gc(false, {}); }), ContainsSubstring("corrupt: "));
    CHECK(store::list_folder(folder / "s/packs") == packs);
    CHECK(store::list_folder(folder / "s/layers").size() == 2);
    test::write_text(path, sound);
    CHECK(opened->gc(false, {}).layers_removed == 1);
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("strays of jobs that could not clean up go with the next gc", "[store][gc]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    import_both(*opened, folder.path());
    test::write_text(folder / "s/packs/pack-0000000077.lpk", "12345");
    test::write_text(folder / "s/trees/" + std::string(64, 'b') + ".tree", "123");
    CHECK(opened->gc(false, {}).freed_bytes == 8);
    CHECK(!store::exists(folder / "s/packs/pack-0000000077.lpk"));
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("gc can be stopped before it decides", "[store][gc]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    import_both(*opened, folder.path());
    opened->remove_image("old:1", false);
    std::stop_source stopper;
    stopper.request_stop();
    CHECK_THAT(test::error_of([&] { opened->gc(false, stopper.get_token()); }), ContainsSubstring("cancelled: "));
    CHECK(test::problems_of(*opened) == "");
    CHECK(opened->gc(false, {}).layers_removed == 1);
}

TEST_CASE("gc in the middle of an import takes nothing that the import has found, and what it takes is stored again",
          "[store][gc][threads]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const test::Files common{{"common", test::some_text(80'000, 31)}};
    const test::Files same_bytes{{"elsewhere", common.at("common")}, {"own", test::some_text(50'000, 32)}};
    const test::Files other{{"other", test::some_text(50'000, 33)}};
    test::import_from(*opened, test::write_layout(folder / "old", {{"old:1", {common}}}));
    test::RunBefore::When when;
    std::vector<test::Files> layers;
    bool is_kept = true;
    bool is_certain = true;
    SECTION("a chunk that was found") {
        layers = {same_bytes};
        when = {"rename", "/packs/pack-"};
    }
    SECTION("a layer that was found") {
        layers = {common, other};
        when = {"rename", "/packs/pack-"};
    }
    SECTION("before anything was looked for") {
        layers = {common, same_bytes};
        when = {"mkdir", "/staging/job-"};
        is_kept = false;
    }
    SECTION("a pack that no row names yet") {
        layers = {same_bytes};
        when = {"fsync", "/s/packs"};
    }
    SECTION("a recipe that no row names yet") {
        layers = {other, same_bytes};
        when = {"fsync", "/s/layers"};
        is_certain = false;  // Either layer's recipe: the other may have found the chunk before.
    }
    SECTION("a tree that no row names yet") {
        layers = {common, same_bytes};
        when = {"fsync", "/s/trees"};
    }
    const std::string source = test::write_layout(folder / "new", {{"new:1", layers}});
    {
        const test::RunBefore middle(when, [&] {
            opened->remove_image("old:1", false);
            opened->gc(false, {});
        });
        test::import_from(*opened, source);
        CHECK(middle.has_run());
    }
    if (is_certain) CHECK(store::exists(folder / "s/packs/pack-0000000001.lpk") == is_kept);
    CHECK(test::problems_of(*opened) == "");
    for (const test::Files& files : layers) CHECK(test::has_files(*opened, "new:1", files));
    opened->gc(false, {});
    CHECK(test::problems_of(*opened) == "");
    for (const test::Files& files : layers) CHECK(test::has_files(*opened, "new:1", files));
}

TEST_CASE("imports that go on while gc runs lose nothing", "[store][gc][threads]") {
    const test::TempDir folder("/dev/shm");
    const auto opened = Store::open(folder / "s");
    // Each image needs chunks of the one that was removed before it, which gc is just about to take.
    std::vector<test::Files> files;
    std::vector<std::string> sources;
    for (unsigned i = 0; i < 12; ++i) {
        const std::string number = std::to_string(i);
        files.push_back({{"before", test::some_text(70'000, 100 + i)},
                         {"common", test::some_text(70'000, 99)},
                         {"own", test::some_text(70'000, 101 + i)}});
        sources.push_back(test::write_layout(folder / number, {{"x:" + number, {files.back()}}}));
    }
    std::atomic<bool> is_done{false};
    std::atomic<int> gc_count{0};
    std::string gc_error;
    std::jthread collector([&] {
        while (!is_done && gc_error.empty()) {
            gc_error = test::error_of([&] { opened->gc(false, {}); });
            ++gc_count;
        }
    });
    for (std::size_t i = 0; i < sources.size(); ++i) {
        test::import_from(*opened, sources[i]);
        CHECK(test::has_files(*opened, "x:" + std::to_string(i), files[i]));
        if (i > 0) opened->remove_image("x:" + std::to_string(i - 1), false);
    }
    is_done = true;
    collector.join();
    CHECK(gc_error == "");
    CHECK(gc_count > 0);
    CHECK(test::problems_of(*opened) == "");
    opened->gc(false, {});
    CHECK(test::has_files(*opened, "x:11", files[11]));
    CHECK(store::list_folder(folder / "s/layers").size() == 1);
    CHECK(test::problems_of(*opened) == "");
}
