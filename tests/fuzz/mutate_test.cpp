#include "client/api.h"
#include "fuse/change.h"
#include "store/file.h"
#include "store/store.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/tar_builder.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <vector>

// The fuzz targets without a fuzzer: good inputs, and files of tests/fuzz/corpus, changed at random. Not led by
// coverage, as libFuzzer is (tests/fuzz/meson.build), but with every compiler. The nth input follows from the seed and
// n, so what fails can be had again. LAMINA_FUZZ_SECONDS: how long each target gets (2); LAMINA_FUZZ_SEED: other
// inputs.

extern "C" {
int lamina_api_fuzz(const std::uint8_t* data, std::size_t size);
int lamina_log_fuzz(const std::uint8_t* data, std::size_t size);
int lamina_oci_fuzz(const std::uint8_t* data, std::size_t size);
int lamina_pack_fuzz(const std::uint8_t* data, std::size_t size);
int lamina_recipe_fuzz(const std::uint8_t* data, std::size_t size);
int lamina_stream_fuzz(const std::uint8_t* data, std::size_t size);
int lamina_tar_fuzz(const std::uint8_t* data, std::size_t size);
int lamina_tree_fuzz(const std::uint8_t* data, std::size_t size);
}

using namespace lamina;

namespace {

using Seeds = std::vector<std::string>;
using Target = int (*)(const std::uint8_t* data, std::size_t size);

constexpr std::size_t kMostBytes = 64 << 10;

std::uint64_t number_from_environment(const char* name, std::uint64_t otherwise) {
    const char* const text = std::getenv(name);
    return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

/// Changes one input at random.
class Mutation {
public:
    explicit Mutation(std::uint64_t seed) : random_(seed) {}

    std::string input(const Seeds& seeds) {
        std::string bytes = seeds[below(seeds.size())];
        const std::size_t changes = below(8);  // None, too.
        for (std::size_t i = 0; i < changes; ++i) change(bytes, seeds);
        if (bytes.size() > kMostBytes) bytes.resize(kMostBytes);
        return bytes;
    }

private:
    std::size_t below(std::size_t end) { return end == 0 ? 0 : random_() % end; }

    void change(std::string& bytes, const Seeds& seeds) {
        const std::size_t at = below(bytes.size());
        const std::size_t length = std::min(bytes.size() - at, 1 + below(below(2) ? 8 : 700));
        switch (bytes.empty() ? 5 : below(9)) {
            case 0:
                bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
                break;
            case 1:
                bytes[at] = static_cast<char>(random_());
                break;
            case 2:
                put_number(bytes, at);
                break;
            case 3:
                bytes.erase(at, length);
                break;
            case 4:
                bytes.insert(below(bytes.size()), bytes.substr(at, length));
                break;
            case 5: {  // A piece of another.
                const std::string& other = seeds[below(seeds.size())];
                bytes.insert(at, other.substr(below(other.size()), 1 + below(600)));
                break;
            }
            case 6:
                bytes.resize(at);
                break;
            case 7:
                std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), length, static_cast<char>(below(2) * 255));
                break;
            default:  // A digit, where there is one.
                if (bytes[at] >= '0' && bytes[at] <= '9') bytes[at] = static_cast<char>('0' + below(10));
        }
    }

    void put_number(std::string& bytes, std::size_t at) {
        static constexpr std::array<std::uint64_t, 9> kNumbers{
            0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF};
        const std::uint64_t number = kNumbers[below(kNumbers.size())] + below(3) - 1;
        const std::size_t size = std::min(bytes.size() - at, std::size_t{1} << below(4));
        std::memcpy(bytes.data() + at, &number, size);
    }

    std::mt19937_64 random_;
};

void add_files(Seeds& seeds, const std::string& folder) {
    if (!std::filesystem::exists(folder)) return;
    std::vector<std::string> paths;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
    std::ranges::sort(paths);
    for (const std::string& path : paths) seeds.push_back(test::read_text(path));
}

void run(const std::string& name, Target target, Seeds seeds) {
    add_files(seeds, std::string(LAMINA_FUZZ_CORPUS) + "/" + name);
    const std::uint64_t seed = number_from_environment("LAMINA_FUZZ_SEED", 1);
    const auto end =
        std::chrono::steady_clock::now() + std::chrono::seconds(number_from_environment("LAMINA_FUZZ_SECONDS", 2));
    std::uint64_t count = 0;
    for (; count < 200 || std::chrono::steady_clock::now() < end; ++count) {
        const std::string input = Mutation(seed * 1'000'000'007 + count).input(seeds);
        CAPTURE(name, seed, count);  // What was going on, should it end here.
        REQUIRE(target(reinterpret_cast<const std::uint8_t*>(input.data()), input.size()) == 0);
    }
    std::printf("%s: %llu inputs from %zu good ones\n", name.c_str(), static_cast<unsigned long long>(count),
                seeds.size());
}

/// Each with each of the leading bytes that choose what it is.
Seeds with_modes(const Seeds& bodies, std::string_view modes) {
    Seeds seeds;
    for (const std::string& body : bodies) {
        for (const char mode : modes) seeds.push_back(mode + body);
    }
    return seeds;
}

Seeds good_tars() {
    test::TarBuilder all;
    all.folder("etc").file("etc/motd", "hello").symlink("link", "etc/motd").hardlink("hard", "etc/motd");
    all.device("null", '3', {1, 3}).fifo("pipe").file("big", test::some_text(9000, 1));
    test::TarBuilder extended;
    extended.file(std::string(300, 'p') + "/x", "long", {.xattrs = {{"user.a", "b"}, {"security.capability", "cap"}}});
    extended.sparse("holes", 1 << 20, {{4096, 3}, {65536, 2}}, "abcde")
        .file("etc/.wh.gone", "")
        .file("a/.wh..wh..opq", "");
    return {all.tar(), extended.tar(), test::layer_tar({{"one", "1"}, {"d/two", test::some_text(70'000, 2)}})};
}

std::string first_file(const std::string& folder, std::string_view suffix) {
    for (const std::string& name : store::list_folder(folder)) {
        if (name.ends_with(suffix)) return folder + "/" + name;
    }
    throw std::runtime_error("no file *" + std::string(suffix));
}

/// A store of one small image, for its files.
struct SmallStore {
    SmallStore() {
        const auto opened = store::Store::open(folder / "s");
        test::import_from(*opened, test::write_layout(folder / "l", {{"a:1", {{{"x", "1"}, {"y/z", "22"}}}}}));
    }
    std::string text(const std::string& part, std::string_view suffix) const {
        return test::read_text(first_file((folder / "s/") + part, suffix));
    }
    test::TempDir folder{"/dev/shm"};
};

}  // namespace

TEST_CASE("no bytes break the reader of layer tars", "[fuzz][tar]") {
    run("tar", lamina_tar_fuzz, with_modes(good_tars(), std::string_view("\0\1\2\3", 4)));
}

TEST_CASE("no bytes break the decompressors", "[fuzz][stream]") {
    Seeds seeds;
    for (const std::string& text : {std::string("hello"), test::some_text(20'000, 3), std::string(30'000, '\0')}) {
        seeds.push_back(std::string("\1\x25", 2) + test::gzipped(text));
        seeds.push_back(std::string("\1\x11", 2) + test::gzipped(text) + test::gzipped("more"));
        seeds.push_back(std::string("\0\x25", 2) + test::zstd_compressed(text));
        seeds.push_back(std::string("\0\x11", 2) + test::zstd_compressed(text) + test::zstd_compressed("more"));
    }
    run("stream", lamina_stream_fuzz, std::move(seeds));
}

TEST_CASE("no bytes break the readers of packs and the chunk index", "[fuzz][pack]") {
    const SmallStore small;
    const std::string pack = small.text("packs", ".lpk");
    Seeds seeds = with_modes({pack}, std::string_view("\2\3", 2));
    seeds.push_back(std::string(1, '\0') + pack.substr(24));
    seeds.push_back(std::string(1, '\1') + pack);
    seeds.push_back(std::string(1, '\4') + small.text("packs", ".idx"));
    for (const std::string& seed : with_modes({small.text("packs", "chunks.list")}, std::string_view("\5\6", 2))) {
        seeds.push_back(seed);
    }
    run("pack", lamina_pack_fuzz, std::move(seeds));
}

TEST_CASE("no bytes break the readers of trees and recipes", "[fuzz][tree]") {
    const SmallStore small;
    run("tree", lamina_tree_fuzz, {small.text("trees", ".tree")});
    run("recipe", lamina_recipe_fuzz, with_modes({small.text("layers", ".recipe")}, std::string_view("\0\1", 2)));
}

TEST_CASE("no bytes break the readers of OCI documents and docker archives", "[fuzz][oci]") {
    const test::TempDir folder;
    test::TestLayout layout(folder / "l");
    layout.add_image({.name = "a:1", .layers = {{.tar = test::layer_tar({{"x", "1"}})}}});
    layout.finish();
    const std::string manifest = test::read_text(layout.blob_file(layout.manifest));
    const std::string config = test::read_text(layout.blob_file(layout.config));
    const std::string index = test::read_text(folder / "l/index.json");
    const std::string docker =
        test::TarBuilder()
            .file("c.json", config)
            .file("l.tar", test::layer_tar({{"x", "1"}}))
            .file("manifest.json", R"([{"Config":"c.json","RepoTags":["a:1"],"Layers":["l.tar"]}])")
            .tar();
    const std::string parts =
        R"({"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",)"
        R"("digest":"@M","size":@m}]})" +
        std::string(1, '\0') + config + std::string(1, '\0') + manifest;
    run("oci", lamina_oci_fuzz,
        {std::string(1, '\0') + manifest, '\1' + index, '\2' + config, "\3docker.io/library/debian:12",
         "\3linux/arm64/v8", '\4' + parts, '\5' + docker});
}

TEST_CASE("no bytes break the API's messages", "[fuzz][api]") {
    run("api", lamina_api_fuzz,
        {std::string(1, '\0') + R"({"source":"oci:/x","name":"a:1","platform":"linux/amd64"})",
         '\1' + api::to_text(api::MountRequest{.image = "a:1", .mountpoint = "/mnt"}),
         '\2' + api::to_text(api::VerifyRequest{.data = true, .repair = true, .sources = {"oci:/a", "dir:/b"}}),
         '\3' + api::to_text(api::UpkeepRequest{.scrub = true, .bytes_per_second = 1000}),
         '\4' + api::to_text(api::Ping{}), '\5' + api::to_text(api::Usage{.images = {{}}}),
         '\6' + api::to_text(api::Mounts{.mounts = {{}}}), "\7a%20b/%c3%bc"});
}

TEST_CASE("no bytes break the reader of a mount's log", "[fuzz][log]") {
    Seeds seeds;
    const auto add = [&](const unionfs::change::Change& change) {
        std::vector<std::byte> bytes;
        unionfs::change::encode(change, bytes);
        const std::string text = test::text_of(bytes);
        seeds.push_back(std::string(1, '\0') + text);
        seeds.push_back(std::string(1, '\1') + static_cast<char>(text.size() - 1) + text);
    };
    add(unionfs::change::Make{.parent = 1, .name = "new", .mode = S_IFREG | 0644});
    add(unionfs::change::Write{.node = 2, .offset_bytes = 10, .size_bytes = 100});
    add(unionfs::change::Rename{.old_parent = 1, .old_name = "a", .new_parent = 1, .new_name = "b"});
    add(unionfs::change::SetXattr{.node = 2, .name = "user.a", .value = "b"});
    run("log", lamina_log_fuzz, std::move(seeds));
}
