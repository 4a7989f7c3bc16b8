#include "store/docker_archive_source.h"

#include "store/error.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/tar_builder.h"
#include "support/temp_dir.h"

#include <string>
#include <vector>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;

namespace {

const auto kAmd64 = store::oci::Platform::parse("linux/amd64");

std::string hex_of(const std::string& text) {
    return store::Digest::of(store::as_bytes(text)).hex();
}

std::string config_of(const std::vector<std::string>& tars) {
    std::string ids;
    for (const std::string& tar : tars) ids += (ids.empty() ? "\"sha256:" : ",\"sha256:") + hex_of(tar) + "\"";
    return R"({"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[)" + ids + "]}}";
}

std::string entry_of(const std::string& config, const std::string& tags, const std::string& layers) {
    return R"({"Config":")" + config + R"(","RepoTags":)" + tags + R"(,"Layers":[)" + layers + "]}";
}

/// One image of two layers in the form that `docker save` had until version 25.
std::string older_archive(const std::string& tags) {
    const std::string config = config_of({"one", "two"});
    const std::string config_name = hex_of(config) + ".json";
    return test::TarBuilder()
        .folder("aa")
        .file("aa/VERSION", "1.0")
        .file("aa/layer.tar", "one")
        .symlink("bb/layer.tar", "../cc.tar")
        .file("cc.tar", "two")
        .file(config_name, config)
        .file("manifest.json", "[" + entry_of(config_name, tags, R"("aa/layer.tar","bb/layer.tar")") + "]")
        .file("repositories", "{}")
        .tar();
}

std::string docker_error(const std::string& source) {
    const std::string error = test::error_of([&] { store::open_source(source, kAmd64)->images(); });
    CHECK(error.find('\n') == std::string::npos);
    return error;
}

}  // namespace

TEST_CASE("a docker archive of the older form gives its layers, linked ones too", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "x.tar", older_archive(R"(["debian:12","debian:latest"])"));
    const auto source = store::open_source("docker-archive:" + (folder / "x.tar"), kAmd64);
    const auto images = source->images();

    REQUIRE(images.size() == 2);
    CHECK(images[0].name == "debian:12");
    CHECK(images[1].name == "debian:latest");
    CHECK(test::text_of(images[0].config) == config_of({"one", "two"}));
    REQUIRE(images[0].layers.size() == 2);
    CHECK(images[0].layers[1].compression == store::Compression::none);
    CHECK(images[0].layers[1].diff_id->digest.hex() == hex_of("two"));
    CHECK(images[0].layers[1].blob->size_bytes == 3);
    CHECK(images[0].total_blob_bytes == 6);
    CHECK(test::read_all(*source->open_layer(0, 0)) == "one");
    CHECK(test::read_all(*source->open_layer(1, 1)) == "two");
}

TEST_CASE("the manifest that a docker archive lacks is made, the same each time", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "x.tar", older_archive(R"(["a:1"])"));
    test::write_text(folder / "y.tar", older_archive(R"(["b:1"])"));
    const auto x = store::open_source("docker-archive:" + (folder / "x.tar"), kAmd64)->images().at(0);
    const auto y = store::open_source("docker-archive:" + (folder / "y.tar"), kAmd64)->images().at(0);
    CHECK(x.manifest == y.manifest);
    const auto manifest = store::oci::parse_manifest(x.manifest, x.manifest_media_type);
    CHECK(manifest.config.digest.digest == store::Digest::of(x.config));
    REQUIRE(manifest.layers.size() == 2);
    CHECK(manifest.layers[0].digest.digest.hex() == hex_of("one"));
    CHECK(manifest.layers[0].media_type == "application/vnd.oci.image.layer.v1.tar");
}

TEST_CASE("a docker archive of the newer form names its files by digest, and is held to it", "[store][source]") {
    const test::TempDir folder;
    const std::string config = config_of({"one"});
    const std::string layer = test::gzipped("one");
    const auto archive = [&](const std::string& config_body, const std::string& layer_body) {
        const std::string config_name = "blobs/sha256/" + hex_of(config);
        const std::string layer_name = "blobs/sha256/" + hex_of(layer);
        test::write_text(
            folder / "x.tar",
            test::TarBuilder()
                .file(config_name, config_body)
                .file(layer_name, layer_body)
                .file("oci-layout", R"({"imageLayoutVersion":"1.0.0"})")
                .file("manifest.json", "[" + entry_of(config_name, R"(["a:1"])", "\"" + layer_name + "\"") + "]")
                .tar());
    };
    archive(config, layer);
    const auto image = store::open_source("docker-archive:" + (folder / "x.tar"), kAmd64)->images().at(0);
    CHECK(image.layers[0].compression == store::Compression::gzip);
    CHECK(image.layers[0].blob->digest.digest.hex() == hex_of(layer));

    archive(config + " ", layer);
    CHECK_THAT(
        docker_error("docker-archive:" + (folder / "x.tar")),
        ContainsSubstring("corrupt: " + (folder / "x.tar") + ": blobs/sha256/" + hex_of(config) + ": wrong digest"));
    archive(config, test::gzipped("two"));  // Found when it is read.
    CHECK(store::open_source("docker-archive:" + (folder / "x.tar"), kAmd64)
              ->images()
              .at(0)
              .layers[0]
              .blob->digest.digest.hex() == hex_of(layer));
}

TEST_CASE("a compressed layer whose name is no digest is described by its bytes", "[store][source]") {
    const test::TempDir folder;
    const std::string layer = test::gzipped("one");
    test::write_text(folder / "x.tar",
                     test::TarBuilder()
                         .file("config.json", config_of({"one"}))
                         .file("layer.tar.gz", layer)
                         .file("manifest.json", "[" + entry_of("config.json", "null", R"("layer.tar.gz")") + "]")
                         .tar());
    const auto images = store::open_source("docker-archive:" + (folder / "x.tar"), kAmd64)->images();
    REQUIRE(images.size() == 1);
    CHECK(images[0].name.empty());
    CHECK(images[0].layers[0].compression == store::Compression::gzip);
    CHECK(images[0].layers[0].blob->digest.digest.hex() == hex_of(layer));
}

TEST_CASE("an image of a docker archive is found by its tag, however much of it is spelled out", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "x.tar", older_archive(R"(["docker.io/library/redis:7","example.com/x/y:z"])"));
    const std::string source = "docker-archive:" + (folder / "x.tar");
    for (const std::string tag : {"redis:7", "docker.io/library/redis:7", "example.com/x/y:z"}) {
        CAPTURE(tag);
        CHECK(store::open_source(source + ":" + tag, kAmd64)->images().size() == 1);
    }
    CHECK_THAT(docker_error(source + ":redis"), ContainsSubstring("not_found"));
    CHECK_THAT(docker_error(source + ":redis:8"), ContainsSubstring("no image named \"redis:8\""));
}

TEST_CASE("each broken part of a docker archive is named", "[store][source]") {
    const test::TempDir folder;
    const std::string config = config_of({"one"});
    const auto error_with = [&](const std::string& manifest, const std::string& config_body) {
        test::write_text(
            folder / "x.tar",
            test::TarBuilder().file("c", config_body).file("l", "one").file("manifest.json", manifest).tar());
        return docker_error("docker-archive:" + (folder / "x.tar"));
    };
    const std::string good = entry_of("c", R"(["a:1"])", R"("l")");
    const std::string manifest_name = (folder / "x.tar") + ": manifest.json: ";
    CHECK(error_with("[" + good + "]", config).empty());
    CHECK_THAT(error_with("", config), ContainsSubstring("malformed: " + manifest_name + "not JSON"));
    CHECK_THAT(error_with("{}", config), ContainsSubstring(manifest_name + "not a JSON array"));
    CHECK_THAT(error_with("[]", config), ContainsSubstring(manifest_name + "no image in it"));
    CHECK_THAT(error_with("[1]", config), ContainsSubstring(manifest_name + "[0]: not a JSON object"));
    CHECK_THAT(error_with("[{}]", config), ContainsSubstring(manifest_name + "[0].Config: missing"));
    CHECK_THAT(error_with("[" + entry_of("../../etc/passwd", "[]", "") + "]", config),
               ContainsSubstring("../../etc/passwd: missing"));
    CHECK_THAT(error_with("[" + entry_of("c", "[]", R"("none")") + "]", config),
               ContainsSubstring("not_found: " + (folder / "x.tar") + ": none: missing"));
    CHECK_THAT(error_with("[" + entry_of("c", "[]", R"("a\nb")") + "]", config),
               ContainsSubstring("\"a\\x0ab\": missing"));
    CHECK_THAT(error_with("[" + entry_of("c", "[]", "") + "]", config),
               ContainsSubstring("0 layers, the config has 1 diff IDs"));
    CHECK_THAT(error_with("[" + entry_of("c", "[]", "7") + "]", config),
               ContainsSubstring("[0].Layers[0]: not a string"));
    CHECK_THAT(error_with("[" + entry_of("c", "[7]", R"("l")") + "]", config),
               ContainsSubstring("[0].RepoTags[0]: not a string"));
    CHECK_THAT(error_with("[" + good + "]", "{}"), ContainsSubstring((folder / "x.tar") + ": c: rootfs: missing"));
    CHECK_THAT(error_with("[" + good + "]", std::string(5 << 20, ' ')), ContainsSubstring("at most 4194304"));

    test::write_text(folder / "x.tar", test::TarBuilder().file("other", "x").tar());
    CHECK_THAT(docker_error("docker-archive:" + (folder / "x.tar")), ContainsSubstring("no manifest.json in it"));
}

TEST_CASE("a config or tag that is named very often does not fill the memory", "[store][source]") {
    const test::TempDir folder;
    const std::string config = config_of({"one"}) + std::string(3 << 20, ' ');
    std::string entries;
    for (int i = 0; i < 30; ++i) entries += (i == 0 ? "" : ",") + entry_of("c", "null", R"("l")");
    test::write_text(
        folder / "x.tar",
        test::TarBuilder().file("c", config).file("l", "one").file("manifest.json", "[" + entries + "]").tar());
    CHECK_THAT(docker_error("docker-archive:" + (folder / "x.tar")), ContainsSubstring("larger than 64 MiB"));

    std::string tags;
    for (int i = 0; i < 900; ++i) tags += (i == 0 ? "" : ",") + ("\"a:" + std::to_string(i) + "\"");
    test::write_text(folder / "x.tar", test::TarBuilder()
                                           .file("c", config)
                                           .file("l", "one")
                                           .file("manifest.json", "[" + entry_of("c", "[" + tags + "]", R"("l")") + "]")
                                           .tar());
    CHECK_THAT(docker_error("docker-archive:" + (folder / "x.tar")), ContainsSubstring("larger than 64 MiB"));
}

TEST_CASE("an archive of a layout without manifest.json is read as a layout", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    layout.add_image({.name = "a:1", .layers = {{.tar = "one"}}});
    layout.finish();
    test::write_text(folder / "x.tar", test::tar_of_folder(layout.folder()));
    CHECK(store::open_source("docker-archive:" + (folder / "x.tar"), kAmd64)->images().at(0).name == "a:1");
    CHECK(store::open_source("oci-archive:" + (folder / "x.tar:a:1"), kAmd64)->images().at(0).name == "a:1");
}
