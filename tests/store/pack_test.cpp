#include "store/chunk_store.h"
#include "store/error.h"
#include "store/file.h"
#include "store/pack_format.h"
#include "store/pack_reader.h"
#include "store/pack_writer.h"
#include "support/catch.h"
#include "support/golden.h"
#include "support/pack_folders.h"
#include "support/random_bytes.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

using namespace lamina;
using test::Bytes;

namespace {

/// The chunks of the golden packs.
std::vector<Bytes> golden_chunks(bool is_text) {
    std::vector<Bytes> chunks;
    for (const std::size_t size : {5, 64, 1, 300}) {
        chunks.push_back(is_text ? test::text_bytes(size, size) : test::random_bytes(size, size));
    }
    return chunks;
}

}  // namespace

TEST_CASE("what a pack was given can be read back, whole and in part", "[store][pack]") {
    const test::PackFolders folders;
    const auto chunks = folders.open();
    store::PackWriter writer(folders.options(1), *chunks);
    std::vector<std::pair<store::ChunkId, Bytes>> added;
    for (const std::size_t size : {1, 100, 4096, 65536, 200000, 262144, 7, 262144, 50000}) {
        for (const bool is_text : {false, true}) {
            Bytes data = is_text ? test::text_bytes(size, added.size()) : test::random_bytes(size, added.size());
            const store::ChunkId id = writer.add(data);
            added.emplace_back(id, std::move(data));
        }
    }
    const auto pack = writer.finish();
    REQUIRE(pack);
    CHECK(pack->file_bytes == store::file_size(folders.path(1)));
    chunks->add_segment(*pack);
    for (const auto& [id, data] : added) {
        REQUIRE(test::read_chunk(*chunks, id, data.size()) == data);
        Bytes part(data.size() / 3 + 1);
        const std::size_t from = (data.size() - part.size()) / 2;
        chunks->read(id, static_cast<std::uint32_t>(from), part);
        REQUIRE(std::equal(part.begin(), part.end(), data.begin() + static_cast<std::ptrdiff_t>(from)));
    }
    CHECK(store::check_pack(folders.packs, 1, true, nullptr).empty());
    CHECK(store::list_folder(folders.staging).empty());
}

TEST_CASE("a chunk that comes twice is stored once", "[store][pack]") {
    const test::PackFolders folders;
    const Bytes a = test::random_bytes(1000, 1);
    const Bytes b = test::random_bytes(300'000 / 2, 2);
    std::vector<Bytes> twice;
    for (int i = 0; i < 5; ++i) twice.insert(twice.end(), {a, b});
    const auto pack = folders.write(1, twice);
    REQUIRE(pack);
    CHECK(pack->chunks.size() == 2);
    CHECK(pack->raw_bytes == a.size() + b.size());
    CHECK(pack->file_bytes < a.size() + b.size() + 300);
}

TEST_CASE("a chunk that the store has is not stored again, and a pack without new chunks is no file", "[store][pack]") {
    const test::PackFolders folders;
    const auto chunks = folders.open();
    chunks->add_segment(*folders.write(1, {test::random_bytes(1000, 1), test::random_bytes(1000, 2)}));
    CHECK_FALSE(folders.write(2, {test::random_bytes(1000, 2), test::random_bytes(1000, 1)}));
    CHECK_FALSE(folders.write(3, {}));
    const auto mixed = folders.write(4, {test::random_bytes(1000, 1), test::random_bytes(1000, 3)});
    REQUIRE(mixed);
    CHECK(mixed->chunks.size() == 1);
    CHECK_FALSE(store::exists(folders.path(2)));
    CHECK(store::list_folder(folders.staging).empty());
}

TEST_CASE("a small pack is small on disk, and data that does not compress costs its tables only", "[store][pack]") {
    const test::PackFolders folders;
    CHECK(folders.write(1, {test::random_bytes(10, 1)})->file_bytes == 24 + (24 + 36 + 10) + (8 + 36) + 40);
    const auto noise = folders.write(2, {test::random_bytes(262144, 1), test::random_bytes(262144, 2)});
    CHECK(noise->file_bytes == 24 + 2 * (24 + 36 + 262144) + 2 * (8 + 36) + 40);
    CHECK(folders.write(3, {Bytes(262144)})->file_bytes < 250);
}

TEST_CASE("neighbours share a frame of at most 256 KiB and 4096 chunks", "[store][pack]") {
    const test::PackFolders folders;
    std::vector<Bytes> tiny;
    for (std::uint64_t i = 0; i < 10'000; ++i) tiny.push_back(test::random_bytes(9, i));
    for (std::uint64_t i = 0; i < 10; ++i) tiny.push_back(test::random_bytes(100'000, i));
    const auto pack = folders.write(1, tiny);
    std::map<std::uint64_t, std::pair<std::uint64_t, std::uint64_t>> frames;  // Offset to chunks and bytes.
    for (const auto& chunk : pack->chunks) {
        auto& [count, bytes] = frames[chunk.place.frame_offset_bytes];
        CHECK(chunk.place.offset_in_frame_bytes == bytes);
        ++count;
        bytes += chunk.place.size_bytes;
    }
    std::vector<std::uint64_t> counts;
    for (const auto& [offset, frame] : frames) {
        counts.push_back(frame.first);
        CHECK(frame.second <= 262144);
    }
    CHECK(counts == std::vector<std::uint64_t>{4096, 4096, 1808 + 2, 2, 2, 2, 2});
    const auto chunks = folders.open();
    chunks->add_segment(*pack);
    for (const Bytes& chunk : tiny) REQUIRE(test::read_chunk(*chunks, test::id_of(chunk), chunk.size()) == chunk);
}

TEST_CASE("the table of a pack is what its writer told, in pack order", "[store][pack]") {
    const test::PackFolders folders;
    std::vector<Bytes> data;
    for (std::uint64_t i = 1; i < 40; ++i) data.push_back(test::text_bytes(i * i * 150, i));
    const auto pack = folders.write(7, data);
    const auto table = store::read_pack_table(folders.packs, 7);
    REQUIRE(table.size() == pack->chunks.size());
    for (std::size_t i = 0; i < table.size(); ++i) {
        CHECK(table[i].id == pack->chunks[i].id);
        CHECK(table[i].place.pack == 7);
        CHECK(table[i].place.frame_offset_bytes == pack->chunks[i].place.frame_offset_bytes);
        CHECK(table[i].place.frame_size_bytes == pack->chunks[i].place.frame_size_bytes);
        CHECK(table[i].place.offset_in_frame_bytes == pack->chunks[i].place.offset_in_frame_bytes);
        CHECK(table[i].place.size_bytes == pack->chunks[i].place.size_bytes);
    }
}

TEST_CASE("chunks of no bytes or more than 256 KiB are refused and change nothing", "[store][pack]") {
    const test::PackFolders folders;
    const auto known = folders.open();
    store::PackWriter writer(folders.options(1), *known);
    CHECK_THROWS_AS(writer.add({}), store::Error);
    CHECK_THROWS_AS(writer.add(Bytes(262145)), store::Error);
    writer.add(Bytes(262144));
    CHECK(writer.finish()->chunks.size() == 1);
    CHECK_THROWS_AS(writer.add(Bytes(1)), store::Error);
    CHECK_THROWS_AS(writer.finish(), store::Error);
}

TEST_CASE("reading past a chunk's end is refused, up to its end is not", "[store][pack]") {
    const test::PackFolders folders;
    const auto chunks = folders.open();
    const Bytes data = test::random_bytes(100, 1);
    chunks->add_segment(*folders.write(1, {data, test::random_bytes(100, 2)}));
    Bytes out(50);
    chunks->read(test::id_of(data), 50, out);
    chunks->read(test::id_of(data), 100, std::span(out).first(0));
    CHECK_THROWS_AS(chunks->read(test::id_of(data), 51, out), store::Error);
    CHECK_THROWS_AS(chunks->read(test::id_of(data), 0xFFFFFFFF, out), store::Error);
}

TEST_CASE("a pack is invisible until it is finished, and a dropped one leaves nothing", "[store][pack]") {
    const test::PackFolders folders;
    const auto known = folders.open();
    {
        store::PackWriter writer(folders.options(1), *known);
        for (std::uint64_t i = 0; i < 40; ++i) writer.add(test::random_bytes(200'000, i));
        CHECK(store::list_folder(folders.packs).empty());
        CHECK(store::list_folder(folders.staging).size() == 1);
    }
    CHECK(store::list_folder(folders.packs).empty());
    CHECK(store::list_folder(folders.staging).empty());
}

TEST_CASE("a pack never replaces one of the same number", "[store][pack]") {
    const test::PackFolders folders;
    const Bytes first = test::random_bytes(1000, 1);
    folders.write(1, {first});
    const auto before = store::read_file(folders.path(1), 1 << 20);
    CHECK_THROWS_AS(folders.write(1, {test::random_bytes(1000, 2)}), store::Error);
    CHECK(store::read_file(folders.path(1), 1 << 20) == before);
    CHECK(store::list_folder(folders.staging).empty());
}

TEST_CASE("a pack whose writing fails at any step is not there, nor anything else", "[store][pack]") {
    for (int step = 1;; ++step) {
        CAPTURE(step);
        REQUIRE(step < 100);
        const test::PackFolders folders;
        const auto known = folders.open();
        bool has_failed = false;
        {
            const test::FailAtStep fault(step);
            store::PackWriter writer(folders.options(1), *known);
            try {
                for (std::uint64_t i = 0; i < 9; ++i) writer.add(test::random_bytes(200'000, i));
                writer.finish();
            } catch (const store::Error& error) {
                CHECK(error.code() == store::Errc::no_space);
                CHECK_THROWS_AS(writer.add(Bytes(1)), store::Error);
                CHECK_THROWS_AS(writer.finish(), store::Error);
            }
            has_failed = fault.has_failed();
        }
        CHECK(store::list_folder(folders.staging).empty());
        CHECK(store::list_folder(folders.packs).size() == (has_failed ? 0 : 1));
        if (!has_failed) break;
    }
}

TEST_CASE("the pool writes the same pack whatever the number of its threads", "[store][pack]") {
    std::vector<Bytes> data;
    for (std::uint64_t i = 0; i < 120; ++i) data.push_back(test::text_bytes(1000 + i * 1500, i));
    std::set<Bytes> packs;
    for (const unsigned threads : {0U, 1U, 2U, 8U, 8U, 8U}) {
        const test::PackFolders folders;
        const auto known = folders.open();
        auto options = folders.options(1);
        options.thread_count = threads;
        store::PackWriter writer(options, *known);
        for (const Bytes& chunk : data) writer.add(chunk);
        writer.finish();
        packs.insert(store::read_file(folders.path(1), 1 << 26));
    }
    CHECK(packs.size() == 1);
}

TEST_CASE("a level that zstd does not know ends in an error, not in a hang", "[store][pack]") {
    const test::PackFolders folders;
    const auto known = folders.open();
    for (const int level : {19, 1'000'000}) {
        auto options = folders.options(static_cast<std::uint32_t>(level));
        options.compression_level = level;
        store::PackWriter writer(options, *known);
        writer.add(test::text_bytes(100'000, 1));
        CHECK(writer.finish());  // zstd takes any level as the nearest that it has.
    }
}

TEST_CASE("a pack of stored frames is written byte for byte as the format says", "[store][pack][golden]") {
    const test::PackFolders folders;
    folders.write(0x01020304, golden_chunks(false));
    test::check_golden("pack_stored.lpk", store::read_file(folders.path(0x01020304), 1 << 20));
}

TEST_CASE("packs of earlier versions can be read", "[store][pack][golden]") {
    for (const bool is_text : {false, true}) {
        CAPTURE(is_text);
        const test::PackFolders folders;
        // What zstd writes changes with its version, so this one is read and never written again.
        const std::string golden = test::golden_path(is_text ? "pack_zstd.lpk" : "pack_stored.lpk");
        test::replace_file(folders.path(0x01020304), store::read_file(golden, 1 << 20));
        CHECK(store::check_pack(folders.packs, 0x01020304, true, nullptr).empty());
        const auto chunks = folders.open();
        chunks->rebuild({0x01020304});
        for (const Bytes& chunk : golden_chunks(is_text)) {
            CHECK(test::try_read(*chunks, chunk) == test::ReadResult::right);
        }
    }
}

TEST_CASE("what is warm was read before and fits the cache", "[store][pack]") {
    const test::PackFolders folders;
    const auto chunks = store::ChunkStore::open(folders.packs, 600'000);
    std::vector<Bytes> data;
    for (std::uint64_t i = 0; i < 4; ++i) data.push_back(test::random_bytes(200'000, i));
    chunks->add_segment(*folders.write(1, data));
    const auto is_warm = [&](std::size_t i) { return chunks->is_warm(test::id_of(data[i])); };
    CHECK_FALSE(is_warm(0));
    test::try_read(*chunks, data[0]);
    CHECK(is_warm(0));
    CHECK_FALSE(is_warm(1));
    for (std::size_t i = 1; i < data.size(); ++i) test::try_read(*chunks, data[i]);
    CHECK_FALSE(is_warm(0));
    CHECK(is_warm(3));
    CHECK_FALSE(chunks->is_warm(test::id_of(Bytes(3))));
}

TEST_CASE("open pack files stay few", "[store][pack]") {
    const test::PackFolders folders;
    store::PackFiles files(folders.packs, 3);
    for (std::uint32_t number = 1; number <= 10; ++number) {
        const Bytes data = test::random_bytes(100, number);
        const auto pack = folders.write(number, {data});
        const auto frame = files.read_frame(pack->chunks.front().place);
        const auto bytes = frame->bytes_at(test::id_of(data), 0);
        CHECK(std::equal(bytes.begin(), bytes.end(), data.begin(), data.end()));
        CHECK(files.open_count() <= 3);
    }
}
