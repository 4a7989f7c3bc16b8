#include "store/image_writer.h"

#include "store/blob_source.h"
#include "store/error.h"
#include "store/file.h"
#include "store/file_ops.h"
#include "support/catch.h"
#include "support/fail_at.h"
#include "support/oci_archive.h"
#include "support/temp_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <map>
#include <string>
#include <vector>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;

namespace {

const auto kAmd64 = store::oci::Platform::parse("linux/amd64");

store::LayerToWrite layer_of(const std::string& tar) {
    return {.diff_id = {store::Digest::of(store::as_bytes(tar))},
            .tar_bytes = tar.size(),
            .write_tar = [tar](store::ByteSink& out) {
                for (std::size_t at = 0; at < tar.size(); at += 7) out.write(store::as_bytes(tar.substr(at, 7)));
            }};
}

store::ImageToWrite image_of(const std::string& name, const std::vector<std::string>& tars) {
    store::ImageToWrite image{.name = name, .manifest_media_type = "application/vnd.oci.image.manifest.v1+json"};
    std::string ids;
    for (const std::string& tar : tars) {
        image.layers.push_back(layer_of(tar));
        ids += (ids.empty() ? "\"" : ",\"") + image.layers.back().diff_id.digest.text() + "\"";
    }
    image.config = test::bytes_of(
        " {\"os\":\"linux\",\"architecture\":\"amd64\",\"rootfs\":{\"type\":\"layers\","
        "\"diff_ids\":[" +
        ids + "]}}\n");
    return image;
}

void save(const store::ImageToWrite& image, const std::string& target) {
    store::write_image(image, target, {}, {});
}
std::string save_error(const store::ImageToWrite& image, const std::string& target) {
    const std::string error = test::error_of([&] { save(image, target); });
    CHECK(error.find('\n') == std::string::npos);
    return error;
}

/// Every path below a folder with its content: what a failed save must leave as it was.
std::map<std::string, std::string> everything_below(const std::string& folder) {
    std::map<std::string, std::string> found;
    for (const std::string& name : store::list_folder(folder)) {
        const std::string path = folder + "/" + name;
        struct stat st {};
        REQUIRE(::lstat(path.c_str(), &st) == 0);
        if (S_ISDIR(st.st_mode)) {
            found[path] = "";
            found.merge(everything_below(path));
        } else {
            found[path] = test::read_text(path);
        }
    }
    return found;
}

}  // namespace

TEST_CASE("a saved image is read back with the same config and layers", "[store][save]") {
    const test::TempDir folder;
    const std::string target = GENERATE(as<std::string>{}, "oci:", "oci-archive:", "docker-archive:");
    const auto image = image_of("debian:12", {"first layer", std::string(1 << 20, 'x'), ""});
    save(image, target + (folder / "out"));

    const auto source = store::open_source(target + (folder / "out"), kAmd64);
    const auto images = source->images();
    REQUIRE(images.size() == 1);
    CHECK(images[0].name == "debian:12");
    CHECK(images[0].config == image.config);
    REQUIRE(images[0].layers.size() == 3);
    for (std::size_t i = 0; i < 3; ++i) {
        CHECK(images[0].layers[i].diff_id == image.layers[i].diff_id);
        const std::string blob = test::read_all(*source->open_layer(0, i));
        test::StringSink tar;
        image.layers[i].write_tar(tar);
        const bool is_plain = images[0].layers[i].compression == store::Compression::none;
        CHECK((blob == (is_plain ? tar.text : test::gzipped(tar.text))));
    }
}

TEST_CASE("the same image is saved as the same bytes", "[store][save]") {
    const test::TempDir folder;
    const auto image = image_of("a:1", {"one", "two", "one"});
    for (const std::string kind : {"oci-archive", "docker-archive"}) {
        save(image, kind + ":" + (folder / (kind + "1")));
        save(image, kind + ":" + (folder / (kind + "2")));
        CHECK((test::read_text(folder / (kind + "1")) == test::read_text(folder / (kind + "2"))));
    }
}

TEST_CASE("images are added to a layout, and one of the same tag is replaced", "[store][save]") {
    const test::TempDir folder;
    const std::string target = "oci:" + (folder / "out");
    save(image_of("a:1", {"one"}), target);
    save(image_of("b:1", {"two"}), target);
    save(image_of("ignored:1", {"three"}), target + ":a:1");

    const auto images = store::open_source(target, kAmd64)->images();
    REQUIRE(images.size() == 2);
    CHECK(images[0].name == "a:1");
    CHECK(images[0].config == image_of("", {"three"}).config);
    CHECK(images[1].name == "b:1");
}

TEST_CASE("adding to a layout keeps what others wrote into its index", "[store][save]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "out");
    layout.finish();
    const std::string other = test::descriptor_json("application/x", store::BlobDigest{store::Digest::of({})}, 5,
                                                    R"(,"data":"aGVsbG8=","annotations":{"k":"v"})");
    test::write_text(folder / "out/index.json",
                     R"({"annotations":{"x":"y"},"schemaVersion":2,"manifests":[)" + other + "]}");
    save(image_of("a:1", {"one"}), "oci:" + (folder / "out"));
    const std::string index = test::read_text(folder / "out/index.json");
    CHECK_THAT(index, ContainsSubstring(R"({"annotations":{"x":"y"},"schemaVersion":2,"manifests":[)" + other));
}

TEST_CASE("an image without a name is saved once, however often", "[store][save]") {
    const test::TempDir folder;
    save(image_of("", {"one"}), "oci:" + (folder / "out"));
    save(image_of("", {"one"}), "oci:" + (folder / "out"));
    save(image_of("", {"two"}), "oci:" + (folder / "out"));
    CHECK(store::open_source("oci:" + (folder / "out"), kAmd64)->images().size() == 2);
}

TEST_CASE("the original manifest is kept when the blobs are the original ones", "[store][save]") {
    const test::TempDir folder;
    auto image = image_of("a:1", {"one"});
    save(image, "oci:" + (folder / "first"));
    const auto first = store::open_source("oci:" + (folder / "first"), kAmd64)->images().at(0);
    image.manifest = test::bytes_of(" " + test::text_of(first.manifest));
    save(image, "oci:" + (folder / "second"));
    CHECK(store::open_source("oci:" + (folder / "second"), kAmd64)->images().at(0).manifest == image.manifest);
    CHECK_FALSE(first.manifest == image.manifest);
}

TEST_CASE("an image without layers can be saved", "[store][save]") {
    const test::TempDir folder;
    save(image_of("scratch:1", {}), "oci:" + (folder / "out"));
    CHECK(store::open_source("oci:" + (folder / "out"), kAmd64)->images().at(0).layers.empty());
}

TEST_CASE("a layer whose bytes are not what was promised is not saved, and nothing stays behind", "[store][save]") {
    const test::TempDir folder;
    const std::string kind = GENERATE(as<std::string>{}, "oci:", "oci-archive:", "docker-archive:");
    auto image = image_of("a:1", {"good", "another layer"});
    const auto expect = [&](const std::string& text) {
        CHECK_THAT(save_error(image, kind + (folder / "out")), ContainsSubstring(text));
        CHECK(everything_below(folder.path()).empty());
    };
    image.layers[1].write_tar = layer_of("another lay3r").write_tar;
    expect("corrupt: layer " + image.layers[1].diff_id.digest.text() + ": its bytes have the diff ID sha256:");
    image.layers[1].write_tar = layer_of("another laye").write_tar;
    expect("12 bytes instead of 13");
    image.layers[1].write_tar = layer_of("another layer!").write_tar;
    expect("more bytes than the 13");
    image.layers[1].write_tar = [](store::ByteSink&) { throw store::Error(store::Errc::corrupt, "pack 7: bad"); };
    expect("corrupt: pack 7: bad");
}

TEST_CASE("a save that fails at any step leaves a layout as it was", "[store][save][fault]") {
    const test::TempDir folder;
    save(image_of("old:1", {"one"}), "oci:" + (folder / "out"));
    const auto before = everything_below(folder.path());
    bool has_failed = true;
    int step = 1;
    for (; has_failed; ++step) {
        CAPTURE(step);
        {
            test::FailAt hook(step);
            const std::string error = save_error(image_of("new:1", {"one", "two"}), "oci:" + (folder / "out"));
            has_failed = hook.has_failed();
            CHECK(error.empty() != has_failed);
        }
        const auto after = everything_below(folder.path());
        const bool is_renamed = after.at(folder / "out/index.json") != before.at(folder / "out/index.json");
        if (is_renamed) {  // Only the last sync failed: the image is there, whole.
            CHECK(store::open_source("oci:" + (folder / "out:new:1"), kAmd64)->images().size() == 1);
            save(image_of("new:1", {"one", "two"}), "oci:" + (folder / "out"));
            break;
        }
        CHECK(after == before);
    }
    CHECK(step > 15);
}

TEST_CASE("a save into something new that fails at any step leaves nothing", "[store][save][fault]") {
    const test::TempDir folder;
    const std::string target = GENERATE(as<std::string>{}, "oci:", "oci-archive:", "docker-archive:");
    bool has_failed = true;
    int step = 1;
    for (; has_failed; ++step) {
        CAPTURE(target, step);
        {
            test::FailAt hook(step);
            save_error(image_of("new:1", {"one", "two"}), target + (folder / "out"));
            has_failed = hook.has_failed();
        }
        if (has_failed && !store::exists(folder / "out/index.json")) CHECK(everything_below(folder.path()).empty());
        if (has_failed && store::exists(folder / "out/index.json")) break;
    }
    CHECK(step > 5);
}

TEST_CASE("leftovers of a save that was killed go with the next one", "[store][save]") {
    const test::TempDir folder;
    test::write_text(folder / "out/.lamina-1-1.tmp", "half");
    store::make_folders(folder / "out/blobs");
    save(image_of("a:1", {"one"}), "oci:" + (folder / "out"));
    CHECK_FALSE(store::exists(folder / "out/.lamina-1-1.tmp"));
}

TEST_CASE("an archive is not written over", "[store][save]") {
    const test::TempDir folder;
    test::write_text(folder / "out", "precious");
    for (const std::string kind : {"oci-archive:", "docker-archive:"}) {
        CHECK_THAT(save_error(image_of("a:1", {"one"}), kind + (folder / "out")),
                   ContainsSubstring("already_exists: " + (folder / "out")));
    }
    CHECK(test::read_text(folder / "out") == "precious");
}

TEST_CASE("a folder that holds something else is not made a layout", "[store][save]") {
    const test::TempDir folder;
    test::write_text(folder / "out/file", "precious");
    const auto before = everything_below(folder.path());
    CHECK_THAT(save_error(image_of("a:1", {"one"}), "oci:" + (folder / "out")),
               ContainsSubstring("neither empty nor an OCI image layout"));
    CHECK(everything_below(folder.path()) == before);
}

TEST_CASE("a broken layout is not added to", "[store][save]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "out");
    layout.finish();
    test::write_text(folder / "out/index.json", "{");
    CHECK_THAT(save_error(image_of("a:1", {"one"}), "oci:" + (folder / "out")),
               ContainsSubstring("/index.json: not JSON"));
    test::write_text(folder / "out/oci-layout", "{}");
    CHECK_THAT(save_error(image_of("a:1", {"one"}), "oci:" + (folder / "out")),
               ContainsSubstring("/oci-layout: imageLayoutVersion: missing"));
}

TEST_CASE("blobs are not written through a link", "[store][save]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "out");
    layout.finish();
    store::rename_durably(folder / "out/blobs", folder / "outside");
    REQUIRE(::symlink("../outside", (folder / "out/blobs").c_str()) == 0);
    CHECK_THAT(save_error(image_of("a:1", {"one"}), "oci:" + (folder / "out")),
               ContainsSubstring("/blobs: not a folder"));
    CHECK(store::list_folder(folder / "outside/sha256").empty());
}

TEST_CASE("a layout that somebody writes into is busy", "[store][save]") {
    const test::TempDir folder;
    save(image_of("a:1", {"one"}), "oci:" + (folder / "out"));
    const store::UniqueFd other(::open((folder / "out").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    REQUIRE(::flock(other.get(), LOCK_EX) == 0);
    CHECK_THAT(save_error(image_of("b:1", {"two"}), "oci:" + (folder / "out")), ContainsSubstring("busy: "));
}

TEST_CASE("a save that is asked to stop leaves nothing", "[store][save]") {
    const test::TempDir folder;
    std::stop_source stop;
    auto image = image_of("a:1", {"one", "two"});
    image.layers[1].write_tar = [&](store::ByteSink& out) {
        stop.request_stop();
        layer_of("two").write_tar(out);
    };
    CHECK_THAT(test::error_of([&] { store::write_image(image, "oci:" + (folder / "out"), {}, stop.get_token()); }),
               ContainsSubstring("cancelled"));
    CHECK(everything_below(folder.path()).empty());
}

TEST_CASE("targets that are none are refused", "[store][save]") {
    const test::TempDir folder;
    const auto image = image_of("a:1", {"one"});
    CHECK_THAT(save_error(image, "dir:" + (folder / "out")), ContainsSubstring("images are not saved to dir:"));
    CHECK_THAT(save_error(image, "oci-archive:" + folder.path() + "/:a"), ContainsSubstring("a file name is missing"));
    CHECK_THAT(save_error(image, "docker-archive:" + (folder / "out:BAD")), ContainsSubstring("image name \"BAD\""));
    CHECK_THAT(save_error(image, "oci:" + (folder / "out:a b")), ContainsSubstring("tag \"a b\""));
    CHECK_THAT(save_error(image, "oci-archive:" + (folder / "none/out")), ContainsSubstring("not_found"));
    CHECK_THAT(save_error(image, "x"), ContainsSubstring("begins with none of"));
    CHECK(everything_below(folder.path()).empty());
}

TEST_CASE("progress counts the bytes of all layers", "[store][save]") {
    const test::TempDir folder;
    std::vector<store::Progress> seen;
    store::write_image(image_of("a:1", {std::string(9 << 20, 'a')}), "docker-archive:" + (folder / "out"),
                       [&](const store::Progress& progress) { seen.push_back(progress); }, {});
    REQUIRE(seen.size() >= 2);
    CHECK(seen.front().total_bytes == 9 << 20);
    CHECK(seen.back().done_bytes > seen.front().done_bytes);
}
