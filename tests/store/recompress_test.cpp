#include "store/chunk_store.h"
#include "store/error.h"
#include "store/file.h"
#include "store/pack_format.h"
#include "store/recipe.h"
#include "store/store.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <algorithm>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

// Upkeep compresses anew what an import compressed quickly, and reads all packs.

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::Store;
using store::UpkeepReport;

namespace {

constexpr std::size_t kFileBytes = 20'000;
constexpr std::size_t kAllBytes = 16 * kFileBytes;

test::Files numbered(unsigned seed, unsigned count) {
    test::Files files;
    for (unsigned i = 0; i < count; ++i) {
        files[std::to_string(seed) + "-" + std::to_string(i)] = test::some_text(kFileBytes, 1000 * seed + i);
    }
    return files;
}

const test::Files kBase = numbered(1, 8);
const test::Files kTop = numbered(2, 8);

std::unique_ptr<Store> store_with_images(const test::TempDir& folder) {
    auto opened = Store::open(folder / "s");
    test::import_from(*opened, test::write_layout(folder / "l", {{"one:1", {kBase}}, {"two:1", {kBase, kTop}}}));
    return opened;
}

UpkeepReport upkeep(Store& store, bool scrubs = false) {
    return store.upkeep({.scrubs = scrubs, .progress = {}}, {});
}

std::uint64_t pack_bytes(const test::TempDir& folder) {
    std::uint64_t bytes = 0;
    for (const std::string& name : store::list_folder(folder / "s/packs")) {
        if (name.ends_with(".lpk")) bytes += store::file_size((folder / "s/packs/") + name);
    }
    return bytes;
}

void check_sound(Store& store) {
    CHECK(test::problems_of(store) == "");
    CHECK(test::has_files(store, "one:1", kBase));
    CHECK(test::has_files(store, "two:1", kTop));
}

std::string first_pack(const test::TempDir& folder) {
    std::vector<std::string> names = store::list_folder(folder / "s/packs");
    std::erase_if(names, [](const std::string& name) { return !name.ends_with(".lpk"); });
    std::ranges::sort(names);
    return (folder / "s/packs/") + names.at(0);
}

void flip_in_first_frame(const test::TempDir& folder) {
    constexpr std::uint64_t kInPayload = 400;
    store::File file = store::File::open_append(first_pack(folder));
    std::byte byte{};
    store::read_exact(file.fd(), kInPayload, {&byte, 1}, "pack");
    byte ^= std::byte{1};
    file.write_at(kInPayload, {&byte, 1});
}

}  // namespace

TEST_CASE("upkeep makes packs smaller and changes nothing that is read", "[store][upkeep]") {
    const test::TempDir folder;
    const auto opened = store_with_images(folder);
    const std::uint64_t before = pack_bytes(folder);
    const std::uint64_t all_before = test::bytes_on_disk(folder / "s");
    const UpkeepReport report = upkeep(*opened);
    CHECK(report.compressed_bytes == kAllBytes);
    CHECK(report.packs_written == 1);
    CHECK(pack_bytes(folder) < before);
    CHECK(report.freed_bytes == std::int64_t(before) - std::int64_t(pack_bytes(folder)));
    CHECK(test::bytes_on_disk(folder / "s") < all_before);
    check_sound(*opened);
    CHECK(opened->disk_usage().reclaimable_bytes == 0);

    SECTION("and finds nothing to do the next time") {
        const UpkeepReport again = upkeep(*opened);
        CHECK(again.compressed_bytes == 0);
        CHECK(again.packs_written == 0);
    }
    SECTION("also for who opens the store next") {
        check_sound(*opened);
        opened->save({.image = "two:1", .target = "oci:" + (folder / "out"), .progress = {}}, {});
    }
}

TEST_CASE("upkeep puts chunks into the order of files, so that alike ones lie together", "[store][upkeep]") {
    const test::TempDir folder;
    const auto opened = store_with_images(folder);
    std::vector<store::ChunkId> expected;
    for (const auto& layer : opened->inspect("two:1").layers) {
        const auto recipe = store::Recipe::open((folder / "s/layers/") + layer.diff_id.digest.hex() + ".recipe");
        const auto entries = recipe->entries();
        while (const auto entry = entries->next()) {
            for (const auto& part : entry->content) expected.push_back(part.chunk);
        }
    }
    REQUIRE(expected.size() == kAllBytes / kFileBytes);
    CHECK(upkeep(*opened).packs_written == 1);
    std::vector<store::ChunkId> found;
    const std::string pack = first_pack(folder);
    const auto number = static_cast<std::uint32_t>(std::stoul(pack.substr(pack.rfind('-') + 1)));
    for (const store::NewChunk& chunk : store::read_pack_table(folder / "s/packs", number)) found.push_back(chunk.id);
    CHECK(found == expected);
}

TEST_CASE("upkeep leaves out what gc has left in a pack although nothing needs it", "[store][upkeep]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    test::import_from(*opened, test::write_layout(folder / "l", {{"one:1", {kBase}}, {"two:1", {numbered(2, 1)}}}));
    opened->remove_image("two:1", false);
    opened->gc(false, {});
    CHECK(upkeep(*opened).compressed_bytes == 8 * kFileBytes);
    CHECK(test::problems_of(*opened) == "");
    CHECK(test::has_files(*opened, "one:1", kBase));
}

TEST_CASE("upkeep keeps what a layer has that no image has, until gc takes the layer", "[store][upkeep]") {
    const test::TempDir folder;
    const auto opened = store_with_images(folder);
    opened->remove_image("two:1", false);
    CHECK(upkeep(*opened).compressed_bytes == kAllBytes);
    test::import_from(*opened, "oci:" + (folder / "l"));  // Finds its layers there.
    check_sound(*opened);
}

TEST_CASE("gc and upkeep together leave what is needed, compressed", "[store][upkeep]") {
    const test::TempDir folder;
    const auto opened = store_with_images(folder);
    upkeep(*opened);
    opened->remove_image("two:1", false);
    CHECK(opened->gc(false, {}).packs_rewritten == 1);
    CHECK(test::problems_of(*opened) == "");
    CHECK(test::has_files(*opened, "one:1", kBase));
    CHECK(upkeep(*opened).compressed_bytes <=
          8 * kFileBytes);  // Frames that gc had to cut are compressed as at import.
    CHECK(upkeep(*opened).compressed_bytes == 0);
    CHECK(test::has_files(*opened, "one:1", kBase));
}

TEST_CASE("an upkeep that is stopped leaves a sound store, and the next one does the rest", "[store][upkeep]") {
    const test::TempDir folder;
    const auto opened = store_with_images(folder);
    std::stop_source stop;
    unsigned told = 0;
    const auto progress = [&](const store::Progress&) {
        if (++told == 5) stop.request_stop();
    };
    CHECK_THAT(test::error_of([&] { opened->upkeep({.progress = progress}, stop.get_token()); }),
               ContainsSubstring("cancelled: "));
    CHECK(told < 16);
    check_sound(*opened);
    CHECK(store::list_folder(folder / "s/staging").empty());
    CHECK(upkeep(*opened).packs_written == 1);
    check_sound(*opened);
}

TEST_CASE("imports and removals in the middle of an upkeep lose nothing", "[store][upkeep]") {
    const test::TempDir folder;
    const auto opened = store_with_images(folder);
    const test::Files more = numbered(3, 5);
    bool is_done = false;
    const auto progress = [&](const store::Progress&) {
        if (std::exchange(is_done, true)) return;
        test::import_from(*opened, test::write_layout(folder / "m", {{"more:1", {kTop, more}}}));
        opened->remove_image("one:1", false);
        opened->gc(false, {});
    };
    opened->upkeep({.progress = progress}, {});
    REQUIRE(is_done);
    CHECK(test::problems_of(*opened) == "");
    CHECK(test::has_files(*opened, "two:1", kBase));
    CHECK(test::has_files(*opened, "more:1", kTop));
    CHECK(test::has_files(*opened, "more:1", more));
    upkeep(*opened);
    CHECK(test::problems_of(*opened) == "");
    CHECK(test::has_files(*opened, "more:1", more));
}

TEST_CASE("upkeep keeps a damaged pack for verify, and compresses the rest", "[store][upkeep][bad]") {
    const test::TempDir folder;
    { const auto opened = store_with_images(folder); }
    flip_in_first_frame(folder);
    const auto opened = Store::open(folder / "s");
    const std::string damaged = first_pack(folder);
    const UpkeepReport report = upkeep(*opened);
    CHECK(report.packs_written == 1);
    CHECK(store::exists(damaged));
    CHECK_THAT(test::problems_of(*opened), ContainsSubstring("bad checksum"));
    CHECK(upkeep(*opened).packs_written == 0);
}

TEST_CASE("the scrub reads all packs and names the images that damage hits", "[store][upkeep][scrub]") {
    const test::TempDir folder;
    {
        const auto opened = store_with_images(folder);
        upkeep(*opened);
        const UpkeepReport report = upkeep(*opened, true);
        CHECK(report.problems.empty());
        CHECK(report.read_bytes > 0);
    }
    flip_in_first_frame(folder);
    const auto opened = Store::open(folder / "s");
    const UpkeepReport report = upkeep(*opened, true);
    REQUIRE(report.problems.size() >= 2);
    CHECK_THAT(report.problems[0], ContainsSubstring("bad checksum"));
    CHECK_THAT(report.problems.back(), ContainsSubstring("image "));
}

TEST_CASE("a scrub that is stopped goes on where it was", "[store][upkeep][scrub]") {
    const test::TempDir folder;
    const auto opened = store_with_images(folder);
    upkeep(*opened);
    const std::uint64_t all = upkeep(*opened, true).read_bytes;
    std::stop_source stop;
    unsigned frames = 0;
    const auto progress = [&](const store::Progress&) {
        if (++frames == 1) stop.request_stop();
    };
    CHECK_THAT(test::error_of([&] { opened->upkeep({.scrubs = true, .progress = progress}, stop.get_token()); }),
               ContainsSubstring("cancelled: "));
    const std::uint64_t rest = upkeep(*opened, true).read_bytes;
    CHECK(rest > 0);
    CHECK(rest < all);
    CHECK(opened->upkeep({.scrubs = true, .scrub_pause_seconds = 3600, .progress = {}}, {}).read_bytes == 0);
}
