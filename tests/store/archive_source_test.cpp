#include "store/archive_source.h"

#include "store/blob_source.h"
#include "store/error.h"
#include "store/file.h"
#include "store/source_files.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/temp_dir.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <atomic>
#include <cstdio>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using test::replaced;

namespace {

const auto kAmd64 = store::oci::Platform::parse("linux/amd64");

std::vector<store::SourceImage> images_of(const std::string& source) {
    return store::open_source(source, kAmd64)->images();
}
std::string source_error(const std::string& source) {
    const std::string error = test::error_of([&] { images_of(source); });
    CHECK(error.find('\n') == std::string::npos);
    return error;
}

test::TestImage small_image(const std::string& name) {
    return {.name = name, .layers = {{.tar = "bottom"}, {.tar = "top", .compression = store::Compression::zstd}}};
}

}  // namespace

TEST_CASE("a layout gives its images with their documents and layers as they lie there", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    layout.add_image(small_image("debian:12"));
    layout.finish();

    const auto source = store::open_source("oci:" + layout.folder(), kAmd64);
    const auto images = source->images();

    REQUIRE(images.size() == 1);
    CHECK(images[0].name == "debian:12");
    CHECK(store::Digest::of(images[0].manifest) == layout.manifest.digest);
    CHECK(store::Digest::of(images[0].config) == layout.config.digest);
    REQUIRE(images[0].layers.size() == 2);
    CHECK(images[0].layers[0].diff_id == layout.diff_ids[0]);
    CHECK(images[0].layers[0].compression == store::Compression::gzip);
    CHECK(images[0].layers[1].compression == store::Compression::zstd);
    CHECK(images[0].layers[1].blob->digest == layout.layers[1]);
    const std::string top = test::read_all(*source->open_layer(0, 1));
    CHECK(top == test::read_text(layout.blob_file(layout.layers[1])));
    CHECK(images[0].layers[1].blob->size_bytes == top.size());
    CHECK(images[0].total_blob_bytes == top.size() + test::read_all(*source->open_layer(0, 0)).size());
}

TEST_CASE("a tag with colons is found behind the longest folder that exists", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "a:b");
    layout.add_image(small_image("debian:bookworm-slim"));
    layout.add_image(small_image("redis"));
    layout.finish();
    const std::string source = "oci:" + layout.folder();

    CHECK(images_of(source).size() == 2);
    CHECK(images_of(source + ":debian:bookworm-slim").at(0).name == "debian:bookworm-slim");
    CHECK(images_of(source + ":redis").at(0).name == "redis");
    CHECK_THAT(source_error(source + ":debian"),
               ContainsSubstring("not_found: " + layout.folder() + "/index.json: no image named \"debian\""));
    CHECK_THAT(source_error(source + "x"), ContainsSubstring("not_found"));
}

TEST_CASE("an image index in the layout is followed to the platform's image", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    const auto nested = [&](const std::string& architecture) {
        auto image = small_image("");
        image.architecture = architecture;
        image.edit_descriptor = [&](std::string text) {
            return replaced(std::move(text), "}",
                            ",\"platform\":{\"os\":\"linux\",\"architecture\":\"" + architecture + "\"}}");
        };
        return layout.make_image(image);
    };
    const std::string arm = nested("arm64");
    const std::string amd = nested("amd64");
    const store::BlobDigest amd_manifest = layout.manifest;
    const std::string index = "{\"schemaVersion\":2,\"manifests\":[" + arm + "," + amd + "]}";
    layout.add_entry(test::descriptor_json("application/vnd.oci.image.index.v1+json", layout.add_blob(index),
                                           index.size(),
                                           ",\"annotations\":{\"org.opencontainers.image.ref.name\":\"v1\"}"));
    layout.finish();

    const auto images = images_of("oci:" + layout.folder() + ":v1");
    REQUIRE(images.size() == 1);
    CHECK(images[0].name == "v1");
    CHECK(store::Digest::of(images[0].manifest) == amd_manifest.digest);
    const auto s390x = store::oci::Platform::parse("linux/s390x");
    CHECK_THAT(test::error_of([&] { store::open_source("oci:" + layout.folder(), s390x)->images(); }),
               ContainsSubstring("no image for linux/s390x; there are: linux/arm64, linux/amd64"));
}

TEST_CASE("nameless documents beside images that are no images are passed over, named ones are not",
          "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    auto artifact = small_image("");
    artifact.edit_manifest = [](std::string text) {
        return replaced(std::move(text), "application/vnd.oci.image.config.v1+json",
                        "application/vnd.oci.empty.v1+json");
    };
    layout.add_image(small_image("a"));
    layout.add_image(artifact);
    layout.finish();
    CHECK(images_of("oci:" + layout.folder()).size() == 1);

    artifact.name = "b";
    layout.add_image(artifact);
    layout.finish();
    CHECK_THAT(source_error("oci:" + layout.folder()),
               ContainsSubstring("not an image: its config has media type \"application/vnd.oci.empty.v1+json\""));
}

TEST_CASE("two different images of one name are refused, the same twice is one", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    layout.add_image(small_image("a"));
    layout.add_image(small_image("a"));
    layout.finish();
    CHECK(images_of("oci:" + layout.folder()).size() == 1);

    layout.add_image({.name = "a", .layers = {{.tar = "other"}}});
    layout.finish();
    CHECK_THAT(source_error("oci:" + layout.folder()), ContainsSubstring("\"a\" names 2 images"));
}

TEST_CASE("each broken document of a layout is refused by its name", "[store][source]") {
    using Edit = test::TestImage::Edit;
    const auto replacing = [](std::string from, std::string to) -> Edit {
        return [=](std::string text) { return replaced(std::move(text), from, to); };
    };
    struct Case {
        std::string expected;
        Edit config, manifest, descriptor;
    };
    const Case cases[] = {
        {"unsupported: layer sha256:", {}, replacing("tar+gzip", "erofs"), {}},
        {"media type \"application/vnd.oci.image.layer.v1.erofs\" is none that can be unpacked",
         {},
         replacing("tar+gzip", "erofs"),
         {}},
        {"1 diff IDs, the manifest has 2 layers",
         [](std::string text) {
             const std::size_t comma = text.rfind(',');
             return text.substr(0, comma) + "]}}";
         },
         {},
         {}},
        {"not JSON", [](std::string) { return "{"; }, {}, {}},
        {"not JSON", {}, [](std::string) { return "{"; }, {}},
        {"its descriptor promises", {}, {}, replacing("\"size\":", "\"size\":1")},
        {"is neither a manifest's nor an image index's", {}, {}, replacing("image.manifest", "artifact.manifest")},
        {"its descriptor says", {}, {}, replacing("vnd.oci.image.manifest.v1", "vnd.docker.distribution.manifest.v2")},
        {"a manifest where an image index is expected",
         {},
         replacing("\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",", ""),
         replacing("image.manifest", "image.index")},
        {"the manifest promises",
         {},
         [](std::string text) {
             const std::size_t size = text.rfind("\"size\":");
             return text.insert(size + 7, "1");
         },
         {}},
        {"manifests[0].digest", {}, {}, replacing("sha256:", "sha256:../../../etc/passwd")},
    };
    for (const Case& broken : cases) {
        const test::TempDir folder;
        test::TestLayout layout(folder / "x");
        auto image = small_image("a");
        image.edit_config = broken.config;
        image.edit_manifest = broken.manifest;
        image.edit_descriptor = broken.descriptor;
        layout.add_image(image);
        layout.finish();
        CAPTURE(broken.expected);
        CHECK_THAT(source_error("oci:" + layout.folder()), ContainsSubstring(broken.expected));
    }
}

TEST_CASE("a blob whose bytes were exchanged is refused by its name", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    layout.add_image(small_image("a"));
    layout.finish();
    for (const store::BlobDigest& digest : {layout.manifest, layout.config}) {
        const std::string original = test::read_text(layout.blob_file(digest));
        test::write_text(layout.blob_file(digest), replaced(original, ":", " "));
        CHECK_THAT(source_error("oci:" + layout.folder()),
                   ContainsSubstring("corrupt: " + layout.blob_file(digest) + ": wrong digest"));
        test::write_text(layout.blob_file(digest), original + " ");
        CHECK_THAT(source_error("oci:" + layout.folder()), ContainsSubstring("corrupt: " + layout.blob_file(digest)));
        test::write_text(layout.blob_file(digest), original);
    }
    CHECK(source_error("oci:" + layout.folder()).empty());
}

TEST_CASE("no flipped bit of a document goes unseen or does harm", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    layout.add_image(small_image("a"));
    layout.finish();
    const std::string index = layout.folder() + "/index.json";
    const auto config = images_of("oci:" + layout.folder()).at(0).config;
    for (const std::string& path : {layout.blob_file(layout.manifest), layout.blob_file(layout.config), index}) {
        const std::string original = test::read_text(path);
        const store::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
        for (std::size_t at = 0; at < original.size(); ++at) {
            const char damaged = static_cast<char>(original[at] ^ (1 << at % 8));
            REQUIRE(::pwrite(fd.get(), &damaged, 1, static_cast<off_t>(at)) == 1);
            CAPTURE(path, at);
            const std::string error = test::error_of([&] {
                for (const auto& image : images_of("oci:" + layout.folder())) CHECK(image.config == config);
            });
            CHECK((path == index || error.starts_with("corrupt: " + path + ": wrong digest")));
            CHECK(error.find('\n') == std::string::npos);
            REQUIRE(::pwrite(fd.get(), &original[at], 1, static_cast<off_t>(at)) == 1);
        }
    }
}

TEST_CASE("a missing, short, linked or special blob is refused before anything is read", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    layout.add_image(small_image("a"));
    layout.finish();
    const std::string source = "oci:" + layout.folder();
    const std::string blob = layout.blob_file(layout.layers[1]);
    const std::string original = test::read_text(blob);

    test::write_text(blob, original.substr(1));
    CHECK_THAT(source_error(source), ContainsSubstring("corrupt: " + blob));
    store::remove_file(blob);
    CHECK_THAT(source_error(source), ContainsSubstring("not_found: " + blob + ": missing layer"));
    test::write_text(folder / "outside", original);
    REQUIRE(::symlink((folder / "outside").c_str(), blob.c_str()) == 0);
    CHECK_THAT(source_error(source), ContainsSubstring("malformed: " + blob + ": a symbolic link"));
    store::remove_file(blob);
    REQUIRE(::mkfifo(blob.c_str(), 0600) == 0);
    CHECK_THAT(source_error(source), ContainsSubstring("malformed: " + blob + ": not a regular file"));
    store::remove_file(blob);
    REQUIRE(::mkdir(blob.c_str(), 0700) == 0);
    CHECK_THAT(source_error(source), ContainsSubstring("malformed: " + blob + ": not a regular file"));
}

TEST_CASE("no folder on the way to a blob may be a link", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    layout.add_image(small_image("a"));
    layout.finish();
    store::rename_durably(layout.folder() + "/blobs", folder / "blobs");
    REQUIRE(::symlink("../blobs", (layout.folder() + "/blobs").c_str()) == 0);
    CHECK_THAT(source_error("oci:" + layout.folder()), ContainsSubstring("a symbolic link"));
}

TEST_CASE("a blob that is exchanged for a link at any moment is read or refused, never followed", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "x/blob", "good");
    test::write_text(folder / "secret", "evil");
    REQUIRE(::symlink("../secret", (folder / "link").c_str()) == 0);
    const std::string blob = folder / "x/blob";
    std::atomic<bool> is_over = false;
    std::thread exchanger([&] {
        while (!is_over) {
            ::renameat2(AT_FDCWD, blob.c_str(), AT_FDCWD, (folder / "link").c_str(), RENAME_EXCHANGE);
        }
    });
    const store::FolderFiles files(folder / "x");
    bool is_followed = false;
    for (int i = 0; i < 3000; ++i) {
        test::error_of([&] { is_followed |= test::text_of(files.read("blob", 100)) != "good"; });
    }
    is_over = true;
    exchanger.join();
    CHECK_FALSE(is_followed);
}

TEST_CASE("a folder that is no layout is refused by what is missing in it", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    layout.add_image(small_image("a"));
    layout.finish();
    const std::string source = "oci:" + layout.folder();

    store::remove_file(layout.folder() + "/index.json");
    CHECK_THAT(source_error(source), ContainsSubstring("/index.json: missing"));
    test::write_text(layout.folder() + "/index.json", "{\"schemaVersion\":2,\"manifests\":[]}");
    CHECK_THAT(source_error(source), ContainsSubstring("/index.json: no image in it"));
    test::write_text(layout.folder() + "/index.json", "[" + std::string(1 << 22, ' ') + "]");
    CHECK_THAT(source_error(source), ContainsSubstring("at most 4194304"));
    REQUIRE(::truncate((layout.folder() + "/index.json").c_str(), 1ll << 40) == 0);
    CHECK_THAT(source_error(source), ContainsSubstring("at most 4194304"));
    test::write_text(layout.folder() + "/oci-layout", "{\"imageLayoutVersion\":\"2.0.0\"}");
    CHECK_THAT(source_error(source),
               ContainsSubstring("unsupported: " + layout.folder() + "/oci-layout: imageLayoutVersion \"2.0.0\""));
    store::remove_file(layout.folder() + "/oci-layout");
    CHECK_THAT(source_error(source), ContainsSubstring("/oci-layout: missing, so this is no OCI image layout"));
}

TEST_CASE("documents that would fill the memory together are refused", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    auto image = small_image("");
    image.edit_config = [](std::string text) { return text + std::string(3 << 20, ' '); };
    const std::string entry = layout.make_image(image);
    for (int i = 0; i < 40; ++i) layout.add_entry(entry);
    layout.finish();
    CHECK_THAT(source_error("oci:" + layout.folder()), ContainsSubstring("all documents are larger than 67108864"));
}

TEST_CASE("an image index that leads only to image indexes is refused", "[store][source]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "x");
    std::string entry = layout.make_image(small_image(""));
    for (int depth = 0; depth < 6; ++depth) {
        const std::string index = "{\"schemaVersion\":2,\"manifests\":[" + entry + "]}";
        entry = test::descriptor_json("application/vnd.oci.image.index.v1+json", layout.add_blob(index), index.size());
    }
    layout.add_entry(entry);
    layout.finish();
    CHECK_THAT(source_error("oci:" + layout.folder()), ContainsSubstring("nested deeper than 4"));
}

TEST_CASE("text that is no source is refused with the reason", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "file", "x");
    CHECK_THAT(source_error(""), ContainsSubstring("begins with none of oci:"));
    CHECK_THAT(source_error("docker://x"), ContainsSubstring("begins with none of oci:"));
    CHECK_THAT(source_error("oci:"), ContainsSubstring("a path is missing after \"oci:\""));
    CHECK_THAT(source_error("oci:relative"), ContainsSubstring("the path is not absolute"));
    CHECK_THAT(source_error("oci:" + (folder / "none")),
               ContainsSubstring("not_found: " + (folder / "none") + ": no such folder"));
    CHECK_THAT(source_error("oci:" + (folder / "file")), ContainsSubstring("not a folder"));
    CHECK_THAT(source_error("oci-archive:" + folder.path()), ContainsSubstring("not a regular file"));
    CHECK_THAT(source_error("docker-archive:" + (folder / "none:a:b")), ContainsSubstring("no such file"));
    CHECK_THAT(source_error(std::string("oci:/a\0b", 8)), ContainsSubstring("not a path"));
    CHECK_THAT(source_error("oci:/" + std::string(10000, 'a')), ContainsSubstring("too long for a path"));
}
