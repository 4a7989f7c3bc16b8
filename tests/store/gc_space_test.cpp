#include "store/chunk_index.h"
#include "store/error.h"
#include "store/file.h"
#include "store/gc.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/small_disk.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <filesystem>
#include <string>

// What gc frees, and says that it would free; and that it can when nothing is free any more.

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::ImageName;
using store::Store;

namespace {

/// A folder of files; `common` of them are the same whatever the seed.
test::Files some_files(unsigned seed, unsigned own_count, unsigned common) {
    test::Files files;
    for (unsigned i = 0; i < own_count; ++i) {
        files["own/" + std::to_string(i)] = test::some_text(20'000 + 997 * i, 1000 * seed + i);
    }
    for (unsigned i = 0; i < common; ++i)
        files["own/" + std::to_string(i) + "-common"] = test::some_text(9'000, 77 + i);
    return files;
}

void import(Store& store, const std::string& folder, const std::string& name, const test::Files& files) {
    test::import_from(store, test::write_layout(folder + "/" + name, {{name + ":1", {files}}}));
}

/// gc frees exactly what a dry run, which changes no byte, has told before. Returns the report.
store::GcReport check_exact(Store& store) {
    const std::uint64_t before = test::bytes_on_disk(store.root());
    const store::GcReport dry = store.gc(true, {});
    CHECK(test::bytes_on_disk(store.root()) == before);
    const store::GcReport real = store.gc(false, {});
    const std::uint64_t after = test::bytes_on_disk(store.root());
    CHECK(before - after == dry.freed_bytes);
    CHECK(real.freed_bytes == dry.freed_bytes);
    CHECK(real.packs_removed == dry.packs_removed);
    CHECK(real.packs_rewritten == dry.packs_rewritten);
    CHECK(real.layers_removed == dry.layers_removed);
    CHECK(real.trees_removed == dry.trees_removed);
    CHECK(test::problems_of(store) == "");
    CHECK(store.gc(true, {}).freed_bytes == 0);
    return real;
}

}  // namespace

TEST_CASE("a dry run tells to the byte what gc then frees", "[store][gc]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    for (unsigned i = 0; i < 6; ++i) import(*opened, folder.path(), "i" + std::to_string(i), some_files(i, 20, 4));
    SECTION("nothing") {
        CHECK(check_exact(*opened).freed_bytes == 0);
    }
    SECTION("whole packs") {
        opened->remove_image("i3:1", false);
        opened->remove_image("i5:1", false);
        CHECK(check_exact(*opened).packs_removed == 2);
    }
    SECTION("a partly dead pack") {
        opened->remove_image("i0:1", false);
        const store::GcReport report = check_exact(*opened);
        CHECK(report.packs_removed == 0);
        CHECK(report.packs_rewritten == 1);
        CHECK(report.freed_bytes > 100'000);
    }
    SECTION("both, and everything else that may lie around") {
        opened->remove_image("i0:1", false);
        opened->remove_image("i2:1", false);
        opened->tag("i3:1", ImageName::parse("i4:1"));  // i4 is without a name.
        test::write_text(folder / "s/packs/pack-0000000077.lpk", "12345");
        test::write_text(folder / "s/trees/" + std::string(64, 'b') + ".tree", "123");
        const store::GcReport report = check_exact(*opened);
        CHECK(report.packs_removed == 2);
        CHECK(report.packs_rewritten == 1);
        CHECK(report.images_removed == 1);
    }
    SECTION("all") {
        for (unsigned i = 0; i < 6; ++i) opened->remove_image("i" + std::to_string(i) + ":1", false);
        CHECK(check_exact(*opened).packs_removed == 6);
        CHECK(opened->disk_usage().pack_bytes == 0);
    }
    SECTION("an idle mount") {
        const std::string id = opened->create_mount("i1:1", "/mnt", true);
        opened->remove_image("i1:1", true);
        CHECK(opened->gc(true, {}).freed_bytes == 0);
        const store::GcRequest request{.is_dry_run = true, .idle_mounts = {id}};
        const std::uint64_t before = test::bytes_on_disk(opened->root());
        const std::uint64_t promised = opened->gc(request, {}).freed_bytes;
        CHECK(store::exists(folder / "s/mounts/" + id));
        CHECK(opened->gc({.is_dry_run = false, .idle_mounts = {id}}, {}).freed_bytes == promised);
        CHECK(before - test::bytes_on_disk(opened->root()) == promised);
        CHECK(!store::exists(folder / "s/mounts/" + id));
        CHECK(test::problems_of(*opened) == "");
    }
}

TEST_CASE("gc after gc after imports leaves exactly what the images need", "[store][gc]") {
    const test::TempDir folder;
    auto opened = Store::open(folder / "s");
    for (unsigned round = 0; round < 4; ++round) {
        const std::string last = "r" + std::to_string(round);
        import(*opened, folder.path(), last, some_files(round, 12, 1 + round % 3));
        if (round > 0) opened->remove_image("r" + std::to_string(round - 1) + ":1", false);
        check_exact(*opened);
        CHECK(test::has_files(*opened, last + ":1", some_files(round, 12, 1 + round % 3)));
    }
    // A store that never held anything else takes as much: what gc writes anew is as good as new.
    const auto fresh = Store::open(folder / "fresh");
    test::import_from(*fresh, "oci:" + (folder / "r3"));
    fresh->gc(false, {});
    CHECK(store::list_folder(folder / "s/layers") == store::list_folder(folder / "fresh/layers"));
    CHECK(opened->disk_usage().pack_bytes < fresh->disk_usage().pack_bytes * 21 / 20);
}

TEST_CASE("a chunk index that lies makes gc make it anew, not take what is needed", "[store][gc][bad]") {
    const test::TempDir folder;
    auto opened = Store::open(folder / "s");
    import(*opened, folder.path(), "first", some_files(1, 8, 0));
    import(*opened, folder.path(), "second", some_files(2, 8, 0));
    const std::string packs = folder / "s/packs";
    std::vector<store::NewChunk> all;
    for (const std::uint32_t pack : {1u, 2u}) {
        for (store::NewChunk chunk : store::read_pack_table(packs, pack)) {
            chunk.place.pack = 3 - pack;
            all.push_back(chunk);
        }
    }
    store::ChunkIndex(packs).replace({1, 2}, all);  // With right checksums.
    opened->remove_image("second:1", false);
    CHECK(opened->gc(false, {}).packs_removed == 1);
    CHECK(test::has_files(*opened, "first:1", some_files(1, 8, 0)));
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("a damaged segment of the chunk index is made anew by gc", "[store][gc][bad]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    import(*opened, folder.path(), "first", some_files(1, 8, 0));
    import(*opened, folder.path(), "second", some_files(2, 8, 0));
    for (const std::string& name : store::list_folder(folder / "s/packs")) {
        if (!name.starts_with("chunks-")) continue;
        const std::string path = folder / "s/packs/" + name;
        auto bytes = store::read_file(path, 1 << 20);
        bytes[bytes.size() - 20] ^= std::byte{1};
        store::write_file_atomically(path, bytes);
    }
    opened->remove_image("second:1", false);
    CHECK(opened->gc(false, {}).packs_removed == 1);
    CHECK(test::has_files(*opened, "first:1", some_files(1, 8, 0)));
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("a damaged pack keeps what is needed of it, and other packs keep their copies", "[store][gc][bad]") {
    const test::TempDir folder;
    auto opened = Store::open(folder / "s");
    import(*opened, folder.path(), "first", some_files(1, 8, 2));
    import(*opened, folder.path(), "second", some_files(2, 8, 2));
    const std::string path = folder / "s/packs/pack-0000000001.lpk";
    const auto sound = store::read_file(path, 16 << 20);
    test::write_text(path, std::string(sound.size(), 'x'));
    opened->remove_image("second:1", false);
    CHECK(opened->gc(false, {}).packs_removed == 1);
    store::write_file_atomically(path, sound);
    opened.reset();
    opened = Store::open(folder / "s");
    CHECK(test::has_files(*opened, "first:1", some_files(1, 8, 2)));
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("on a disk without a free byte images are removed one by one, and gc frees packs that are partly needed",
          "[store][gc][full]") {
    const test::TempDir folder;
    const test::SmallDisk disk(folder, 24);
    if (!disk.is_mounted()) {
        WARN("skipped: needs root and a loop device");
        return;
    }
    auto opened = Store::open(disk.path() + "/s");
    CHECK(store::exists(disk.path() + "/s/reserve"));
    constexpr unsigned kImages = 40;
    for (unsigned i = 0; i < kImages; ++i) import(*opened, folder.path(), "i" + std::to_string(i), some_files(i, 6, 3));
    disk.fill();
    CHECK_THAT(test::error_of([&] { import(*opened, folder.path(), "more", some_files(99, 6, 0)); }),
               ContainsSubstring("no_space: "));
    // The first one has what all others need too.
    for (unsigned i = 0; i < kImages; i += 2) opened->remove_image("i" + std::to_string(i) + ":1", false);
    SECTION("at once") {}
    SECTION("after the daemon was started anew") {
        opened.reset();
        opened = Store::open(disk.path() + "/s");
    }
    const std::uint64_t before = test::bytes_on_disk(disk.path() + "/s/packs");
    const store::GcReport report = opened->gc(false, {});
    CHECK(report.packs_removed == kImages / 2 - 1);
    CHECK(report.packs_rewritten == 1);
    CHECK(report.packs_waiting == 0);
    CHECK(before - test::bytes_on_disk(disk.path() + "/s/packs") > 500'000);
    CHECK(test::problems_of(*opened) == "");
    for (unsigned i = 1; i < kImages; i += 2) {
        CHECK(test::has_files(*opened, "i" + std::to_string(i) + ":1", some_files(i, 6, 3)));
    }
    import(*opened, folder.path(), "more", some_files(99, 6, 0));
    CHECK(test::has_files(*opened, "more:1", some_files(99, 6, 0)));
}

TEST_CASE("a full disk on which somebody takes every byte that is freed harms nothing", "[store][gc][full]") {
    const test::TempDir folder;
    const test::SmallDisk disk(folder, 24);
    if (!disk.is_mounted()) {
        WARN("skipped: needs root and a loop device");
        return;
    }
    auto opened = Store::open(disk.path() + "/s");
    for (unsigned i = 0; i < 6; ++i) import(*opened, folder.path(), "i" + std::to_string(i), some_files(i, 20, 4));
    disk.fill();
    store::remove_file(disk.path() + "/s/reserve");
    disk.fill();
    for (unsigned i = 0; i < 5; ++i) {
        opened->remove_image("i" + std::to_string(i) + ":1", false);
        const std::string error = test::error_of([&] { opened->gc(false, {}); });
        CAPTURE(error);
        CHECK((error.empty() || error.starts_with("no_space: ")));
        disk.fill();
        CHECK(test::has_files(*opened, "i5:1", some_files(5, 20, 4)));
        if (i % 2 == 1) {
            opened.reset();
            opened = Store::open(disk.path() + "/s");
        }
    }
    disk.empty();
    opened->gc(false, {});
    CHECK(test::has_files(*opened, "i5:1", some_files(5, 20, 4)));
    CHECK(test::problems_of(*opened) == "");
    CHECK(opened->gc(true, {}).freed_bytes == 0);
}
