// A store that may have only so many bytes: what goes, what stays, and when that is not enough.
#include "store/error.h"
#include "store/store.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <thread>

using namespace lamina;
using Names = std::vector<std::string>;

namespace {

constexpr std::size_t kFileBytes = 300'000;

/// Images one:1, two:1, three:1 and four:1, used in that order, each with a layer of its own and one for all.
class LimitedStore {
public:
    LimitedStore() : store_(store::Store::open(folder_ / "s")) {
        unsigned seed = 100;
        for (const std::string name : {"one", "two", "three", "four"}) import(name, ++seed);
    }
    store::ImageSummary import(const std::string& name, unsigned seed) {
        const test::Files base{{"base", test::some_text(kFileBytes, 100)}};
        const test::Files own{{name, test::some_text(kFileBytes, seed)}};
        const std::string layout = folder_ / (name + "-" + std::to_string(++import_count_));
        return test::import_from(*store_, test::write_layout(layout, {{name + ":1", {base, own}}})).at(0);
    }
    Names names() {
        Names all;
        for (const store::ImageSummary& image : store_->images()) all.push_back(image.names.at(0));
        return all;
    }
    std::uint64_t bytes() const { return test::bytes_on_disk(folder_ / "s"); }
    /// With room for all but what so many images have for themselves.
    store::SizeLimitReport limit(double images, std::vector<store::BlobDigest> keep = {}) {
        std::uint64_t own_bytes = 0;
        for (const auto& image : store_->disk_usage().images) own_bytes = std::max(own_bytes, image.unique_bytes);
        const auto room = static_cast<std::uint64_t>(images * static_cast<double>(own_bytes));
        return store_->limit_size({.max_bytes = bytes() - room, .idle_mounts = {}, .keep = std::move(keep)}, {});
    }
    store::Store& operator*() const { return *store_; }
    store::Store* operator->() const { return store_.get(); }
    const test::TempDir& folder() const { return folder_; }

private:
    test::TempDir folder_;
    std::unique_ptr<store::Store> store_;
    std::atomic<unsigned> import_count_ = 0;
};

/// Has the store made as small as can be while a job of it writes here.
class LimitingSink : public store::ByteSink {
public:
    explicit LimitingSink(store::Store& store) : store_(store) {}
    void write(std::span<const std::byte> data) override {
        const auto report = store_.limit_size({.max_bytes = 1, .idle_mounts = {}, .keep = {}}, {});
        removed_.insert(removed_.end(), report.removed.begin(), report.removed.end());
        text_ += test::text_of(data);
    }
    const std::string& text() const { return text_; }
    const Names& removed() const { return removed_; }

private:
    store::Store& store_;
    std::string text_;
    Names removed_;
};

}  // namespace

TEST_CASE("below its limit a store stays as it is", "[store][limit]") {
    LimitedStore store;
    const std::uint64_t before = store.bytes();
    const auto report = store->limit_size({.max_bytes = before, .idle_mounts = {}, .keep = {}}, {});
    CHECK(report.is_met);
    CHECK(report.removed.empty());
    CHECK(report.store_bytes == before);
    CHECK(store.names() == Names{"one:1", "two:1", "three:1", "four:1"});
}

TEST_CASE("above it the image goes that was used longest ago, and no more than must", "[store][limit]") {
    LimitedStore store;
    store->record_use("one:1");
    const auto report = store.limit(0.5);
    CHECK(report.removed == Names{"two:1"});
    CHECK(report.is_met);
    CHECK(report.store_bytes == store.bytes());
    CHECK(store.names() == Names{"one:1", "three:1", "four:1"});
    CHECK(store.limit(1.5).removed == Names{"three:1", "four:1"});
    CHECK(store.names() == Names{"one:1"});
    CHECK(test::problems_of(*store) == "");
    CHECK(test::has_files(*store, "one:1", {{"one", test::some_text(kFileBytes, 101)}}));
}

TEST_CASE("what nothing needs goes before any image", "[store][limit]") {
    LimitedStore store;
    store->remove_image("four:1", false);
    const auto report = store.limit(0.5);
    CHECK(report.is_met);
    CHECK(report.removed.empty());
    CHECK(report.freed_bytes > 0);
    CHECK(store.names() == Names{"one:1", "two:1", "three:1"});
}

TEST_CASE("images that are pinned, mounted or kept by a mount stay, and it is told when that is too much",
          "[store][limit]") {
    LimitedStore store;
    store->set_pinned("one:1", true);
    const std::string mount = store->create_mount("two:1", "/mnt", false);
    store->record_use("four:1");
    const auto report = store->limit_size({.max_bytes = 1, .idle_mounts = {}, .keep = {}}, {});
    CHECK_FALSE(report.is_met);
    CHECK(report.removed == Names{"three:1"});
    CHECK(report.store_bytes == store.bytes());
    CHECK(store.names() == Names{"one:1", "two:1", "four:1"});
    CHECK(store->limit_size({.max_bytes = 1, .idle_mounts = {}, .keep = {}}, {}).removed.empty());
    store->set_pinned("one:1", false);
    store->discard_mount(mount);
    CHECK(store->limit_size({.max_bytes = 1, .idle_mounts = {}, .keep = {}}, {}).removed == Names{"one:1", "two:1"});
    CHECK(store.names() == Names{"four:1"});
    CHECK(test::problems_of(*store) == "");
}

TEST_CASE("a read-only mount that no longer runs does not keep its image", "[store][limit]") {
    LimitedStore store;
    const std::string mount = store->create_mount("one:1", "/mnt", true);
    store->record_use("four:1");
    const store::SizeLimitRequest request{.max_bytes = 1, .idle_mounts = {mount}, .keep = {}};
    CHECK(store->limit_size(request, {}).removed == Names{"two:1", "three:1", "one:1"});
}

TEST_CASE("what was just brought stays, and what came after it", "[store][limit]") {
    LimitedStore store;
    const auto again = store.import("one", 101);  // Known already.
    store->record_use("one:1");                   // As an import does after a while.
    auto report = store->limit_size({.max_bytes = 1, .idle_mounts = {}, .keep = {again.config}}, {});
    CHECK_FALSE(report.is_met);
    CHECK(store.names() == Names{"one:1"});
    const auto brought = store.import("five", 105);
    store.import("six", 106);  // By another client, meanwhile.
    report = store->limit_size({.max_bytes = 1, .idle_mounts = {}, .keep = {brought.config}}, {});
    CHECK(report.removed == Names{"one:1"});
    CHECK(store.names() == Names{"five:1", "six:1"});
    CHECK(test::problems_of(*store) == "");
}

TEST_CASE("an image that is known by no name can go too", "[store][limit]") {
    LimitedStore store;
    const auto nameless =
        test::import_from(
            *store, test::write_layout(store.folder() / "nameless", {{"", {{{"x", test::some_text(kFileBytes, 77)}}}}}))
            .at(0);
    store->record_use("four:1");
    const auto report = store->limit_size({.max_bytes = 1, .idle_mounts = {}, .keep = {}}, {});
    CHECK(report.removed.size() == 4);
    CHECK(report.removed.back() == nameless.config.digest.text());
    CHECK(store.names() == Names{"four:1"});
}

TEST_CASE("an image in the hands of a job stays, and the job ends well", "[store][limit]") {
    LimitedStore store;
    store->record_use("four:1");
    LimitingSink sink(*store);
    store->read_file("one:1", "one", sink);
    CHECK(sink.text() == test::some_text(kFileBytes, 101));
    CHECK(sink.removed() == Names{"two:1", "three:1"});
    CHECK(test::problems_of(*store) == "");
}

TEST_CASE("a limit that is stopped leaves a sound store", "[store][limit]") {
    LimitedStore store;
    std::stop_source stop;
    stop.request_stop();
    const auto limit = [&] { store->limit_size({.max_bytes = 1, .idle_mounts = {}, .keep = {}}, stop.get_token()); };
    CHECK_THAT(test::error_of(limit), Catch::Matchers::StartsWith("cancelled"));
    CHECK(test::problems_of(*store) == "");
}

TEST_CASE("a limit that is killed at any step leaves a sound store, and whole images", "[store][limit][crash]") {
    for (long step = 1;; ++step) {
        CAPTURE(step);
        const test::TempDir folder;
        const std::string root = folder / "s";
        const auto write_all = [&] {
            const auto store = store::Store::open(root);
            for (unsigned seed = 1; seed <= 3; ++seed) {
                const std::string name = std::to_string(seed);
                const test::Files files{{"f", test::some_text(20'000, seed)}};
                test::import_from(*store, test::write_layout(folder / name, {{"image" + name + ":1", {files}}}));
            }
        };
        write_all();
        const bool was_killed = test::killed_at_step(
            step, [&] { store::Store::open(root)->limit_size({.max_bytes = 1, .idle_mounts = {}, .keep = {}}, {}); });
        const auto store = store::Store::open(root);
        CHECK(test::problems_of(*store) == "");
        CHECK(test::has_files(*store, "image3:1", {{"f", test::some_text(20'000, 3)}}));
        CHECK(store->limit_size({.max_bytes = 1, .idle_mounts = {}, .keep = {}}, {}).removed.size() <= 2);
        CHECK(store->images().size() == 1);
        if (!was_killed) break;
        step += 2;  // Every third will do.
    }
}

TEST_CASE("imports and limits at once: each import's image is whole when it returns, and the store is sound",
          "[store][limit]") {
    LimitedStore store;
    const std::uint64_t max_bytes = store.bytes();
    const auto work = [&](unsigned first) {
        for (unsigned seed = first; seed < first + 4; ++seed) {
            const auto image = store.import("image" + std::to_string(seed), seed);
            const auto report =
                store->limit_size({.max_bytes = max_bytes, .idle_mounts = {}, .keep = {image.config}}, {});
            const std::string name = "image" + std::to_string(seed) + ":1";
            if (std::ranges::find(report.removed, name) != report.removed.end()) throw std::runtime_error(name);
        }
    };
    {
        const std::jthread other([&] { work(200); });
        work(300);
    }
    CHECK(test::problems_of(*store) == "");
    CHECK(store.names().size() <= 6);
}
