// Reports over images that are here whole, and a fetch log that says how they came.
#include "store/explain.h"

#include "store/error.h"
#include "store/store.h"
#include "support/catch.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>

using namespace lamina;
using store::Explanation;
using store::FetchKind;

namespace {

constexpr std::size_t kFileBytes = 50'000;
constexpr std::int64_t kBegun = 1'000'000'000;
const std::string kA = test::some_text(kFileBytes, 1);
const std::string kB = test::some_text(kFileBytes, 2);
const std::string kC = test::some_text(kFileBytes, 3);
const std::string kMount = "0123456789abcdef";

store::ChunkId chunk_of(const std::string& file) {  // A small file is one chunk.
    return {store::Digest::of(store::as_bytes(file))};
}

/// app:1 has a layer of files a, b and c; other:1 has one of c and another file.
class Scene {
public:
    Scene() : store_(store::Store::open(folder_ / "store")), log_(folder_ / "store/fetches") {
        const std::string source =
            test::write_layout(folder_ / "layout", {{"app:1", {{{"dir/a", kA}, {"dir/b", kB}, {"dir/c", kC}}}},
                                                    {"other:1", {{{"c", kC}, {"d", test::some_text(9'000, 4)}}}}});
        test::import_from(*store_, source);
        layer_ = store_->inspect("app:1").summary.layers.at(0);
    }
    store::DiffId layer() const { return *layer_; }
    store::FetchLog& log() { return log_; }
    store::Store& store() { return *store_; }
    Explanation explain(const std::string& path = "") {
        return store_->explain({.image = "app:1", .mount_id = {}, .path = path, .read_chunks = reads}, {});
    }
    std::string failure(const std::string& image, const std::string& path) {
        try {
            store_->explain({.image = image, .mount_id = {}, .path = path, .read_chunks = {}}, {});
        } catch (const store::Error& error) {
            return std::string(store::errc_name(error.code())) + ": " + error.what();
        }
        return "";
    }
    void begin() { log_.add(store::MountBegun{kMount, store_->inspect("app:1").summary.config, kBegun}); }
    /// Brings the nth file: each has a header of 512 bytes before it, and is padded.
    void request(std::size_t file, FetchKind kind, std::int64_t sent_us, const std::string& error = "") {
        const std::uint64_t first = file * (512 + (kFileBytes + 511) / 512 * 512);
        log_.add(store::RangeRequest{.layer = layer(),
                                     .source = "host/app",
                                     .kind = kind,
                                     .blob_first = first,
                                     .blob_end = first + 600,
                                     .tar_first = first,
                                     .tar_end = first + 512 + kFileBytes,
                                     .sent_us = sent_us,
                                     .first_byte_us = sent_us + 100,
                                     .end_us = sent_us + 300,
                                     .bytes = error.empty() ? 600u : 0u,
                                     .failures = 0,
                                     .error = error});
    }
    void wait(const std::string& file, std::int64_t begin_us, std::int64_t took_us) {
        log_.add(store::ChunkWait{.mount = kMount,
                                  .layer = layer(),
                                  .chunk = chunk_of(file),
                                  .begin_us = begin_us,
                                  .end_us = begin_us + took_us,
                                  .request_us = begin_us,
                                  .kind = FetchKind::waited,
                                  .error = {}});
    }

    std::optional<std::unordered_set<std::string>> reads;

private:
    test::TempDir folder_;
    std::unique_ptr<store::Store> store_;
    store::FetchLog log_;
    std::optional<store::DiffId> layer_;
};

}  // namespace

TEST_CASE("bytes of a layer are told by how they came, and add up", "[store][explain]") {
    Scene scene;
    scene.request(0, FetchKind::waited, 10);
    scene.request(1, FetchKind::ahead, 20);
    scene.request(1, FetchKind::waited, 30, "no answer");
    const Explanation::Layer layer = scene.explain().layers.at(0);
    CHECK(layer.chunk_bytes == 3 * kFileBytes);
    CHECK(layer.waited_bytes == kFileBytes);
    CHECK(layer.prefetched_bytes == kFileBytes);
    CHECK(layer.local_bytes == kFileBytes);
    CHECK(layer.missing_bytes + layer.rest_bytes == 0);
    CHECK(layer.blob_bytes > 0);
    REQUIRE(layer.fetched.size() == 2);
    CHECK(layer.fetched[0].kind == FetchKind::waited);
    CHECK(layer.fetched[0].source == "host/app");
    CHECK(layer.fetched[0].requests == 2);
    CHECK(layer.fetched[0].failures == 1);
    CHECK(layer.fetched[0].bytes == 600);
    CHECK(layer.fetched[0].first_byte_us == 100);
    CHECK(layer.fetched[1].transfer_us == 200);
}

TEST_CASE("a layer names the images that have bytes of it, too", "[store][explain]") {
    Scene scene;
    const Explanation::Layer layer = scene.explain().layers.at(0);
    CHECK(layer.shared_bytes == kFileBytes);
    REQUIRE(layer.shares.size() == 1);
    CHECK(layer.shares[0].image == "other:1");
    CHECK(layer.shares[0].bytes == kFileBytes);
    scene.store().tag("app:1", store::ImageName::parse("same:1"));  // Another name is no other image.
    CHECK(scene.explain().layers.at(0).shares.size() == 1);
}

TEST_CASE("a start tells who waited for which file, and what came before anybody did", "[store][explain]") {
    Scene scene;
    scene.request(2, FetchKind::waited, 10);  // Long before.
    scene.begin();
    scene.request(0, FetchKind::waited, kBegun + 50);
    scene.request(1, FetchKind::trace, kBegun + 60);
    scene.wait(kA, kBegun + 40, 700);
    scene.wait(kA, kBegun + 45, 900);
    scene.reads = {chunk_of(kB).digest.hex().substr(0, 16)};
    const auto start = scene.explain().start;
    REQUIRE(start);
    CHECK(start->mount_id == kMount);
    CHECK(start->begun_us == kBegun);
    CHECK(start->wait_count == 2);
    CHECK(start->wait_us == 1'600);
    CHECK(start->last_wait_us == kBegun + 945);
    CHECK(start->end_us == kBegun + 945);
    CHECK(start->request_count == 2);
    CHECK(start->fetched_bytes == 1'200);
    CHECK(start->waited_bytes == kFileBytes);
    CHECK(start->prefetched_bytes == kFileBytes);
    CHECK(start->requests.size() == 2);
    CHECK(start->waits.size() == 2);
    REQUIRE(start->longest.size() == 2);
    CHECK(start->longest[0].event.begin_us == kBegun + 45);
    CHECK(start->longest[0].paths == std::vector<std::string>{"/dir/a"});
    CHECK(start->longest[0].size_bytes == kFileBytes);
    CHECK(start->are_reads_known);
    CHECK(start->read_bytes == kFileBytes);
    CHECK(start->unread_bytes == kFileBytes);
}

TEST_CASE("a start is over when nothing happened for a minute, and all waits count", "[store][explain]") {
    Scene scene;
    scene.begin();
    for (int i = 0; i < 12; ++i) scene.wait(kA, kBegun + i * 1'000, 100 + i);
    scene.request(0, FetchKind::rest, kBegun + 200'000'000);
    scene.wait(kB, kBegun + 61'000'000 * 2, 5'000);
    const auto start = scene.explain().start;
    REQUIRE(start);
    CHECK(start->end_us == kBegun + 11'000 + 111);
    CHECK(start->waits.size() == 12);
    CHECK(start->requests.empty());
    CHECK(start->wait_count == 13);
    CHECK(start->rest_bytes == 0);  // They waited for it before.
    REQUIRE(start->longest.size() == 10);
    CHECK(start->longest[0].paths == std::vector<std::string>{"/dir/b"});
}

TEST_CASE("of one file only its own chunks, requests and waits are told", "[store][explain]") {
    Scene scene;
    scene.begin();
    scene.request(0, FetchKind::waited, kBegun + 10);
    scene.request(1, FetchKind::ahead, kBegun + 20);
    scene.wait(kA, kBegun + 5, 10);
    const Explanation a = scene.explain("/dir/a");
    CHECK(a.size_bytes == kFileBytes);
    REQUIRE(a.layers.size() == 1);
    CHECK(a.layers[0].chunk_bytes == kFileBytes);
    CHECK(a.layers[0].waited_bytes == kFileBytes);
    CHECK(a.layers[0].fetched.size() == 1);
    CHECK(a.start->requests.size() == 1);
    CHECK(a.start->wait_count == 1);
    const Explanation c = scene.explain("dir/c");
    CHECK(c.layers.at(0).local_bytes == kFileBytes);
    CHECK(c.layers.at(0).shares.at(0).image == "other:1");
    CHECK(c.start->wait_count == 0);
}

TEST_CASE("what cannot be explained is refused, and says why", "[store][explain]") {
    Scene scene;
    using Catch::Matchers::ContainsSubstring;
    CHECK_THAT(scene.failure("none:1", ""), ContainsSubstring("not_found"));
    CHECK_THAT(scene.failure("app:1", "/dir/none"), ContainsSubstring("not_found"));
    CHECK_THAT(scene.failure("app:1", "/dir"), ContainsSubstring("is a directory"));
    CHECK(scene.explain().start == std::nullopt);
    CHECK_THAT(scene.explain().layers.at(0).why, ContainsSubstring("was here whole"));
    store::remove_tree(scene.store().root() + "/fetches");
    CHECK(scene.explain().layers.size() == 1);
}

TEST_CASE("hints follow from the numbers", "[store][explain]") {
    using Catch::Matchers::ContainsSubstring;
    const store::DiffId layer{store::Digest::of({})};
    Explanation explanation{
        .image = "app:1", .config = {store::Digest::of({})}, .path = {}, .layers = {}, .start = {}, .hints = {}};
    CHECK(store::hints_for(explanation, {}).empty());
    explanation.layers.push_back(
        {.diff_id = layer, .why = {}, .lacks_index = true, .missing_bytes = 5'000'000, .shares = {}, .fetched = {}});
    explanation.layers[0].fetched.push_back({.kind = FetchKind::waited,
                                             .source = "slow/app",
                                             .requests = 4,
                                             .failures = 3,
                                             .bytes = 2'000'000,
                                             .first_byte_us = 900'000,
                                             .transfer_us = 1'000'000});
    explanation.start.emplace();
    const auto hints = store::hints_for(explanation, {.traced = 3'000'000, .waited = 4'000'000});
    REQUIRE(hints.size() == 5);
    CHECK_THAT(hints[0], ContainsSubstring("lamina push --index app:1"));
    CHECK_THAT(hints[1], ContainsSubstring("5.0 MB are missing: lamina complete app:1"));
    CHECK_THAT(hints[2], ContainsSubstring("3.0 MB of the 4.0 MB that were waited for"));
    CHECK_THAT(hints[3], ContainsSubstring("slow/app failed 3 times"));
    CHECK_THAT(hints[4], ContainsSubstring("slow/app answers after 900 ms"));
    explanation.layers[0].fetched[0].first_byte_us = 10'000;
    explanation.layers[0].fetched[0].transfer_us = 20'000'000;
    CHECK_THAT(store::hints_for(explanation, {}).back(), ContainsSubstring("0.10 MB a second"));
}
