#include "store/verify.h"

#include "store/chunk_store.h"
#include "store/error.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <filesystem>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::Store;

namespace {

const test::Files kBase{{"etc/os", "debian"}, {"usr/tool", test::some_text(60'000, 1)}};
const test::Files kTop{{"app", test::some_text(40'000, 2)}};

/// A closed store with "base:1", whose content is pack 1, and "work:1", which shares base's layer.
void make_store(const test::TempDir& folder) {
    const auto opened = Store::open(folder / "s");
    test::import_from(*opened, test::write_layout(folder / "base", {{"base:1", {kBase}}}));
    test::import_from(*opened, test::write_layout(folder / "work", {{"work:1", {kBase, kTop}}}));
}

std::string first_file(const std::string& folder, const std::string& suffix) {
    for (const std::string& name : store::list_folder(folder)) {
        if (name.ends_with(suffix)) return folder + "/" + name;
    }
    FAIL("no file " + suffix);
    return "";
}

}  // namespace

TEST_CASE("a sound store has no problems, and verify tells what it looked at", "[store][verify]") {
    const test::TempDir folder;
    make_store(folder);
    const auto opened = Store::open(folder / "s");
    std::uint64_t last = 0;
    std::uint64_t total = 0;
    const auto report = opened->verify(true,
                                       [&](const store::Progress& progress) {
                                           last = progress.done_bytes;
                                           total = progress.total_bytes;
                                       },
                                       {});
    CHECK(report.problems.empty());
    CHECK(report.chunks_checked == 3);
    CHECK(report.bytes_checked > 0);
    CHECK(last == total);
    CHECK(report.bytes_checked == total);
    CHECK(opened->verify(false, {}, {}).problems.empty());
    std::stop_source stopper;
    stopper.request_stop();
    CHECK_THAT(test::error_of([&] { opened->verify(true, {}, stopper.get_token()); }), ContainsSubstring("cancelled"));
}

TEST_CASE("a damaged chunk is told with the images and paths that it hits", "[store][verify]") {
    const test::TempDir folder;
    make_store(folder);
    const std::string pack = folder / "s/packs/pack-0000000001.lpk";
    std::string bytes = test::read_text(pack);
    bytes[bytes.size() / 3] = static_cast<char>(bytes[bytes.size() / 3] ^ 1);
    test::write_text(pack, bytes);
    const auto opened = Store::open(folder / "s");
    const std::string problems = test::problems_of(*opened);
    CHECK_THAT(problems, ContainsSubstring("pack 1"));
    CHECK_THAT(problems, ContainsSubstring("image base:1: \"/usr/tool\""));
    CHECK_THAT(problems, ContainsSubstring("image work:1: \"/usr/tool\""));
    CHECK(problems.find("/app") == std::string::npos);
    CHECK(test::file_of(*opened, "work:1", "app") == kTop.at("app"));
    CHECK_THAT(test::error_of([&] { test::file_of(*opened, "base:1", "usr/tool"); }), ContainsSubstring("corrupt"));
}

TEST_CASE("a file that is gone is a problem of its images, and the store still opens", "[store][verify]") {
    const test::TempDir folder;
    make_store(folder);
    std::string path;
    SECTION("a pack") {
        path = folder / "s/packs/pack-0000000001.lpk";
    }
    SECTION("a recipe") {
        path = first_file(folder / "s/layers", ".recipe");
    }
    SECTION("a tree") {
        path = first_file(folder / "s/trees", ".tree");
    }
    store::remove_file(path);
    const auto opened = Store::open(folder / "s");
    CHECK_THAT(test::problems_of(*opened), ContainsSubstring("image "));
    for (const std::string& problem : opened->verify(false, {}, {}).problems) {
        CHECK(problem.find('\n') == std::string::npos);
    }
}

TEST_CASE("a flipped byte of a pack, a recipe or a tree never goes unseen", "[store][verify][attack]") {
    const test::TempDir folder("/dev/shm");
    make_store(folder);
    for (const char* kind : {"packs", "layers", "trees"}) {
        for (const std::string& name : store::list_folder(folder / "s" + "/" + kind)) {
            if (name.starts_with("chunks")) continue;  // Derived: next test.
            const std::string path = folder / "s/" + kind + "/" + name;
            const std::string sound = test::read_text(path);
            for (std::size_t at = 0; at < sound.size(); at += 1 + sound.size() / 12) {
                CAPTURE(kind, at);
                std::string bytes = sound;
                bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
                test::write_text(path, bytes);
                CHECK(test::problems_of(*Store::open(folder / "s")) != "");
            }
            test::write_text(path, sound);
        }
    }
    CHECK(test::problems_of(*Store::open(folder / "s")) == "");
}

TEST_CASE("a chunk index that was damaged or cut is rebuilt or told, and never gives wrong bytes",
          "[store][verify][attack]") {
    const test::TempDir folder("/dev/shm");
    make_store(folder);
    const auto try_with = [&](const std::string& path, const std::string& bytes) {
        test::write_text(path, bytes);
        const std::string error = test::error_of([&] {
            const auto opened = Store::open(folder / "s");
            if (test::problems_of(*opened) != "") return;
            CHECK(test::has_files(*opened, "work:1", kBase));
            CHECK(store::check_chunk_index(folder / "s/packs").empty());
        });
        CAPTURE(path, bytes.size());
        CHECK(error == "");
    };
    std::filesystem::copy(folder / "s", folder / "sound", std::filesystem::copy_options::recursive);
    for (const std::string& name : store::list_folder(folder / "sound/packs")) {
        if (!name.starts_with("chunks")) continue;
        const std::string sound = test::read_text(folder / "sound/packs/" + name);
        for (std::size_t at = 0; at < sound.size(); at += 1 + sound.size() / 10) {
            std::filesystem::remove_all(folder / "s");
            std::filesystem::copy(folder / "sound", folder / "s", std::filesystem::copy_options::recursive);
            std::string bytes = sound;
            bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
            try_with(folder / "s/packs/" + name, bytes);
            try_with(folder / "s/packs/" + name, sound.substr(0, at));
        }
    }
}
