#include "store/chunker.h"

#include "store/digest.h"
#include "support/catch.h"
#include "support/random_bytes.h"

#include <algorithm>
#include <set>
#include <span>
#include <vector>

using namespace lamina;

namespace {

using Bytes = std::vector<std::byte>;

/// The chunk sizes of a file, asked for as the importer does: at most 256 KiB in view.
std::vector<std::size_t> sizes_of(std::span<const std::byte> file) {
    std::vector<std::size_t> sizes;
    while (!file.empty()) {
        sizes.push_back(store::next_boundary(file.first(std::min<std::size_t>(file.size(), store::kMaxChunkBytes))));
        file = file.subspan(sizes.back());
    }
    return sizes;
}

std::set<store::Digest> chunks_of(std::span<const std::byte> file) {
    std::set<store::Digest> chunks;
    for (const std::size_t size : sizes_of(file)) {
        chunks.insert(store::Digest::of(file.first(size)));
        file = file.subspan(size);
    }
    return chunks;
}

std::size_t missing(const std::set<store::Digest>& from, const std::set<store::Digest>& in) {
    return static_cast<std::size_t>(
        std::count_if(from.begin(), from.end(), [&](const auto& digest) { return !in.contains(digest); }));
}

}  // namespace

TEST_CASE("a file of at most 64 KiB is one chunk", "[store][chunker]") {
    for (const std::size_t size : {std::size_t{1}, std::size_t{16 * 1024}, std::size_t{store::kSmallFileBytes}}) {
        CHECK(sizes_of(test::random_bytes(size, 1)) == std::vector<std::size_t>{size});
    }
    CHECK(store::next_boundary({}) == 0);
}

TEST_CASE("every chunk but a file's last has at least 16 KiB, none more than 256 KiB", "[store][chunker]") {
    for (const std::uint64_t seed : {2, 3, 4}) {
        const auto sizes = sizes_of(test::random_bytes(8 * 1024 * 1024 + 17, seed));
        CHECK(*std::max_element(sizes.begin(), sizes.end()) <= store::kMaxChunkBytes);
        CHECK(*std::min_element(sizes.begin(), sizes.end() - 1) >= store::kMinChunkBytes);
        // Random data is cut near the average that the name promises.
        const std::size_t average = (8 * 1024 * 1024 + 17) / sizes.size();
        CHECK(average > 48 * 1024);
        CHECK(average < 96 * 1024);
    }
}

TEST_CASE("data without any boundary is cut at 256 KiB", "[store][chunker]") {
    const Bytes zeros(3 * store::kMaxChunkBytes + 70 * 1024);
    CHECK(sizes_of(zeros) ==
          std::vector<std::size_t>{store::kMaxChunkBytes, store::kMaxChunkBytes, store::kMaxChunkBytes, 70 * 1024});
}

TEST_CASE("the boundary does not depend on how much of the file follows the 256 KiB in view", "[store][chunker]") {
    const Bytes file = test::random_bytes(2 * 1024 * 1024, 5);
    std::span<const std::byte> rest(file);
    while (!rest.empty()) {
        const std::size_t size = store::next_boundary(rest);
        REQUIRE(size == store::next_boundary(rest.first(std::min<std::size_t>(rest.size(), store::kMaxChunkBytes))));
        rest = rest.subspan(size);
    }
}

TEST_CASE("a byte inserted, changed or removed anywhere changes few chunks", "[store][chunker]") {
    const Bytes file = test::random_bytes(6 * 1024 * 1024, 6);
    const auto before = chunks_of(file);
    for (const std::size_t at : {std::size_t{0}, std::size_t{100'000}, std::size_t{3'000'000}, file.size() - 1}) {
        CAPTURE(at);
        Bytes inserted = file;
        inserted.insert(inserted.begin() + static_cast<std::ptrdiff_t>(at), std::byte{42});
        CHECK(missing(chunks_of(inserted), before) <= 4);
        Bytes changed = file;
        changed[at] ^= std::byte{1};
        CHECK(missing(chunks_of(changed), before) <= 4);
        Bytes removed = file;
        removed.erase(removed.begin() + static_cast<std::ptrdiff_t>(at));
        CHECK(missing(chunks_of(removed), before) <= 4);
    }
}

TEST_CASE("the boundaries are those of the format", "[store][chunker]") {
    // Golden: a change here is a change of the format, and old packs stop sharing chunks with new ones.
    const std::vector<std::size_t> sizes = sizes_of(test::random_bytes(1024 * 1024, 7));
    CHECK(sizes == std::vector<std::size_t>{65998, 99815, 75744, 100527, 77291, 84903, 67747, 75496, 62555, 71264,
                                            82842, 65752, 67734, 50908});
}

TEST_CASE("a definition written from FORMAT.md cuts alike", "[store][chunker]") {
    std::vector<std::uint64_t> gear;
    std::uint64_t state = 0x4C616D696E610001;
    for (int i = 0; i < 256; ++i) {
        state += 0x9E3779B97F4A7C15;
        std::uint64_t mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9;
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB;
        gear.push_back(mixed ^ (mixed >> 31));
    }
    const auto cut = [&](std::span<const std::byte> data) -> std::size_t {
        if (data.size() <= 65536) return data.size();
        for (std::size_t length = 16385; length < std::min<std::size_t>(data.size(), 262144); ++length) {
            std::uint64_t hash = 0;
            for (std::size_t i = length - 64; i < length; ++i) {
                hash = (hash << 1) + gear[std::to_integer<unsigned>(data[i])];
            }
            if (hash >> (length <= 65536 ? 46 : 50) == 0) return length;
        }
        return std::min<std::size_t>(data.size(), 262144);
    };
    const Bytes file = test::text_bytes(700'000, 8);
    const Bytes noise = test::random_bytes(500'000, 9);
    for (std::span<const std::byte> rest : {std::span(file), std::span(noise)}) {
        while (!rest.empty()) {
            const std::size_t size = store::next_boundary(rest);
            REQUIRE(size == cut(rest));
            rest = rest.subspan(size);
        }
    }
}
