#include "fuse/extents.h"

#include "support/catch.h"

#include <algorithm>
#include <random>
#include <set>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

struct ExtentsAt {
    std::unique_ptr<Arena> arena = *Arena::create();
    Arena::Transaction transaction{*arena};
    Ref<TreeRoot> root = arena->allocate<TreeRoot>();
    Extents extents{*arena, arena->get(root)};
    std::vector<FreedExtent> freed;
    Extents::Effect effect{.data_bytes = 0, .freed = &freed};

    void write(std::uint64_t offset, std::uint64_t size, std::uint64_t place) {
        extents.put({.offset_bytes = offset, .size_bytes = size, .extent_offset_bytes = place}, effect);
    }
    void hole(std::uint64_t offset, std::uint64_t size) {
        extents.put({.offset_bytes = offset, .size_bytes = size, .is_hole = true}, effect);
    }
    std::vector<Extent> all() {
        std::vector<Extent> found;
        extents.for_each([&](const Extent& extent) { found.push_back(extent); });
        return found;
    }
};

}  // namespace

TEST_CASE("appends that continue each other on disk are one extent", "[fuse][extents]") {
    ExtentsAt at;
    for (std::uint64_t part = 0; part < 100; ++part) at.write(part * 10, 10, 500 + part * 10);
    CHECK(at.all() == std::vector<Extent>{{0, 1000, 500, false}});
    at.write(1000, 10, 9000);
    CHECK(at.extents.count() == 2);
    CHECK(at.freed.empty());
}

TEST_CASE("a write into an extent leaves what is left and right of it", "[fuse][extents]") {
    ExtentsAt at;
    at.write(100, 100, 1000);
    at.write(150, 10, 5000);
    CHECK(at.all() == std::vector<Extent>{{100, 50, 1000, false}, {150, 10, 5000, false}, {160, 40, 1060, false}});
    REQUIRE(at.freed.size() == 1);
    CHECK((at.freed[0].extent_offset_bytes == 1050 && at.freed[0].size_bytes == 10));
    CHECK(at.effect.data_bytes == 100);
}

TEST_CASE("space that a write finds in use at the same place of the file is not freed", "[fuse][extents]") {
    ExtentsAt at;
    at.write(100, 100, 1000);
    at.write(120, 30, 1020);
    CHECK(at.freed.empty());
    CHECK(at.all() == std::vector<Extent>{{100, 100, 1000, false}});
    at.write(150, 100, 1050);
    CHECK(at.freed.empty());
    CHECK(at.all() == std::vector<Extent>{{100, 150, 1000, false}});
}

TEST_CASE("neighbouring holes are one, and holes free nothing", "[fuse][extents]") {
    ExtentsAt at;
    at.hole(0, 10);
    at.hole(10, 10);
    at.hole(5, 20);
    CHECK(at.all() == std::vector<Extent>{{0, 25, 0, true}});
    at.write(3, 4, 700);
    at.extents.remove(0, 1000, at.effect);
    CHECK(at.all().empty());
    CHECK(at.freed.size() == 1);
    CHECK(at.effect.data_bytes == 0);
}

TEST_CASE("an empty range removes nothing", "[fuse][extents]") {
    ExtentsAt at;
    at.write(0, 10, 50);
    at.extents.remove(5, 5, at.effect);
    CHECK(at.all() == std::vector<Extent>{{0, 10, 50, false}});
}

TEST_CASE("100,000 extents of one file are put, found and cut quickly", "[fuse][extents]") {
    ExtentsAt at;
    constexpr std::uint64_t kCount = 100'000;
    for (std::uint64_t part = 0; part < kCount; ++part) at.write((part * 7919 % kCount) * 10, 5, part * 100 + 1);
    CHECK(at.extents.count() == kCount);
    CHECK(at.extents.first_behind(123'456)->offset_bytes == 123'460);
    CHECK(at.extents.count_in(100, 200, 1000) == 10);
    at.extents.remove(100, 1'000'000, at.effect);
    CHECK(at.extents.count() == 10);
    CHECK(at.freed.size() == kCount - 10);
}

TEST_CASE("extents agree with a byte-by-byte model under random changes", "[fuse][extents]") {
    const auto seed = GENERATE(range(1U, 9U));
    CAPTURE(seed);
    std::mt19937 random(seed);
    constexpr std::uint64_t kBytes = 300;
    constexpr std::int64_t kNothing = -1;
    constexpr std::int64_t kHole = -2;
    std::vector<std::int64_t> model(kBytes, kNothing);
    ExtentsAt at;
    std::uint64_t next_place = 1;
    std::set<std::uint64_t> freed;
    for (int round = 0; round < 2000; ++round) {
        const std::uint64_t begin = random() % kBytes;
        const std::uint64_t size = 1 + random() % std::min<std::uint64_t>(kBytes - begin, 40);
        const unsigned kind = random() % 4;
        if (kind <= 1) {
            const bool continues = begin > 0 && model[begin - 1] == static_cast<std::int64_t>(next_place) - 1;
            const std::uint64_t place = continues && random() % 2 == 0 ? next_place : next_place + 5;
            at.write(begin, size, place);
            for (std::uint64_t byte = 0; byte < size; ++byte)
                model[begin + byte] = static_cast<std::int64_t>(place + byte);
            next_place = place + size;
        } else if (kind == 2) {
            at.hole(begin, size);
            std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(begin), size, kHole);
        } else {
            at.extents.remove(begin, begin + size, at.effect);
            std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(begin), size, kNothing);
        }
        std::vector<std::int64_t> shown(kBytes, kNothing);
        std::int64_t data_bytes = 0;
        const auto all = at.all();
        for (const Extent& extent : all) {
            for (std::uint64_t byte = 0; byte < extent.size_bytes; ++byte)
                shown[extent.offset_bytes + byte] =
                    extent.is_hole ? kHole : static_cast<std::int64_t>(extent.extent_offset_bytes + byte);
            if (!extent.is_hole) data_bytes += static_cast<std::int64_t>(extent.size_bytes);
        }
        REQUIRE(shown == model);
        REQUIRE(at.effect.data_bytes == data_bytes);
        for (const FreedExtent& one : at.freed)
            for (std::uint64_t byte = 0; byte < one.size_bytes; ++byte)
                REQUIRE(freed.insert(one.extent_offset_bytes + byte).second);
        at.freed.clear();
        for (const std::int64_t place : model)
            if (place >= 0) REQUIRE(!freed.contains(static_cast<std::uint64_t>(place)));
    }
}
