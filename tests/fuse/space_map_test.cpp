#include "fuse/space_map.h"

#include "support/catch.h"

#include <map>
#include <random>
#include <vector>

using lamina::unionfs::SpaceMap;
using Range = SpaceMap::Range;

namespace {
constexpr std::uint64_t kBlock = SpaceMap::kBlockBytes;
}

TEST_CASE("the first block is never handed out, and space starts at blocks", "[space_map]") {
    SpaceMap space;
    CHECK(space.allocate(1, 0) == kBlock);
    CHECK(space.allocate(kBlock + 1, 0) == 2 * kBlock);
    CHECK(space.allocate(1, 0) == 4 * kBlock);
    CHECK(space.used_bytes() == kBlock + 3);
}

TEST_CASE("a file that grows in small steps lies in one piece", "[space_map]") {
    SpaceMap space;
    std::uint64_t end = space.allocate(100, 0) + 100;
    for (int step = 0; step < 1000; ++step) {
        const std::uint64_t place = space.allocate(100, end);
        REQUIRE(place == end);
        end = place + 100;
    }
}

TEST_CASE("two files that grow by turns lie in few pieces", "[space_map]") {
    SpaceMap space;
    std::uint64_t ends[2] = {space.allocate(kBlock, 0) + kBlock, space.allocate(kBlock, 0) + kBlock};
    int pieces = 2;
    for (int step = 0; step < 4000; ++step) {
        std::uint64_t& end = ends[step % 2];
        const std::uint64_t place = space.allocate(kBlock, end);
        pieces += place != end ? 1 : 0;
        end = place + kBlock;
    }
    CHECK(pieces < 60);
}

TEST_CASE("space is free again only when it was given back", "[space_map]") {
    SpaceMap space;
    const std::uint64_t first = space.allocate(3 * kBlock, 0);
    const std::uint64_t second = space.allocate(kBlock, 0);
    const auto dead = space.release({first, 3 * kBlock});
    REQUIRE(dead == std::vector<Range>{{first, 3 * kBlock}});
    CHECK(space.allocate(kBlock, 0) > second);
    space.add_free(dead[0]);
    CHECK(space.allocate(2 * kBlock, 0) == first);
    CHECK(space.is_sound());
}

TEST_CASE("a block is given back when its last bytes are released", "[space_map]") {
    SpaceMap space;
    const std::uint64_t at = space.allocate(1000, 0);
    REQUIRE(space.allocate(1000, at + 1000) == at + 1000);
    CHECK(space.release({at, 1500}).empty());
    CHECK(space.release({at + 1500, 500}) == std::vector<Range>{{at, kBlock}});
}

TEST_CASE("what continues never lands in a block that was given back", "[space_map]") {
    SpaceMap space;
    const std::uint64_t at = space.allocate(100, 0);
    const auto dead = space.release({at, 100});
    REQUIRE(dead.size() == 1);
    CHECK(space.allocate(100, at + 100) != at + 100);
}

TEST_CASE("space at the end goes back to the file's end", "[space_map]") {
    SpaceMap space;
    const std::uint64_t first = space.allocate(kBlock, 0);
    const std::uint64_t second = space.allocate(10 * kBlock, 0);
    for (const Range range : space.release({second, 10 * kBlock})) space.add_free(range);
    CHECK(space.end_bytes() == first + kBlock);
    for (const Range range : space.release({first, kBlock})) space.add_free(range);
    CHECK(space.end_bytes() == kBlock);
    CHECK(space.used_bytes() == 0);
    CHECK(space.free_bytes() == 0);
}

TEST_CASE("releasing what is not in use is noticed and changes nothing", "[space_map][bad]") {
    SpaceMap space;
    const std::uint64_t at = space.allocate(kBlock, 0);
    const Range bad = GENERATE_COPY(Range{0, kBlock}, Range{at + kBlock, kBlock}, Range{at, ~std::uint64_t{0}},
                                    Range{~std::uint64_t{0} - 5, 10}, Range{at + 1, kBlock});
    (void)space.release(bad);
    CHECK_FALSE(space.is_sound());
}

TEST_CASE("a rebuilt map knows holes, overlaps and bounds", "[space_map]") {
    SpaceMap space;
    CHECK(space.mark_used({5 * kBlock, kBlock}));
    CHECK(space.mark_used({2 * kBlock + 10, 20}));
    CHECK_FALSE(space.mark_used({5 * kBlock + 100, 1}));
    CHECK_FALSE(space.mark_used({100, 1}));
    CHECK_FALSE(space.mark_used({kBlock, 0}));
    CHECK_FALSE(space.mark_used({~std::uint64_t{0} - 1, 2}));
    space.finish_marking();
    CHECK(space.free_bytes() == 3 * kBlock);
    CHECK(space.allocate(2 * kBlock, 0) == 3 * kBlock);
    CHECK(space.allocate(kBlock, 0) == kBlock);
    CHECK(space.allocate(kBlock, 0) == 6 * kBlock);
}

TEST_CASE("no two things ever share a byte, whatever is placed and released", "[space_map]") {
    const auto seed = GENERATE(range(1U, 9U));
    std::mt19937 random(seed);
    SpaceMap space;
    std::map<std::uint64_t, std::uint64_t> live;  // Start to end.
    std::vector<Range> waiting;
    const auto overlaps = [&](std::uint64_t start, std::uint64_t end) {
        auto after = live.lower_bound(start);
        if (after != live.end() && after->first < end) return true;
        return after != live.begin() && std::prev(after)->second > start;
    };
    for (int step = 0; step < 4000; ++step) {
        const unsigned what = random() % 10;
        if (what < 5 || live.empty()) {
            const std::uint64_t size = 1 + random() % (random() % 3 == 0 ? 40'000 : 3'000);
            std::uint64_t previous = 0;
            if (random() % 2 == 0 && !live.empty()) {
                previous = std::next(live.begin(), static_cast<long>(random() % live.size()))->second;
            }
            const std::uint64_t place = space.allocate(size, previous);
            if (overlaps(place, place + size) || place < kBlock) FAIL("step " << step << " shares bytes");
            for (const Range& range : waiting) {
                if (place < range.end() && range.offset_bytes < place + size) FAIL("step " << step << " too early");
            }
            live.emplace(place, place + size);
        } else if (what < 9) {
            const auto victim = std::next(live.begin(), static_cast<long>(random() % live.size()));
            const std::uint64_t cut = victim->first + random() % (victim->second - victim->first);
            const Range range{cut, victim->second - cut};  // Its tail, or all of it.
            for (const Range& dead : space.release(range)) waiting.push_back(dead);
            if (cut == victim->first)
                live.erase(victim);
            else
                victim->second = cut;
        } else {
            for (const Range& range : waiting) space.add_free(range);
            waiting.clear();
            if (random() % 4 == 0) space.drop_tails();
        }
    }
    CHECK(space.is_sound());
    std::uint64_t used = 0;
    for (const auto& [start, end] : live) used += end - start;
    CHECK(space.used_bytes() == used);
    for (const auto& [start, end] : live) {
        for (const Range& range : space.release({start, end - start})) waiting.push_back(range);
    }
    for (const Range& range : waiting) space.add_free(range);
    space.drop_tails();
    CHECK(space.end_bytes() == kBlock);
}
