#include "store/job_packs.h"

#include "store/error.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/open_core.h"
#include "support/random_bytes.h"
#include "support/test_store.h"

#include <algorithm>
#include <set>
#include <thread>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::JobPacks;
using test::Bytes;

namespace {

struct Core : test::OpenCore {
    store::LayerRow layer(const std::string& name) const {
        const std::string path = recipe(name);
        if (!store::exists(path)) store::File::create(path);
        return {.diff_id = {store::Digest::of(store::as_bytes(name))}, .tar_bytes = 1, .entry_count = 1};
    }
    std::string recipe(const std::string& name) const { return core.paths.staging() + "/" + name; }
    void commit(JobPacks& packs, const std::string& name) const { packs.commit_layer(layer(name), recipe(name)); }
};

Bytes chunk(std::uint64_t seed) {
    return test::random_bytes(1000 + seed % 5000, seed);
}

}  // namespace

TEST_CASE("what two unfinished layers of a job have in common is stored once, and is there with the first of them",
          "[store][import]") {
    Core store;
    auto lease = store.core.leases.take();
    JobPacks packs(store.core, lease, store.core.paths.staging(), {});
    const auto one = packs.lane();
    const auto other = packs.lane();
    one->add(chunk(1));
    one->add(chunk(2));
    other->add(chunk(2));
    other->add(chunk(3));
    CHECK(store.core.index->packs().empty());
    store.commit(packs, "other");
    CHECK(store.has(chunk(2)));
    CHECK(store.has(chunk(3)));
    one->add(chunk(3));
    one->add(chunk(4));
    store.commit(packs, "one");
    for (std::uint64_t seed = 1; seed <= 4; ++seed) CHECK(store.has(chunk(seed)));
    CHECK(store.stored_chunks() == 4);
    CHECK(store.core.index->packs().size() == 2);
    CHECK(store.core.index->layers().size() == 2);
}

TEST_CASE("a layer without new chunks makes no pack", "[store][import]") {
    Core store;
    auto lease = store.core.leases.take();
    JobPacks packs(store.core, lease, store.core.paths.staging(), {});
    packs.lane()->add(chunk(1));
    store.commit(packs, "one");
    packs.lane()->add(chunk(1));
    store.commit(packs, "other");
    CHECK(store.core.index->packs().size() == 1);
    CHECK(store.core.index->layers().size() == 2);
}

TEST_CASE("a layer larger than a pack may be fills several, which are there before it is", "[store][import]") {
    Core store;
    auto lease = store.core.leases.take();
    const JobPacks::Limits limits = GENERATE(JobPacks::Limits{.raw_bytes = 5'000}, JobPacks::Limits{.chunks = 5});
    JobPacks packs(store.core, lease, store.core.paths.staging(), limits);
    const auto lane = packs.lane();
    for (std::uint64_t seed = 0; seed < 40; ++seed) lane->add(chunk(seed));
    CHECK(store.core.index->packs().size() >= 4);
    CHECK(store.core.index->layers().empty());
    CHECK(store.has(chunk(0)));
    for (std::uint64_t seed = 0; seed < 40; ++seed) lane->add(chunk(seed));
    store.commit(packs, "layer");
    for (std::uint64_t seed = 0; seed < 40; ++seed) CHECK(store.has(chunk(seed)));
    CHECK(store.stored_chunks() == 40);
    CHECK(store.core.index->layers().size() == 1);
}

TEST_CASE("a commit that fails fails for every layer that may need its chunks, and leaves nothing",
          "[store][import][bad]") {
    Core store;
    {
        auto lease = store.core.leases.take();
        JobPacks packs(store.core, lease, store.core.paths.staging(), {});
        const auto one = packs.lane();
        const auto other = packs.lane();
        one->add(chunk(1));
        other->add(chunk(1));
        static_cast<void>(store.layer("one"));
        {
            const test::FaultAtStep fault(3, test::FaultAtStep::How::once);
            CHECK_THAT(test::error_of([&] { store.commit(packs, "one"); }), ContainsSubstring("no_space: "));
            CHECK(fault.has_failed());
        }
        CHECK_THAT(test::error_of([&] { store.commit(packs, "other"); }), ContainsSubstring("no_space: "));
    }
    CHECK(store.core.index->layers().empty());
    CHECK(store.core.index->packs().empty());
    CHECK(store::list_folder(store.core.paths.packs()).empty());
}

TEST_CASE("layers that are made at once store each chunk once and miss none", "[store][import][threads]") {
    constexpr std::uint64_t kChunks = 300;
    Core store;
    auto lease = store.core.leases.take();
    JobPacks packs(store.core, lease, store.core.paths.staging(), {.chunks = 100});
    {
        std::vector<std::jthread> threads;
        for (std::uint64_t i = 0; i < 4; ++i) {
            threads.emplace_back([&, i] {
                const auto lane = packs.lane();
                for (std::uint64_t at = 0; at < kChunks; ++at) lane->add(chunk((at + i * 40) % kChunks));
                store.commit(packs, "layer " + std::to_string(i));
            });
        }
    }
    for (std::uint64_t seed = 0; seed < kChunks; ++seed) REQUIRE(store.has(chunk(seed)));
    CHECK(store.stored_chunks() == kChunks);
    CHECK(store.core.index->layers().size() == 4);
}
