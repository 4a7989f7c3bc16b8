#include "store/importer.h"

#include "store/error.h"
#include "store/file.h"
#include "store/file_ops.h"
#include "store/image_config.h"
#include "store/json.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/tar_builder.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <barrier>
#include <thread>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::ImageName;
using store::Store;

namespace {

const test::Files kBase{{"etc/os", "debian"}, {"usr/bin/tool", test::some_text(150'000, 1)}};
const test::Files kTop{{"app/main", test::some_text(90'000, 2)}, {"etc/os", "changed"}};

std::vector<std::string> packs_of(const std::string& root) {
    return store::list_folder(root + "/packs");
}

bool is_empty(const std::string& root) {
    return store::list_folder(root + "/staging").empty() && store::list_folder(root + "/layers").empty() &&
           store::list_folder(root + "/trees").empty();
}

void flip_byte(const std::string& path, std::size_t at) {
    std::string bytes = test::read_text(path);
    bytes.at(at) = static_cast<char>(bytes[at] ^ 0x55);
    test::write_text(path, bytes);
}

store::CommitRequest commit_request(const store::ImageSummary& base, const std::string& name) {
    return {.base_config_digest = base.config.digest.text(),
            .base_layers = base.layers,
            .name = ImageName::parse(name),
            .created_by = "a \"test\"",
            .progress = {}};
}

}  // namespace

TEST_CASE("importing equal content again adds no pack, no chunk, and reads no layer", "[store][import]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    test::TestLayout layout(folder / "layout");
    layout.add_image({.name = "x:1", .layers = {{.tar = test::layer_tar(kBase)}, {.tar = test::layer_tar(kTop)}}});
    layout.finish();
    const auto first = test::import_from(*opened, "oci:" + layout.folder());
    const auto packs = packs_of(folder / "s");
    const auto index = [&] {
        return test::read_text(folder / "s/index.sqlite-wal") + test::read_text(folder / "s/index.sqlite");
    };
    const std::string index_before = index();
    // The blobs' bytes are now wrong, which nobody notices who does not read them.
    for (const auto& layer : layout.layers) flip_byte(layout.blob_file(layer), 20);
    const auto again = test::import_from(*opened, "oci:" + layout.folder());
    CHECK(again.at(0).config == first.at(0).config);
    CHECK((index() == index_before));
    CHECK(packs_of(folder / "s") == packs);
    CHECK(opened->images().size() == 1);

    // The same files in another layer: a recipe and a tree, no pack.
    test::TarBuilder tar;
    for (const auto& [path, body] : kBase) tar.file("else/" + path, body);
    test::TestLayout moved(folder / "moved");
    moved.add_image({.name = "y:1", .layers = {{.tar = tar.tar()}}});
    moved.finish();
    test::import_from(*opened, "oci:" + moved.folder());
    CHECK(packs_of(folder / "s") == packs);
    CHECK(test::file_of(*opened, "y:1", "else/etc/os") == "debian");
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("a layer that is not what was promised is refused by number, and leaves nothing", "[store][import][bad]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const std::string other = "sha256:" + std::string(64, 'e');
    test::TestLayout layout(folder / "layout");
    test::TestImage image{.name = "x:1", .layers = {{.tar = test::layer_tar(kBase)}}};
    std::string wrong;
    SECTION("wrong diff ID") {
        image.edit_config = [&](const std::string& config) {
            const auto at = config.find("sha256:");
            return config.substr(0, at) + other + config.substr(at + other.size());
        };
        wrong = "corrupt: layer 1 of x:1: diff ID is ";
    }
    SECTION("a flipped bit") {
        wrong = "layer 1 of x:1: ";
    }
    SECTION("a cut blob") {
        wrong = "x:1";
    }
    SECTION("no tar") {
        image.layers[0].tar = std::string(4096, 'x');
        wrong = "malformed: layer 1 of x:1: ";
    }
    const bool is_flipped = wrong == "layer 1 of x:1: ";
    const bool is_cut = wrong == "x:1";
    layout.add_image(image);
    layout.finish();
    if (is_flipped) flip_byte(layout.blob_file(layout.layers[0]), 1000);
    if (is_cut) {
        const std::string blob = test::read_text(layout.blob_file(layout.layers[0]));
        test::write_text(layout.blob_file(layout.layers[0]), blob.substr(0, blob.size() - 1));
    }
    const std::string error = test::error_of([&] { test::import_from(*opened, "oci:" + layout.folder()); });
    if (is_cut) {
        CHECK(error != "");
    } else {
        CHECK_THAT(error, ContainsSubstring(wrong));
    }
    CHECK(error.find('\n') == std::string::npos);
    CHECK(is_empty(folder / "s"));
    CHECK(opened->images().empty());
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("a layer that was finished before a failure is used again by the next try", "[store][import]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    test::TestLayout layout(folder / "layout");
    layout.add_image({.name = "x:1", .layers = {{.tar = test::layer_tar(kBase)}, {.tar = test::layer_tar(kTop)}}});
    layout.finish();
    flip_byte(layout.blob_file(layout.layers[1]), 1000);
    CHECK_THAT(test::error_of([&] { test::import_from(*opened, "oci:" + layout.folder()); }),
               ContainsSubstring("layer 2 of x:1"));
    CHECK(opened->images().empty());
    CHECK(store::list_folder(folder / "s/layers").size() == 1);
    flip_byte(layout.blob_file(layout.layers[1]), 1000);
    flip_byte(layout.blob_file(layout.layers[0]), 1000);
    test::import_from(*opened, "oci:" + layout.folder());
    CHECK(test::has_files(*opened, "x:1", kTop));
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("a layer whose chunks cannot be made findable is taken back", "[store][import]") {
    class FailOnChunkIndex : public store::FaultHook {
    public:
        FailOnChunkIndex() { store::g_fault_hook = this; }
        ~FailOnChunkIndex() override { store::g_fault_hook = nullptr; }
        void before(std::string_view step, std::string_view path) override {
            if (step != "write" || path.find("/packs/chunks") == std::string_view::npos) return;
            throw store::Error(store::Errc::no_space, std::string(path));
        }
    };
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const std::string source = test::write_layout(folder / "layout", {{"x:1", {kBase}}});
    {
        const FailOnChunkIndex fault;
        CHECK_THAT(test::error_of([&] { test::import_from(*opened, source); }), ContainsSubstring("no_space: "));
    }
    CHECK(is_empty(folder / "s"));
    CHECK(!store::exists(folder / "s/packs/pack-0000000001.lpk"));
    CHECK(test::problems_of(*opened) == "");
    test::import_from(*opened, source);
    CHECK(test::has_files(*opened, "x:1", kBase));
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("an import's name is the request's, or the source's, or none", "[store][import]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const std::string two = test::write_layout(folder / "two", {{"a:1", {kBase}}, {"b:1", {kTop}}});
    const std::string none = test::write_layout(folder / "none", {{"", {kBase, kTop}}});
    const auto import_as = [&](const std::string& source, const std::string& name) {
        return opened->import(
            {.source = source, .name = ImageName::parse(name), .platform = {"linux", "amd64", ""}, .progress = {}}, {});
    };
    CHECK_THAT(test::error_of([&] { import_as(two, "c:1"); }), ContainsSubstring("malformed: "));
    CHECK(import_as(two + ":a:1", "c:1").at(0).names == std::vector<std::string>{"c:1"});
    CHECK(test::import_from(*opened, two).size() == 2);
    CHECK(opened->inspect("a:1").summary.names == std::vector<std::string>{"a:1", "c:1"});
    const auto nameless = test::import_from(*opened, none).at(0);
    CHECK(nameless.names.empty());
    opened->gc(false, {});
    CHECK(opened->inspect(nameless.config.digest.text()).summary.names.empty());
    import_as(none, "a:1");
    CHECK(opened->inspect("a:1").summary.config == nameless.config);
    CHECK(opened->inspect("c:1").summary.config != nameless.config);
}

TEST_CASE("a folder is an image of one layer, the same one each time", "[store][import]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    test::write_text(folder / "tree/etc/name", "hello");
    test::write_text(folder / "tree/data", test::some_text(200'000, 3));
    const auto import_folder = [&](const char* name) {
        return opened
            ->import({.source = "dir:" + (folder / "tree"),
                      .name = ImageName::parse(name),
                      .platform = {"linux", "amd64", ""},
                      .progress = {}},
                     {})
            .at(0);
    };
    const auto first = import_folder("x");
    const auto packs = packs_of(folder / "s");
    const auto second = import_folder("y");
    CHECK(second.config == first.config);
    CHECK(second.names == std::vector<std::string>{"x:latest", "y:latest"});
    CHECK(packs_of(folder / "s") == packs);
    CHECK(test::file_of(*opened, "x", "etc/name") == "hello");
    CHECK(store::oci::parse_config(store::as_bytes(opened->inspect("x").config_json)).diff_ids == first.layers);
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("progress grows to the bytes of all blobs, and a stop ends the import with nothing left", "[store][import]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const test::Files big{{"big", test::some_text(6 << 20, 9)}};
    const std::string source = test::write_layout(folder / "layout", {{"x:1", {big, kTop}}});
    std::stop_source stopper;
    store::ImportRequest request{.source = source, .name = {}, .platform = {"linux", "amd64", ""}, .progress = {}};
    request.progress = [&](const store::Progress&) { stopper.request_stop(); };
    CHECK_THAT(test::error_of([&] { opened->import(request, stopper.get_token()); }), ContainsSubstring("cancelled: "));
    CHECK(is_empty(folder / "s"));

    std::uint64_t last = 0;
    std::uint64_t total = 0;
    bool is_growing = true;
    request.progress = [&](const store::Progress& progress) {
        is_growing = is_growing && progress.done_bytes >= last && progress.done_bytes <= progress.total_bytes;
        last = progress.done_bytes;
        total = progress.total_bytes;
    };
    opened->import(request, {});
    CHECK(is_growing);
    CHECK(last == total);
    CHECK(total > 0);
}

TEST_CASE("a commit is the base and one layer more, with a line of history", "[store][commit]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const auto base = test::import_from(*opened, test::write_layout(folder / "layout", {{"x:1", {kBase}}})).at(0);
    test::TarBuilder tar;
    tar.file("new", test::some_text(70'000, 5)).whiteout("etc/os");
    test::TextSource source(tar.tar());
    const auto made = opened->commit(commit_request(base, "y:1"), source, {});
    CHECK(made.layers.size() == 2);
    CHECK(made.names == std::vector<std::string>{"y:1"});
    CHECK(test::file_of(*opened, "y:1", "new") == test::some_text(70'000, 5));
    CHECK(test::file_of(*opened, "y:1", "usr/bin/tool") == kBase.at("usr/bin/tool"));
    CHECK_THAT(test::error_of([&] { test::file_of(*opened, "y:1", "etc/os"); }), ContainsSubstring("not_found"));
    CHECK(test::has_files(*opened, "x:1", kBase));

    const auto details = opened->inspect("y:1");
    const auto config = store::oci::parse_config(store::as_bytes(details.config_json));
    CHECK(config.diff_ids == made.layers);
    CHECK(config.platform.text() == "linux/amd64");
    CHECK_THAT(details.config_json, ContainsSubstring("a \\\"test\\\""));
    const auto manifest = store::oci::parse_manifest(store::as_bytes(details.manifest_json), store::kManifestMediaType);
    CHECK(manifest.config.digest == made.config);
    CHECK(manifest.layers.size() == 2);
    CHECK(test::problems_of(*opened) == "");

    store::CommitRequest wrong = commit_request(base, "z:1");
    wrong.base_layers = made.layers;
    test::TextSource unread(tar.tar());
    CHECK_THAT(test::error_of([&] { opened->commit(wrong, unread, {}); }), ContainsSubstring("not_found: "));
    wrong = commit_request(base, "z:1");
    wrong.base_config_digest = "sha256:zzz";
    CHECK_THAT(test::error_of([&] { opened->commit(wrong, unread, {}); }), ContainsSubstring("malformed: "));
    test::TextSource broken(std::string(2000, 'x'));
    CHECK_THAT(test::error_of([&] { opened->commit(commit_request(base, "z:1"), broken, {}); }),
               ContainsSubstring("malformed: "));
    CHECK(opened->images().size() == 2);
}

TEST_CASE("a committed config keeps what the base said and covers all layers with history", "[store][commit]") {
    const store::DiffId layer{store::Digest::of(store::as_bytes("l"))};
    const std::string diff_ids = R"("rootfs":{"type":"layers","diff_ids":[")" + layer.digest.text() + "\"]}";
    const auto extended = [&](const std::string& base) {
        return store::extended_config(store::as_bytes(base), {layer, "2024-01-01T00:00:00Z", "me"});
    };
    const std::string config = extended(R"({"os":"linux","config":{"Env":["A=B"],"X":{"Y":18446744073709551615}},)" +
                                        diff_ids + R"(,"history":[{"created_by":"a"},{"empty_layer":true}]})");
    const std::string kept = R"("config":{"Env":["A=B"],"X":{"Y":18446744073709551615}})";
    const std::string history = R"([{"created_by":"a"},{"empty_layer":true},)";
    const std::string line = R"({"created":"2024-01-01T00:00:00Z","created_by":"me"}])";
    const std::string filled = R"x([{"created_by":"(not known)"},)x" + line;
    CHECK_THAT(config, ContainsSubstring(kept));
    CHECK_THAT(config, ContainsSubstring(history + line));
    CHECK_THAT(extended("{" + diff_ids + "}"), ContainsSubstring(filled));
    const std::vector<std::string> bad_ones{
        "", "[]", "{}", R"({"rootfs":1})", R"({"rootfs":{"diff_ids":1}})", R"({"rootfs":{},"history":{}})"};
    for (const std::string& bad : bad_ones) {
        CAPTURE(bad);
        CHECK_THAT(test::error_of([&] { extended(bad); }), ContainsSubstring("malformed: "));
    }
}

TEST_CASE("imports of the same and of different images at once do each layer once and lose nothing",
          "[store][import][threads]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const test::Files own[] = {{{"a", test::some_text(100'000, 11)}}, {{"b", test::some_text(100'000, 12)}}};
    const std::string sources[] = {test::write_layout(folder / "one", {{"one:1", {kBase, own[0]}}}),
                                   test::write_layout(folder / "two", {{"two:1", {kBase, own[1]}}})};
    {
        std::barrier start(4);
        std::vector<std::jthread> threads;
        for (int i = 0; i < 4; ++i) {
            threads.emplace_back([&, i] {
                start.arrive_and_wait();
                test::import_from(*opened, sources[i % 2]);
            });
        }
    }
    CHECK(opened->images().size() == 2);
    CHECK(test::has_files(*opened, "one:1", kBase));
    CHECK(test::has_files(*opened, "one:1", own[0]));
    CHECK(test::has_files(*opened, "two:1", own[1]));
    CHECK(store::list_folder(folder / "s/layers").size() == 3);
    CHECK(opened->gc(false, {}).freed_bytes == 0);
    CHECK(test::problems_of(*opened) == "");
}
