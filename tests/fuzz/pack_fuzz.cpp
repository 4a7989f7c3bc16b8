#include "store/chunk_store.h"
#include "store/error.h"
#include "store/file.h"
#include "store/index_segment.h"
#include "store/pack_format.h"
#include "store/pack_reader.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

// Frames, footers, whole packs, segments and lists of the chunk index out of any bytes: each is parsed as it comes, and
// once more with its checksum put right, since a checksum that is always wrong would keep the fuzzer at the door. The
// first byte chooses the parser. Nothing may crash, and a frame that is accepted must be as long as its table says.

namespace {

using namespace lamina::store;
using Bytes = std::vector<std::byte>;

void check(bool is_so) {
    if (!is_so) std::abort();
}

template <class Parse>
void refuse_or(Parse&& parse) {
    try {
        parse();
    } catch (const Error& error) {
        check(error.code() == Errc::corrupt || error.code() == Errc::not_found);
    }
}

void fuzz_frame(Bytes frame) {
    const auto parse = [&] {
        refuse_or([&] {
            const auto parsed = parse_frame(frame);
            std::uint32_t at = 0;
            for (const auto& chunk : parsed->chunks) {
                check(chunk.offset_bytes == at && chunk.size_bytes > 0);
                check(parsed->bytes_at(chunk.id, at).size() == chunk.size_bytes);
                at += chunk.size_bytes;
            }
            check(at == parsed->size_bytes && at <= pack_format::kMaxFrameRawBytes);
        });
    };
    parse();
    if (frame.size() < sizeof(pack_format::FrameHeader)) return;
    auto header = pack_format::load<pack_format::FrameHeader>(frame, 0);
    header.magic = pack_format::kFrameMagic;
    header.frame_size_bytes = static_cast<std::uint32_t>(frame.size());
    std::memcpy(frame.data(), &header, sizeof header);
    header.checksum = pack_format::frame_checksum(frame);
    std::memcpy(frame.data(), &header, sizeof header);
    parse();
}

void seal_footer(Bytes& pack) {
    pack_format::PackTrailer trailer;
    if (pack.size() < sizeof trailer) return;
    const std::size_t end = pack.size() - sizeof trailer;
    trailer = pack_format::load<pack_format::PackTrailer>(pack, end);
    trailer.magic = pack_format::kTrailerMagic;
    const std::size_t from = std::min<std::size_t>(trailer.footer_offset_bytes, end);
    trailer.checksum = XXH3_64bits(pack.data() + from, end - from + pack_format::kTrailerCheckedBytes);
    std::memcpy(pack.data() + end, &trailer, sizeof trailer);
}

void fuzz_footer(Bytes pack) {
    const auto parse = [&] {
        refuse_or([&] {
            if (pack.size() < sizeof(pack_format::PackTrailer)) return;
            const auto end = std::span(pack).last(sizeof(pack_format::PackTrailer));
            const std::uint64_t from = parse_trailer(end, pack.size());
            std::uint64_t at = sizeof(pack_format::PackHeader);
            for (const auto& frame : parse_footer(std::span(pack).subspan(from), pack.size())) {
                at += frame.frame_size_bytes;
            }
            check(at == from);
        });
    };
    parse();
    seal_footer(pack);
    parse();
}

/// Where the index and the packs of this process lie; leaves with it.
struct Folder {
    Folder() { check(::mkdtemp(path.data()) != nullptr); }
    ~Folder() { remove_tree(path); }
    void put(const std::string& name, std::span<const std::byte> data) const {
        remove_file(path + name);
        File::create(path + name).append(data);
    }
    std::string path = "/tmp/lamina-pack-fuzz-XXXXXX";
};

void fuzz_pack(const Folder& folder, Bytes pack, bool is_sealed) {
    if (is_sealed) seal_footer(pack);
    folder.put(pack_path("", 1), pack);
    refuse_or([&] {
        for (const auto& chunk : read_pack_table(folder.path, 1)) {
            check(chunk.place.frame_offset_bytes + chunk.place.frame_size_bytes <= pack.size());
        }
    });
    check_pack(folder.path, 1, true, nullptr);
}

void fuzz_segment(Bytes bytes, std::span<const std::byte> asked) {
    std::array<std::byte, Digest::kSizeBytes> digest{};
    std::memcpy(digest.data(), asked.data(), std::min(asked.size(), digest.size()));
    const auto parse = [&] {
        refuse_or([&] {
            const auto segment = IndexSegment::over(bytes, 1);
            segment->find({Digest::from_bytes(digest)});
            for (std::uint64_t i = 0; i < segment->entry_count(); ++i) {
                segment->find({Digest::from_bytes(segment->entry(i).digest)});
            }
            segment->check_entries();
        });
    };
    parse();
    if (bytes.size() < sizeof(index_format::SegmentHeader)) return;
    auto header = index_format::load<index_format::SegmentHeader>(bytes, 0);
    header.magic = index_format::kSegmentMagic;
    header.version = index_format::kVersion;
    header.number = 1;
    header.fan_out_bits %= 12;
    const std::uint64_t head_bytes = index_format::entries_offset(header.fan_out_bits);
    if (head_bytes > bytes.size()) return;
    header.entry_count = (bytes.size() - head_bytes) / sizeof(index_format::Entry);
    bytes.resize(head_bytes + header.entry_count * sizeof(index_format::Entry));
    header.entries_checksum = XXH3_64bits(bytes.data() + head_bytes, bytes.size() - head_bytes);
    std::memcpy(bytes.data(), &header, sizeof header);
    header.checksum = index_format::head_checksum(std::span(bytes).first(head_bytes));
    std::memcpy(bytes.data(), &header, sizeof header);
    parse();
}

void fuzz_list(const Folder& folder, Bytes list, bool is_sealed) {
    if (is_sealed && list.size() >= sizeof(index_format::ListHeader) + sizeof(std::uint64_t)) {
        const std::size_t end = list.size() - sizeof(std::uint64_t);
        auto header = index_format::load<index_format::ListHeader>(list, 0);
        header.magic = index_format::kListMagic;
        header.version = index_format::kVersion;
        std::memcpy(list.data(), &header, sizeof header);
        const std::uint64_t checksum = XXH3_64bits(list.data(), end);
        std::memcpy(list.data() + end, &checksum, sizeof checksum);
    }
    folder.put("/chunks.list", list);
    ChunkStore::open(folder.path, 1024)->indexed_packs();
    check_chunk_index(folder.path);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size_bytes) {
    static const Folder folder;
    if (size_bytes == 0) return 0;
    const auto* const begin = reinterpret_cast<const std::byte*>(data);
    const Bytes input(begin + 1, begin + size_bytes);
    switch (data[0] % 7) {
        case 0:
            fuzz_frame(input);
            break;
        case 1:
            fuzz_footer(input);
            break;
        case 2:
        case 3:
            fuzz_pack(folder, input, data[0] % 7 == 3);
            break;
        case 4:
            fuzz_segment(input, {begin, size_bytes});
            break;
        default:
            fuzz_list(folder, input, data[0] % 7 == 6);
    }
    return 0;
}
