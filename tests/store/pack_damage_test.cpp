#include "store/chunk_store.h"
#include "store/error.h"
#include "store/file.h"
#include "store/pack_format.h"
#include "store/pack_reader.h"
#include "support/catch.h"
#include "support/pack_folders.h"
#include "support/random_bytes.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

using namespace lamina;
using test::Bytes;
using test::ReadResult;
namespace format = store::pack_format;

namespace {

/// One small pack, its bytes, and an index over it: of one compressed frame, or of three, the last of which is stored
/// (the first two are apart since one chunk nearly fills a frame).
enum class Frames { one, three };
struct SmallPack {
    explicit SmallPack(Frames frames = Frames::three) {
        data = {test::text_bytes(400, 1), test::text_bytes(90, 2)};
        if (frames == Frames::three) data.emplace_back(262'100);
        data.push_back(test::random_bytes(150, 3));
        data.push_back(test::random_bytes(20, 4));
        pack = folders.write(1, data);
        bytes = store::read_file(folders.path(1), 1 << 20);
        folders.open()->add_segment(*pack);
    }
    void put(const Bytes& damaged) const {
        auto file = store::File::open_append(folders.path(1));
        if (damaged.size() != file.size_bytes()) file.truncate(damaged.size());
        file.write_at(0, damaged);
    }
    /// Reads every chunk through the index; never may one have other bytes. Returns how many were right.
    std::size_t readable() const {
        const auto chunks = folders.open();
        std::size_t right = 0;
        for (std::size_t i = 0; i < data.size(); ++i) {
            const ReadResult result = test::try_read(*chunks, pack->chunks[i].id, data[i]);
            REQUIRE(result != ReadResult::wrong);
            right += result == ReadResult::right;
        }
        return right;
    }
    /// The chunks of the pack's table, each of which must be one that was written, at its place.
    std::size_t listed() const {
        try {
            const auto table = store::read_pack_table(folders.packs, 1);
            for (const auto& chunk : table) {
                const auto is_it = [&](const store::NewChunk& one) {
                    return one.id == chunk.id && one.place.frame_offset_bytes == chunk.place.frame_offset_bytes &&
                           one.place.offset_in_frame_bytes == chunk.place.offset_in_frame_bytes &&
                           one.place.frame_size_bytes == chunk.place.frame_size_bytes &&
                           one.place.size_bytes == chunk.place.size_bytes;
                };
                REQUIRE(std::any_of(pack->chunks.begin(), pack->chunks.end(), is_it));
            }
            return table.size();
        } catch (const store::Error& error) {
            REQUIRE(error.code() == store::Errc::corrupt);
            return 0;
        }
    }
    test::PackFolders folders;
    std::vector<Bytes> data;
    std::optional<store::FinishedPack> pack;
    Bytes bytes;
};

void seal_footer(Bytes& pack, format::PackTrailer trailer) {
    const std::size_t end = pack.size() - sizeof trailer;
    std::memcpy(pack.data() + end, &trailer, sizeof trailer);
    const std::size_t from = std::min<std::size_t>(trailer.footer_offset_bytes, end);
    trailer.checksum = XXH3_64bits(pack.data() + from, end - from + format::kTrailerCheckedBytes);
    std::memcpy(pack.data() + end, &trailer, sizeof trailer);
}

void seal_frame(Bytes& frame) {
    if (frame.size() < sizeof(format::FrameHeader)) return;
    auto header = format::load<format::FrameHeader>(frame, 0);
    header.checksum = format::frame_checksum(frame);
    std::memcpy(frame.data(), &header, sizeof header);
}

/// A frame that is what it says it is, of these chunks, whose digests may be anything.
Bytes made_frame(const std::vector<std::pair<store::Digest, Bytes>>& chunks) {
    Bytes frame(sizeof(format::FrameHeader));
    Bytes payload;
    for (const auto& [digest, data] : chunks) {
        format::ChunkRow row{{}, static_cast<std::uint32_t>(data.size())};
        std::copy(digest.bytes().begin(), digest.bytes().end(), row.digest.begin());
        const auto row_bytes = format::bytes_of(row);
        frame.insert(frame.end(), row_bytes.begin(), row_bytes.end());
        payload.insert(payload.end(), data.begin(), data.end());
    }
    frame.insert(frame.end(), payload.begin(), payload.end());
    const format::FrameHeader header{.magic = format::kFrameMagic,
                                     .frame_size_bytes = static_cast<std::uint32_t>(frame.size()),
                                     .checksum = 0,
                                     .raw_size_bytes = static_cast<std::uint32_t>(payload.size()),
                                     .chunk_count = static_cast<std::uint16_t>(chunks.size()),
                                     .codec = format::Codec::stored,
                                     .level = 0};
    std::memcpy(frame.data(), &header, sizeof header);
    seal_frame(frame);
    return frame;
}

std::set<store::ChunkId> listed_chunks(const test::PackFolders& folders) {
    std::set<store::ChunkId> ids;
    for (const auto& chunk : store::read_pack_table(folders.packs, 1)) ids.insert(chunk.id);
    return ids;
}

}  // namespace

TEST_CASE("a pack cut at any byte gives right chunks or errors, and its table what is whole", "[store][pack][damage]") {
    const SmallPack small;
    REQUIRE(small.readable() == 5);
    for (std::size_t size = 0; size < small.bytes.size(); ++size) {
        CAPTURE(size);
        small.put(Bytes(small.bytes.begin(), small.bytes.begin() + static_cast<std::ptrdiff_t>(size)));
        const auto is_whole = [&](const store::NewChunk& chunk) {
            return chunk.place.frame_offset_bytes + chunk.place.frame_size_bytes <= size;
        };
        const auto& chunks = small.pack->chunks;
        const auto whole = static_cast<std::size_t>(std::count_if(chunks.begin(), chunks.end(), is_whole));
        REQUIRE(small.readable() == whole);
        REQUIRE(small.listed() == whole);
        REQUIRE_FALSE(store::check_pack(small.folders.packs, 1, false, nullptr).empty());
    }
}

TEST_CASE("a pack with any one bit flipped gives right chunks or errors, and the check tells",
          "[store][pack][damage]") {
    const auto check_flipped = [](const SmallPack& small, std::size_t bit) {
        CAPTURE(bit);
        Bytes flipped = small.bytes;
        flipped[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
        small.put(flipped);
        std::set<store::ChunkId> bad;
        const auto problems =
            store::check_pack(small.folders.packs, 1, true, [&](const store::ChunkId& id) { bad.insert(id); });
        REQUIRE_FALSE(problems.empty());
        // Every chunk is served or reported, and the table is in one of two places.
        REQUIRE(small.readable() + bad.size() >= small.data.size());
        REQUIRE(small.listed() == small.data.size());
    };
    const SmallPack small(Frames::one);
    for (std::size_t bit = 0; bit < small.bytes.size() * 8; ++bit) check_flipped(small, bit);
    const SmallPack larger(Frames::three);
    for (std::size_t at = 0; at < larger.bytes.size(); ++at) check_flipped(larger, at * 8 + at % 8);
}

TEST_CASE("the check names the pack, the place and the reason", "[store][pack][damage]") {
    const SmallPack small;
    const std::uint64_t frame = small.pack->chunks[3].place.frame_offset_bytes;
    Bytes damaged = small.bytes;
    damaged[frame + 200] ^= std::byte{1};
    small.put(damaged);
    std::vector<store::ChunkId> bad;
    const auto problems =
        store::check_pack(small.folders.packs, 1, true, [&](const store::ChunkId& id) { bad.push_back(id); });
    CHECK(problems == std::vector<std::string>{"pack 1, frame at " + std::to_string(frame) + ": bad checksum"});
    CHECK(bad == std::vector<store::ChunkId>{test::id_of(small.data[3]), test::id_of(small.data[4])});
    CHECK(store::check_pack(small.folders.packs, 9, true, nullptr).size() == 1);
}

TEST_CASE("behind a damaged frame of a pack without footer the others are found", "[store][pack][damage]") {
    const test::PackFolders folders;
    std::vector<Bytes> data;
    for (std::uint64_t i = 0; i < 8; ++i) data.push_back(test::random_bytes(200'000, i));
    const auto pack = folders.write(1, data);
    Bytes bytes = store::read_file(folders.path(1), 1 << 22);
    bytes.erase(bytes.end() - 10, bytes.end());
    for (const std::size_t lost : {0, 3, 7}) {
        CAPTURE(lost);
        Bytes damaged = bytes;
        damaged[pack->chunks[lost].place.frame_offset_bytes + 5] ^= std::byte{0x80};  // Its size: too large.
        test::replace_file(folders.path(1), damaged);
        auto expected = std::set<store::ChunkId>();
        for (std::size_t i = 0; i < data.size(); ++i) {
            if (i != lost) expected.insert(test::id_of(data[i]));
        }
        CHECK(listed_chunks(folders) == expected);
    }
}

TEST_CASE("a file that contains frames cannot put chunks into the index of a damaged pack", "[store][pack][damage]") {
    const Bytes victim = test::random_bytes(100, 1);
    const Bytes evil = made_frame({{store::Digest::of(victim), test::random_bytes(100, 2)}});
    const test::PackFolders folders;
    const auto pack = folders.write(1, {evil, test::random_bytes(262'000, 3)});
    Bytes bytes = store::read_file(folders.path(1), 1 << 20);
    bytes.back() ^= std::byte{1};                                    // No footer,
    bytes[pack->chunks[0].place.frame_offset_bytes] = std::byte{0};  // nor the frame around the evil one.
    test::replace_file(folders.path(1), bytes);
    const auto ids = listed_chunks(folders);
    CHECK_FALSE(ids.contains(test::id_of(victim)));
    CHECK(ids.contains(test::id_of(test::random_bytes(262'000, 3))));
}

TEST_CASE("a pack in which everything looks like a frame is walked in bounded work", "[store][pack][damage]") {
    const test::PackFolders folders;
    format::FrameHeader header{.magic = format::kFrameMagic,
                               .frame_size_bytes = 400'000,
                               .checksum = 1,
                               .raw_size_bytes = 1,
                               .chunk_count = 1,
                               .codec = format::Codec::stored,
                               .level = 0};
    Bytes bytes(24);
    const auto one = format::bytes_of(header);
    while (bytes.size() < 2'000'000) bytes.insert(bytes.end(), one.begin(), one.end());
    test::replace_file(folders.path(1), bytes);
    CHECK_THROWS_AS(store::read_pack_table(folders.packs, 1), store::Error);  // Without the bound: 25 GB read.
}

TEST_CASE("a footer whose checksum is right but whose tables lie is refused", "[store][pack][damage]") {
    const SmallPack small;
    const auto trailer =
        format::load<format::PackTrailer>(small.bytes, small.bytes.size() - sizeof(format::PackTrailer));
    const auto is_refused = [&](Bytes pack, const format::PackTrailer& lie) {
        seal_footer(pack, lie);
        small.put(pack);
        const auto problems = store::check_pack(small.folders.packs, 1, true, nullptr);
        REQUIRE(small.listed() == 5);  // From the frames, then.
        return !problems.empty();
    };
    CHECK_FALSE(is_refused(small.bytes, trailer));  // The helper does what the writer does.
    for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{23}, trailer.footer_offset_bytes + 1,
                                       trailer.footer_offset_bytes - 1, ~std::uint64_t{0}}) {
        auto lie = trailer;
        lie.footer_offset_bytes = offset;
        CHECK(is_refused(small.bytes, lie));
    }
    auto lie = trailer;
    lie.frame_count += 1;
    CHECK(is_refused(small.bytes, lie));
    lie = trailer;
    lie.chunk_count = 0xFFFFFFFF;
    CHECK(is_refused(small.bytes, lie));
    lie = trailer;
    lie.raw_bytes -= 1;
    CHECK(is_refused(small.bytes, lie));
    for (std::size_t at = trailer.footer_offset_bytes; at + sizeof(format::PackTrailer) < small.bytes.size(); at += 4) {
        for (const std::uint32_t value : {0U, 1U, 4096U, 4097U, 262'145U, 0x7FFFFFFFU, 0xFFFFFFFFU}) {
            CAPTURE(at, value);
            Bytes pack = small.bytes;
            std::memcpy(pack.data() + at, &value, sizeof value);
            if (pack == small.bytes) continue;
            seal_footer(pack, trailer);
            small.put(pack);
            REQUIRE_FALSE(store::check_pack(small.folders.packs, 1, true, nullptr).empty());
        }
    }
}

TEST_CASE("a frame whose checksum is right but whose fields lie is refused", "[store][pack][damage]") {
    const Bytes sound = made_frame({{store::Digest::of({}), Bytes(10)}, {store::Digest::of({}), Bytes(20)}});
    REQUIRE(store::parse_frame(sound)->size_bytes == 30);
    const auto is_refused = [](Bytes frame) {
        seal_frame(frame);
        try {
            store::parse_frame(frame);
            return false;
        } catch (const store::Error& error) {
            return error.code() == store::Errc::corrupt;
        }
    };
    for (std::size_t size = 0; size < sound.size(); ++size) {
        CAPTURE(size);
        Bytes frame(sound.begin(), sound.begin() + static_cast<std::ptrdiff_t>(size));
        REQUIRE(is_refused(frame));
    }
    Bytes longer = sound;
    longer.push_back(std::byte{0});
    CHECK(is_refused(longer));
    const auto with = [&](auto change) {
        Bytes frame = sound;
        auto header = format::load<format::FrameHeader>(frame, 0);
        change(header);
        std::memcpy(frame.data(), &header, sizeof header);
        return frame;
    };
    CHECK(is_refused(with([](auto& header) { header.magic = 0; })));
    CHECK(is_refused(with([](auto& header) { header.chunk_count = 0; })));
    CHECK(is_refused(with([](auto& header) { header.chunk_count = 1; })));
    CHECK(is_refused(with([](auto& header) { header.chunk_count = 3; })));
    CHECK(is_refused(with([](auto& header) { header.chunk_count = 0xFFFF; })));
    CHECK(is_refused(with([](auto& header) { header.raw_size_bytes = 29; })));
    CHECK(is_refused(with([](auto& header) { header.raw_size_bytes = 0xFFFFFFFF; })));
    CHECK(is_refused(with([](auto& header) { header.codec = format::Codec::zstd; })));
    CHECK(is_refused(with([](auto& header) { header.codec = static_cast<format::Codec>(2); })));
    CHECK(is_refused(with([](auto& header) { header.level = 23; })));
    for (const std::uint32_t size : {0U, 9U, 11U, 262'144U, 0xFFFFFFFFU, 0U - 20U}) {
        Bytes frame = sound;
        std::memcpy(frame.data() + sizeof(format::FrameHeader) + 32, &size, sizeof size);
        CHECK(is_refused(frame));
    }
}

TEST_CASE("a frame that unpacks to more or less than its table says is refused", "[store][pack][damage]") {
    const test::PackFolders folders;
    const auto pack = folders.write(1, {Bytes(100'000)});
    const Bytes bytes = store::read_file(folders.path(1), 1 << 20);
    const auto& place = pack->chunks[0].place;
    const auto from = bytes.begin() + static_cast<std::ptrdiff_t>(place.frame_offset_bytes);
    for (const std::uint32_t size : {1U, 99'999U, 100'001U, 262'144U}) {
        Bytes frame(from, from + static_cast<std::ptrdiff_t>(place.frame_size_bytes));
        std::memcpy(frame.data() + offsetof(format::FrameHeader, raw_size_bytes), &size, sizeof size);
        std::memcpy(frame.data() + sizeof(format::FrameHeader) + 32, &size, sizeof size);
        seal_frame(frame);
        CHECK_THROWS_AS(store::parse_frame(frame), store::Error);
    }
}

TEST_CASE("the check finds a chunk whose bytes are not its digest's though all checksums are right",
          "[store][pack][damage]") {
    const test::PackFolders folders;
    const auto pack = folders.write(1, {test::random_bytes(100, 1), test::random_bytes(100, 2)});
    Bytes bytes = store::read_file(folders.path(1), 1 << 20);
    const std::size_t from = pack->chunks[0].place.frame_offset_bytes;
    Bytes frame(bytes.begin() + static_cast<std::ptrdiff_t>(from),
                bytes.begin() + static_cast<std::ptrdiff_t>(from + pack->chunks[0].place.frame_size_bytes));
    frame.back() ^= std::byte{1};
    seal_frame(frame);
    std::copy(frame.begin(), frame.end(), bytes.begin() + static_cast<std::ptrdiff_t>(from));
    test::replace_file(folders.path(1), bytes);
    std::vector<store::ChunkId> bad;
    CHECK(store::check_pack(folders.packs, 1, true, [&](const auto& id) { bad.push_back(id); }).size() == 1);
    CHECK(bad == std::vector<store::ChunkId>{pack->chunks[1].id});
    CHECK(store::check_pack(folders.packs, 1, false, nullptr).empty());
}
