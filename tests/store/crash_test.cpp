#include "store/error.h"
#include "store/file.h"
#include "store/store.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/small_disk.h"
#include "support/tar_builder.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>

// Every step that changes the disk fails once, fails from there on, or is the last thing the process does. The store
// lies in memory where it can: what matters here is the order of steps, not what the disk has kept.

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::ImageName;
using store::Store;
using How = test::FaultAtStep::How;

namespace {

constexpr long kMaxSteps = 1000;
const std::string kShared = test::some_text(30'000, 21);
const test::Files kOld{{"a-gone", test::some_text(90'000, 22)}, {"b-shared", kShared}};
const test::Files kKept{{"own", test::some_text(20'000, 23)}, {"shared", kShared}};
const test::Files kNew{{"new", test::some_text(20'000, 24)}, {"shared", kShared}};
const test::Files kMore{{"more", test::some_text(5'000, 25)}};

/// A job, on a store that has "old:1" (removed, so that gc has a pack to write anew) and "kept:1".
struct Scene {
    explicit Scene(const test::TempDir& temporary) : folder(temporary) {
        const auto opened = Store::open(folder / "template");
        test::import_from(*opened, test::write_layout(folder / "old", {{"old:1", {kOld}}}));
        base = test::import_from(*opened, test::write_layout(folder / "kept", {{"kept:1", {kKept}}}));
        opened->remove_image("old:1", false);
        source = test::write_layout(folder / "new", {{"new:1", {kNew, kMore}}});
    }
    std::string fresh_store() const {
        std::filesystem::remove_all(folder / "s");
        std::filesystem::copy(folder / "template", folder / "s", std::filesystem::copy_options::recursive);
        return folder / "s";
    }
    void import(Store& store) const { test::import_from(store, source); }
    void commit(Store& store) const {
        test::TextSource tar(test::layer_tar(kMore));
        store.commit({.base_config_digest = base.at(0).config.digest.text(),
                      .base_layers = base.at(0).layers,
                      .name = ImageName::parse("new:1"),
                      .created_by = "test",
                      .progress = {}},
                     tar, {});
    }
    static void gc(Store& store) { store.gc(false, {}); }

    const test::TempDir& folder;
    std::vector<store::ImageSummary> base;
    std::string source;
};

bool has_new(Store& store) {
    for (const auto& image : store.images()) {
        if (image.names == std::vector<std::string>{"new:1"}) return true;
    }
    return false;
}

/// Sound, the old image whole, the new one whole or not there.
void check_whole(Store& store) {
    CHECK(test::problems_of(store) == "");
    CHECK(test::has_files(store, "kept:1", kKept));
    if (has_new(store)) CHECK(test::has_files(store, "new:1", kMore));
}

using Job = std::function<void(Store&)>;

void fail_at_every_step(const Scene& scene, const Job& job, How how) {
    for (long step = 1;; ++step) {
        CAPTURE(step);
        REQUIRE(step < kMaxSteps);
        const std::string root = scene.fresh_store();
        auto opened = Store::open(root);
        bool has_failed = false;
        {
            const test::FaultAtStep fault(step, how);
            try {
                job(*opened);
            } catch (const store::Error& error) {
                CAPTURE(error.what());
                CHECK(error.code() == store::Errc::no_space);
            }
            has_failed = fault.has_failed();
        }
        check_whole(*opened);  // In the same process: nothing was left open or half known.
        if (step % 2 == 0) {
            opened.reset();
            opened = Store::open(root);
            check_whole(*opened);
            CHECK(store::list_folder(root + "/staging").empty());
        }
        job(*opened);
        check_whole(*opened);
        opened->gc(false, {});
        check_whole(*opened);
        if (!has_failed) break;
    }
}

void die_at_every_step(const Scene& scene, const Job& job) {
    for (long step = 1;; ++step) {
        CAPTURE(step);
        REQUIRE(step < kMaxSteps);
        const std::string root = scene.fresh_store();
        const bool has_died = test::killed_at_step(step, [&] { job(*Store::open(root)); });
        auto opened = Store::open(root);
        check_whole(*opened);
        CHECK(store::list_folder(root + "/staging").empty());
        job(*opened);
        opened->gc(false, {});
        check_whole(*opened);
        if (!has_died) break;
    }
}

}  // namespace

TEST_CASE("an import, commit or gc that fails at any step leaves a sound store and can be tried again",
          "[store][crash][slow]") {
    const test::TempDir folder("/dev/shm");
    const Scene scene(folder);
    const How how = GENERATE(How::once, How::from_then_on);
    SECTION("import") {
        fail_at_every_step(
            scene, [&](Store& store) { scene.import(store); }, how);
    }
    SECTION("commit") {
        fail_at_every_step(
            scene, [&](Store& store) { scene.commit(store); }, how);
    }
    SECTION("gc") {
        fail_at_every_step(scene, Scene::gc, how);
    }
}

TEST_CASE("an import, commit or gc that is killed at any step leaves a sound store and can be tried again",
          "[store][crash][slow]") {
    const test::TempDir folder("/dev/shm");
    const Scene scene(folder);
    SECTION("import") {
        die_at_every_step(scene, [&](Store& store) { scene.import(store); });
    }
    SECTION("commit") {
        die_at_every_step(scene, [&](Store& store) { scene.commit(store); });
    }
    SECTION("gc") {
        die_at_every_step(scene, Scene::gc);
    }
}

TEST_CASE("making a store that is killed at any step can be begun again", "[store][crash]") {
    const test::TempDir folder("/dev/shm");
    for (long step = 1;; ++step) {
        CAPTURE(step);
        REQUIRE(step < kMaxSteps);
        std::filesystem::remove_all(folder / "s");
        const bool has_died = test::killed_at_step(step, [&] { Store::open(folder / "s").reset(); });
        CHECK(test::problems_of(*Store::open(folder / "s")) == "");
        if (!has_died) break;
    }
}

TEST_CASE("a full disk stops an import and a commit with no_space, and everything else goes on", "[store][crash]") {
    const test::TempDir folder;
    const test::SmallDisk disk(folder, 12);
    if (!disk.is_mounted()) {
        WARN("skipped: needs root and a loop device");
        return;
    }
    const auto opened = Store::open(disk.path() + "/s");
    const auto base = test::import_from(*opened, test::write_layout(folder / "kept", {{"kept:1", {kKept}}}));
    std::string noise;
    for (unsigned seed = 0; seed < 80; ++seed) {
        for (unsigned i = 0; i < 65536; ++i)
            noise += static_cast<char>((seed * 2654435761u + i * i * 40503u + i * seed) >> 9);
    }
    const std::string big = test::write_layout(folder / "big", {{"big:1", {{{"small", "x"}}, {{"noise", noise}}}}});
    // What is left of the disk after this file is too little for the layer.
    const std::string filler = disk.path() + "/filler";
    std::system(("dd if=/dev/zero bs=64k of=" + filler + " >/dev/null 2>&1").c_str());
    for (int round = 0; round < 3; ++round) {
        CAPTURE(round);
        CHECK_THAT(test::error_of([&] { test::import_from(*opened, big); }), ContainsSubstring("no_space: "));
        test::TextSource tar(test::layer_tar({{"noise", noise}}));
        CHECK_THAT(test::error_of([&] {
                       opened->commit({.base_config_digest = base.at(0).config.digest.text(),
                                       .base_layers = base.at(0).layers,
                                       .name = ImageName::parse("new:1"),
                                       .created_by = "test",
                                       .progress = {}},
                                      tar, {});
                   }),
                   ContainsSubstring("no_space: "));
        CHECK(test::problems_of(*opened) == "");
        CHECK(test::has_files(*opened, "kept:1", kKept));
        CHECK(opened->images().size() == 1);
        std::filesystem::resize_file(filler, std::filesystem::file_size(filler) - (round + 1) * 300'000);
    }
    std::filesystem::remove(filler);
    test::import_from(*opened, big);
    CHECK(test::file_of(*opened, "big:1", "noise") == noise);
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("on a disk that is full to the last byte an image can be removed and gc makes room", "[store][crash]") {
    const test::TempDir folder;
    const test::SmallDisk disk(folder, 12);
    if (!disk.is_mounted()) {
        WARN("skipped: needs root and a loop device");
        return;
    }
    const auto opened = Store::open(disk.path() + "/s");
    test::import_from(*opened, test::write_layout(folder / "old", {{"old:1", {kOld}}}));
    test::import_from(*opened, test::write_layout(folder / "new", {{"new:1", {kNew, kMore}}}));
    disk.fill();
    CHECK_THAT(test::error_of([&] { store::write_file_atomically(disk.path() + "/x", test::bytes_of(kShared)); }),
               ContainsSubstring("no_space: "));
    opened->remove_image("new:1", false);
    const store::GcReport report = opened->gc(false, {});
    CHECK(report.packs_removed >= 1);  // Both layers may have come into one pack.
    CHECK(report.freed_bytes > 0);
    CHECK(test::problems_of(*opened) == "");
    CHECK(test::has_files(*opened, "old:1", kOld));
}
