#include "store/chunk_index.h"

#include "store/chunk_store.h"
#include "store/error.h"
#include "store/file.h"
#include "store/index_format.h"
#include "store/index_segment.h"
#include "support/catch.h"
#include "support/pack_folders.h"
#include "support/random_bytes.h"

#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

using namespace lamina;
using test::Bytes;
using test::ReadResult;

namespace {

store::ChunkId made_id(std::uint64_t seed) {
    return {store::Digest::of(test::random_bytes(8, seed))};
}

/// Chunks `from` to `to` - 1 in one pack; the place tells which chunk it is.
std::vector<store::NewChunk> made_chunks(std::uint32_t pack, std::uint64_t from, std::uint64_t to) {
    std::vector<store::NewChunk> chunks;
    for (std::uint64_t i = from; i < to; ++i) {
        chunks.push_back({made_id(i), {pack, 24 + i, 1000, 0, static_cast<std::uint32_t>(i % 262144) + 1}});
    }
    return chunks;
}

std::vector<std::uint32_t> packs_of(const store::ChunkIndex& index) {
    std::vector<std::uint32_t> packs;
    for (const auto& [pack, segment] : index.snapshot()->packs) packs.push_back(pack);
    return packs;
}

std::vector<std::string> segment_files(const std::string& folder) {
    std::vector<std::string> names;
    for (const std::string& name : store::list_folder(folder)) {
        if (name.starts_with("chunks-")) names.push_back(name);
    }
    return names;
}

}  // namespace

TEST_CASE("an entry keeps every value at its limits", "[store][chunk_index]") {
    for (const auto& place :
         {store::ChunkPlace{0, 0, 0, 0, 1}, store::ChunkPlace{1, 24, 61, 0, 1},
          store::ChunkPlace{0xFFFFFFFF, (std::uint64_t{1} << 40) - 1, (1U << 20) - 1, 262143, 262144}}) {
        const auto entry = store::index_format::encode({made_id(1), place});
        const auto back = store::index_format::decode(entry);
        CHECK(back.pack == place.pack);
        CHECK(back.frame_offset_bytes == place.frame_offset_bytes);
        CHECK(back.frame_size_bytes == place.frame_size_bytes);
        CHECK(back.offset_in_frame_bytes == place.offset_in_frame_bytes);
        CHECK(back.size_bytes == place.size_bytes);
    }
}

TEST_CASE("what was added in many packs is found, and in few segments", "[store][chunk_index]") {
    const test::PackFolders folders;
    store::ChunkIndex index(folders.packs);
    std::uint64_t count = 0;
    std::vector<std::uint32_t> packs;
    std::size_t most_segments = 0;
    for (std::uint32_t pack = 1; pack <= 60; ++pack) {
        const std::uint64_t size = pack % 7 == 0 ? 5000 : pack % 3 == 0 ? 40 : 1;
        index.add(pack, made_chunks(pack, count, count + size));
        count += size;
        packs.push_back(pack);
        most_segments = std::max(most_segments, index.snapshot()->segments.size());
    }
    CHECK(most_segments <= 8);
    CHECK(packs_of(index) == packs);
    const store::ChunkIndex reopened(folders.packs);
    CHECK(packs_of(reopened) == packs);
    for (std::uint64_t i = 0; i < count; ++i) {
        const auto place = reopened.snapshot()->find(made_id(i));
        REQUIRE(place);
        REQUIRE(place->frame_offset_bytes == 24 + i);
        REQUIRE(place->size_bytes == i % 262144 + 1);
    }
    for (std::uint64_t i = count; i < count + 1000; ++i) REQUIRE_FALSE(reopened.snapshot()->find(made_id(i)));
    CHECK(segment_files(folders.packs).size() == reopened.snapshot()->segments.size());
    for (const auto& segment : reopened.snapshot()->segments) CHECK_NOTHROW(segment->check_entries());
}

TEST_CASE("a chunk costs less than 60 bytes of index", "[store][chunk_index]") {
    const test::PackFolders folders;
    store::ChunkIndex index(folders.packs);
    for (const std::uint64_t count : {1000, 4097, 20'000}) {
        index.replace({1}, made_chunks(1, 0, count));
        CHECK(index.snapshot()->segments[0]->file_bytes() < 60 * count);
    }
}

TEST_CASE("of a chunk in two packs the one added last is told, also after merges and anew from packs",
          "[store][chunk_index]") {
    const test::PackFolders folders;
    store::ChunkIndex index(folders.packs);
    index.add(1, made_chunks(1, 0, 2000));
    index.add(2, made_chunks(2, 0, 10));
    CHECK(index.snapshot()->segments.size() == 2);
    CHECK(index.snapshot()->find(made_id(5))->pack == 2);
    CHECK(index.snapshot()->find_all(made_id(5)).size() == 2);
    index.add(3, made_chunks(3, 5, 2000));
    CHECK(index.snapshot()->segments.size() == 1);
    CHECK(index.snapshot()->find(made_id(4))->pack == 2);
    CHECK(index.snapshot()->find(made_id(5))->pack == 3);
    CHECK(index.snapshot()->segments[0]->entry_count() == 2000);
    auto both = made_chunks(9, 0, 10);
    const auto other = made_chunks(8, 0, 20);
    both.insert(both.end(), other.begin(), other.end());
    index.replace({9, 8}, both);
    CHECK(index.snapshot()->find(made_id(9))->pack == 9);
    CHECK(index.snapshot()->find(made_id(10))->pack == 8);
    CHECK(index.snapshot()->segments[0]->entry_count() == 20);
}

TEST_CASE("adding a pack twice changes nothing", "[store][chunk_index]") {
    const test::PackFolders folders;
    store::ChunkIndex index(folders.packs);
    index.add(1, made_chunks(1, 0, 10));
    const auto generation = index.snapshot()->generation;
    index.add(1, made_chunks(1, 0, 10));
    CHECK(index.snapshot()->generation == generation);
}

TEST_CASE("a missing list is an empty index, and the generation only grows", "[store][chunk_index]") {
    const test::PackFolders folders;
    store::ChunkIndex index(folders.packs);
    CHECK_FALSE(index.snapshot()->find(made_id(1)));
    CHECK(index.snapshot()->problems.empty());
    index.add(1, made_chunks(1, 0, 10));
    index.replace({}, {});
    CHECK(packs_of(index).empty());
    CHECK_FALSE(index.snapshot()->find(made_id(1)));
    CHECK(segment_files(folders.packs).empty());
    const auto generation = index.snapshot()->generation;
    index.add(2, made_chunks(2, 0, 10));
    CHECK(index.snapshot()->generation > generation);
}

TEST_CASE("an index whose list is lost or damaged is made anew and never takes an old segment's name",
          "[store][chunk_index]") {
    const test::PackFolders folders;
    const Bytes data = test::random_bytes(100, 1);
    const auto pack = folders.write(1, {data});
    folders.open()->add_segment(*pack);
    const Bytes list = store::read_file(folders.packs + "/chunks.list", 1 << 20);
    const auto old_segments = segment_files(folders.packs);
    for (std::size_t bit = 0; bit < list.size() * 8; ++bit) {
        CAPTURE(bit);
        Bytes damaged = list;
        damaged[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
        test::replace_file(folders.packs + "/chunks.list", damaged);
        const auto chunks = folders.open();
        REQUIRE(chunks->indexed_packs().empty());
        REQUIRE(test::try_read(*chunks, data) == ReadResult::refused);
        REQUIRE(store::check_chunk_index(folders.packs).size() == 1);
    }
    for (std::size_t size = 0; size < list.size(); ++size) {
        const auto end = list.begin() + static_cast<std::ptrdiff_t>(size);
        test::replace_file(folders.packs + "/chunks.list", Bytes(list.begin(), end));
        REQUIRE(folders.open()->indexed_packs().empty());
    }
    const auto chunks = folders.open();
    chunks->rebuild({1});
    CHECK(chunks->indexed_packs() == std::vector<std::uint32_t>{1});
    CHECK(test::try_read(*chunks, data) == ReadResult::right);
    CHECK(segment_files(folders.packs) != old_segments);
    CHECK(segment_files(folders.packs).size() == 1);
}

TEST_CASE("a segment with any one bit flipped, or cut at any byte, never gives wrong data", "[store][chunk_index]") {
    const test::PackFolders folders;
    std::vector<Bytes> data;
    for (std::uint64_t i = 0; i < 9; ++i) data.push_back(test::random_bytes(50 + i, i));
    folders.open()->add_segment(*folders.write(1, data));
    const std::string path = folders.packs + "/" + segment_files(folders.packs)[0];
    const Bytes segment = store::read_file(path, 1 << 20);
    const auto read_all = [&](bool is_sound = false) {
        const auto chunks = folders.open();
        std::size_t right_count = 0;
        for (const Bytes& chunk : data) {
            const ReadResult result = test::try_read(*chunks, chunk);
            REQUIRE(result != ReadResult::wrong);
            right_count += result == ReadResult::right;
        }
        // Either the damage is seen at once and the pack is to be indexed again, or the neighbours of one entry are
        // hit, and the check tells.
        if (chunks->indexed_packs().empty()) {
            REQUIRE(right_count == 0);
        } else {
            REQUIRE(right_count >= 4);
        }
        REQUIRE(store::check_chunk_index(folders.packs).empty() == is_sound);
        return right_count;
    };
    REQUIRE(read_all(true) == 9);
    for (std::size_t bit = 0; bit < segment.size() * 8; ++bit) {
        CAPTURE(bit);
        Bytes damaged = segment;
        damaged[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
        store::File::open_append(path).write_at(0, damaged);
        read_all();
    }
    for (std::size_t size = 0; size < segment.size(); ++size) {
        CAPTURE(size);
        const auto end = segment.begin() + static_cast<std::ptrdiff_t>(size);
        test::replace_file(path, Bytes(segment.begin(), end));
        REQUIRE(read_all() == 0);
    }
    store::remove_file(path);
    REQUIRE(read_all() == 0);
}

TEST_CASE("a fan-out that lies under a right checksum finds nothing wrong and reads nothing outside",
          "[store][chunk_index]") {
    const test::PackFolders folders;
    store::ChunkIndex index(folders.packs);
    index.replace({1}, made_chunks(1, 0, 100));
    const std::string path = folders.packs + "/" + segment_files(folders.packs)[0];
    const Bytes sound = store::read_file(path, 1 << 20);
    auto header = store::index_format::load<store::index_format::SegmentHeader>(sound, 0);
    const std::size_t head_bytes = store::index_format::entries_offset(header.fan_out_bits);
    for (const std::uint32_t value : {0U, 50U, 101U, 0x7FFFFFFFU, 0xFFFFFFFFU}) {
        for (std::size_t at = sizeof header; at + 4 <= head_bytes; at += 4) {
            Bytes lie = sound;
            std::memcpy(lie.data() + at, &value, sizeof value);
            header.checksum = store::index_format::head_checksum(std::span(lie).first(head_bytes));
            std::memcpy(lie.data(), &header, sizeof header);
            const auto segment = store::IndexSegment::over(lie, header.number);
            for (std::uint64_t i = 0; i < 200; ++i) {
                const auto place = segment->find(made_id(i));
                if (place) REQUIRE(place->frame_offset_bytes == 24 + i);
            }
        }
    }
}

TEST_CASE("a segment that becomes shorter while it is mapped is an error, not the end of the process",
          "[store][chunk_index]") {
    const test::PackFolders folders;
    store::ChunkIndex index(folders.packs);
    index.add(1, made_chunks(1, 0, 5000));
    const auto snapshot = index.snapshot();
    const std::uint64_t size_bytes = snapshot->segments[0]->file_bytes();
    store::File::open_append(folders.packs + "/" + segment_files(folders.packs)[0]).truncate(size_bytes / 2);
    int refused_count = 0;
    for (std::uint64_t i = 0; i < 5000; ++i) {
        try {
            const auto place = snapshot->find(made_id(i));
            REQUIRE(place);
            REQUIRE(place->frame_offset_bytes == 24 + i);
        } catch (const store::Error& error) {
            REQUIRE(error.code() == store::Errc::corrupt);
            ++refused_count;
        }
    }
    CHECK(refused_count > 1000);
    CHECK_THROWS_AS(snapshot->segments[0]->check_entries(), store::Error);
    CHECK_NOTHROW(index.add(2, made_chunks(2, 5000, 6000)));
    CHECK_NOTHROW(index.replace({1}, made_chunks(1, 0, 5000)));
    CHECK(index.snapshot()->find(made_id(4999)));
}

TEST_CASE("a reader whose index cannot be read any more takes the one that was made anew", "[store][chunk_index]") {
    const test::PackFolders folders;
    std::vector<Bytes> data;
    for (std::uint64_t i = 0; i < 2000; ++i) data.push_back(test::random_bytes(50, i));
    const auto pack = folders.write(1, data);
    folders.open()->add_segment(*pack);
    const auto reader = folders.open();
    const std::string path = folders.packs + "/" + segment_files(folders.packs)[0];
    store::File::open_append(path).truncate(store::file_size(path) / 4);
    int refused_count = 0;
    for (const Bytes& chunk : data) refused_count += test::try_read(*reader, chunk) == ReadResult::refused;
    CHECK(refused_count > 500);
    folders.open()->rebuild({1});
    for (const Bytes& chunk : data) REQUIRE(test::try_read(*reader, chunk) == ReadResult::right);
}

TEST_CASE("a list that is damaged or lost while it is in use loses nothing, and the next one is whole",
          "[store][chunk_index]") {
    for (const bool is_lost : {false, true}) {
        CAPTURE(is_lost);
        const test::PackFolders folders;
        store::ChunkIndex index(folders.packs);
        index.add(1, made_chunks(1, 0, 100));
        index.add(2, made_chunks(2, 100, 105));
        if (is_lost) {
            store::remove_file(folders.packs + "/chunks.list");
        } else {
            test::replace_file(folders.packs + "/chunks.list", test::random_bytes(100, 1));
        }
        index.refresh(index.snapshot());
        CHECK(index.snapshot()->find(made_id(104)));
        index.add(3, made_chunks(3, 105, 110));
        const store::ChunkIndex reopened(folders.packs);
        CHECK(packs_of(reopened) == std::vector<std::uint32_t>{1, 2, 3});
        for (std::uint64_t i = 0; i < 110; ++i) CHECK(reopened.snapshot()->find(made_id(i)));
        CHECK(reopened.snapshot()->problems.empty());
    }
}

TEST_CASE("a damaged segment is not merged into new ones, and the rest serves on", "[store][chunk_index]") {
    const test::PackFolders folders;
    store::ChunkIndex index(folders.packs);
    index.add(1, made_chunks(1, 0, 100));
    const std::string path = folders.packs + "/" + segment_files(folders.packs)[0];
    Bytes damaged = store::read_file(path, 1 << 20);
    damaged.back() ^= std::byte{1};  // In the place of an entry.
    store::File::open_append(path).write_at(0, damaged);
    for (std::uint32_t pack = 2; pack < 6; ++pack) index.add(pack, made_chunks(pack, pack * 100, pack * 100 + 100));
    CHECK(index.snapshot()->segments.size() == 2);
    CHECK_NOTHROW(index.snapshot()->segments[1]->check_entries());
    CHECK_THROWS_AS(index.snapshot()->segments[0]->check_entries(), store::Error);
    CHECK(index.snapshot()->find(made_id(550)));
    CHECK(packs_of(index) == std::vector<std::uint32_t>{1, 2, 3, 4, 5});
}

TEST_CASE("publishing that fails at any step leaves the old or the new index", "[store][chunk_index]") {
    for (const bool is_replace : {false, true}) {
        for (int step = 1;; ++step) {
            CAPTURE(is_replace, step);
            REQUIRE(step < 50);
            const test::PackFolders folders;
            store::ChunkIndex index(folders.packs);
            index.add(1, made_chunks(1, 0, 10));
            bool has_failed = false;
            {
                const test::FailAtStep fault(step);
                try {
                    if (is_replace) {
                        index.replace({2}, made_chunks(2, 10, 20));
                    } else {
                        index.add(2, made_chunks(2, 10, 20));
                    }
                } catch (const store::Error& error) {
                    CHECK(error.code() == store::Errc::no_space);
                }
                has_failed = fault.has_failed();
            }
            const store::ChunkIndex reopened(folders.packs);
            const auto packs = packs_of(reopened);
            const std::vector<std::uint32_t> after =
                is_replace ? std::vector<std::uint32_t>{2} : std::vector<std::uint32_t>{1, 2};
            CHECK((packs == std::vector<std::uint32_t>{1} || packs == after));
            CHECK(reopened.snapshot()->problems.empty());
            CHECK(reopened.snapshot()->find(made_id(15)).has_value() == (packs == after));
            index.add(3, made_chunks(3, 20, 30));
            CHECK(index.snapshot()->find(made_id(25)));
            CHECK(segment_files(folders.packs).size() == index.snapshot()->segments.size());
            if (!has_failed) break;
        }
    }
}

TEST_CASE("rebuild() names exactly the chunks of the given packs, lost packs included as empty",
          "[store][chunk_index]") {
    const test::PackFolders folders;
    std::vector<Bytes> data;
    for (std::uint32_t pack = 1; pack <= 4; ++pack) {
        data.push_back(test::random_bytes(1000, pack));
        folders.write(pack, {data.back()});
    }
    store::remove_file(folders.path(3));
    const auto chunks = folders.open();
    chunks->rebuild({4, 3, 1});
    CHECK(chunks->indexed_packs() == std::vector<std::uint32_t>{1, 3, 4});
    CHECK(chunks->chunk_count() == 2);
    CHECK(test::try_read(*chunks, data[0]) == ReadResult::right);
    CHECK_FALSE(chunks->find(test::id_of(data[1])));
    CHECK_FALSE(chunks->find(test::id_of(data[2])));
    CHECK(test::try_read(*chunks, data[3]) == ReadResult::right);
}

TEST_CASE("packs are forgotten by a new list alone, and older places of their chunks count again",
          "[store][chunk_index]") {
    const test::PackFolders folders;
    store::ChunkIndex index(folders.packs);
    index.add(1, made_chunks(1, 0, 1000));
    index.add(2, made_chunks(2, 990, 1010));  // So few that they stay a segment of their own.
    REQUIRE(segment_files(folders.packs).size() == 2);
    const auto before = segment_files(folders.packs);
    const std::uint32_t second[] = {2};
    REQUIRE(index.snapshot()->find(made_id(995))->pack == 2);
    index.update(std::nullopt, second);
    CHECK(packs_of(index) == std::vector<std::uint32_t>{1});
    CHECK(index.snapshot()->find(made_id(995))->pack == 1);
    CHECK_FALSE(index.snapshot()->find(made_id(1005)));
    CHECK(index.snapshot()->find_all(made_id(1005)).empty());
    CHECK(segment_files(folders.packs) == std::vector<std::string>{before[0]});
    // Many packs in one segment: it stays for those that are left, and merging leaves the others out.
    for (std::uint32_t pack = 3; pack < 12; ++pack) index.add(pack, made_chunks(pack, pack * 2000, pack * 2000 + 900));
    const std::uint32_t some[] = {3, 5, 7, 77};
    index.update(store::ChunkIndex::AddedPack{12, made_chunks(12, 6000, 6010)}, some);
    CHECK(packs_of(index) == std::vector<std::uint32_t>{1, 4, 6, 8, 9, 10, 11, 12});
    CHECK(index.snapshot()->find(made_id(6005))->pack == 12);
    CHECK_FALSE(index.snapshot()->find(made_id(6100)));
    CHECK(index.snapshot()->find(made_id(8100))->pack == 4);
    const std::string generation = std::to_string(index.snapshot()->generation);
    index.update(std::nullopt, some);  // Nothing to forget.
    CHECK(std::to_string(index.snapshot()->generation) == generation);
    CHECK(store::check_chunk_index(folders.packs).empty());
}

TEST_CASE("a compact index answers as before, and takes what was told", "[store][chunk_index]") {
    const test::PackFolders folders;
    store::ChunkIndex index(folders.packs);
    index.compact();
    for (std::uint32_t pack = 1; pack < 30; ++pack) index.add(pack, made_chunks(pack, pack * 100, pack * 100 + 150));
    const std::uint32_t gone[] = {2, 3, 20, 29};
    index.update(std::nullopt, gone);
    std::map<std::uint64_t, std::uint32_t> places;
    std::uint64_t count = 0;
    const auto pack_of = [&](std::uint64_t chunk) {
        const auto place = index.snapshot()->find(made_id(chunk));
        return place ? place->pack : 0;
    };
    for (std::uint64_t chunk = 0; chunk < 3200; ++chunk) {
        places[chunk] = pack_of(chunk);
        count += places[chunk] != 0;
    }
    index.compact();
    REQUIRE(segment_files(folders.packs).size() == 1);
    for (std::uint64_t chunk = 0; chunk < 3200; ++chunk) CHECK(places[chunk] == pack_of(chunk));
    CHECK(index.snapshot()->segments[0]->entry_count() == count);
    CHECK(store::ChunkIndex::compact_bytes(25, count) ==
          store::file_size(folders.packs + "/chunks.list") +
              store::file_size(folders.packs + "/" + segment_files(folders.packs)[0]));
    std::vector<std::uint32_t> all;
    for (std::uint32_t pack = 1; pack < 30; ++pack) all.push_back(pack);
    index.update(std::nullopt, all);
    CHECK(segment_files(folders.packs).empty());
    CHECK(store::ChunkIndex::compact_bytes(0, 0) == store::file_size(folders.packs + "/chunks.list"));
}

TEST_CASE("a reader that was opened before sees what is added, moved and removed later", "[store][chunk_index]") {
    const test::PackFolders folders;
    const auto reader = folders.open();
    const auto daemon = folders.open();
    const Bytes data = test::random_bytes(1000, 1);
    CHECK(test::try_read(*reader, data) == ReadResult::refused);
    const auto first = folders.write(1, {data});
    daemon->add_segment(*first);
    CHECK(test::try_read(*reader, data) == ReadResult::right);
    // The chunk moves: another pack has it, and the first one goes.
    const test::PackFolders elsewhere;
    elsewhere.write(2, {test::random_bytes(5, 5), data});
    store::rename_durably(elsewhere.path(2), folders.path(2));
    daemon->rebuild({2});
    store::remove_file(folders.path(1));
    const auto cold = folders.open();
    CHECK(cold->find(test::id_of(data))->pack == 2);
    CHECK(test::try_read(*reader, data) == ReadResult::right);
    daemon->rebuild({});
    store::remove_file(folders.path(2));
    CHECK(test::try_read(*folders.open(), data) == ReadResult::refused);
}

TEST_CASE("a reader whose pack is gone before its first read finds the chunk where it is now", "[store][chunk_index]") {
    const test::PackFolders folders;
    const Bytes data = test::random_bytes(1000, 1);
    folders.open()->add_segment(*folders.write(1, {data}));
    const auto reader = folders.open();
    REQUIRE(reader->find(test::id_of(data))->pack == 1);
    const test::PackFolders elsewhere;
    elsewhere.write(2, {data});
    store::rename_durably(elsewhere.path(2), folders.path(2));
    folders.open()->rebuild({2});
    store::remove_file(folders.path(1));
    CHECK(test::try_read(*reader, data) == ReadResult::right);
}

TEST_CASE("a chunk whose frame is damaged is read from another pack that has it", "[store][chunk_index]") {
    const test::PackFolders folders;
    const Bytes data = test::random_bytes(1000, 1);
    const auto first = folders.write(1, {data});
    const auto second = folders.write(2, {data, test::random_bytes(9, 9)});
    const auto filler = folders.write(3, std::vector<Bytes>(1, Bytes(7)));
    const auto chunks = folders.open();
    store::FinishedPack large = *first;  // Many more entries, so that the second is not merged with it.
    const auto more = made_chunks(1, 0, 100);
    large.chunks.insert(large.chunks.end(), more.begin(), more.end());
    chunks->add_segment(large);
    chunks->add_segment(*second);
    Bytes damaged = store::read_file(folders.path(2), 1 << 20);
    damaged[second->chunks[0].place.frame_offset_bytes + 30] ^= std::byte{1};
    test::replace_file(folders.path(2), damaged);
    REQUIRE(chunks->find(test::id_of(data))->pack == 2);
    CHECK(test::try_read(*chunks, data) == ReadResult::right);
    CHECK(filler);
}

TEST_CASE("one process adds while others read: every chunk that was added is found", "[store][chunk_index]") {
    const test::PackFolders folders;
    constexpr std::uint64_t kPacks = 60;
    int progress[2];
    REQUIRE(::pipe(progress) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {  // Adds; tells each pack when it is published. No Catch here, and no exit handlers.
        try {
            const auto daemon = folders.open();
            for (std::uint64_t pack = 1; pack <= kPacks; ++pack) {
                const auto finished = folders.write(static_cast<std::uint32_t>(pack),
                                                    {test::random_bytes(300, pack), test::text_bytes(3000, pack)});
                daemon->add_segment(*finished);
                if (pack % 10 == 0) {
                    std::vector<std::uint32_t> all;
                    for (std::uint32_t i = 1; i <= pack; ++i) all.push_back(i);
                    daemon->rebuild(all);
                }
                const char told = 1;
                if (::write(progress[1], &told, 1) != 1) ::_exit(2);
            }
        } catch (const store::Error&) {
            ::_exit(3);
        }
        ::_exit(0);
    }
    ::close(progress[1]);
    std::atomic<std::uint64_t> published{0};
    std::atomic<int> missing_count{0};
    std::atomic<int> wrong_count{0};
    const auto reader = folders.open();
    std::vector<std::thread> threads;
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
        threads.emplace_back([&, seed] {
            std::uint64_t pack = seed;
            std::uint64_t count = 0;
            while (count < 500 || published < kPacks) {
                const std::uint64_t known = published;
                if (known == 0) continue;
                ++count;
                pack = (pack + 7) % known;
                const auto result = test::try_read(*reader, test::random_bytes(300, pack + 1));
                missing_count += result == ReadResult::refused;
                wrong_count += result == ReadResult::wrong;
            }
        });
    }
    char told = 0;
    while (::read(progress[0], &told, 1) == 1) ++published;
    published = kPacks;  // Also when the child failed, so that the threads end.
    int status = 0;
    ::waitpid(child, &status, 0);
    for (std::thread& thread : threads) thread.join();
    ::close(progress[0]);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    CHECK(missing_count == 0);
    CHECK(wrong_count == 0);
}
