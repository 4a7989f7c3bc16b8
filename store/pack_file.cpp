#include "store/pack_file.h"

#include "store/checksum.h"
#include "store/error.h"
#include "store/pack_format.h"
#include "store/pack_reader.h"

#include <utility>

namespace lamina::store {

namespace format = pack_format;

namespace {

void remove_quietly(const std::string& path) {
    try {
        remove_file(path);
    } catch (const Error&) {
        // A destructor cannot report it; what stays in staging goes when the store is opened next.
    }
}

}  // namespace

PackFile::~PackFile() {
    if (!is_created_ || is_finished_ || options_.is_measured) return;
    remove_quietly(staging_path());
    if (is_publishing_) remove_quietly(pack_path(options_.packs_folder, options_.pack_number));
}

std::string PackFile::staging_path() const {
    return options_.staging_folder + "/pack-" + std::to_string(options_.pack_number) + ".tmp";
}

void PackFile::append(std::span<const std::byte> frame) {
    const FrameTable table = parse_frame_table(frame);
    if (!is_created_) create();
    const std::uint64_t offset_bytes = pack_.file_bytes;
    if (offset_bytes + frame.size() > format::kMaxPackBytes) throw Error(Errc::unsupported, "pack beyond 1 TiB");
    if (pack_.chunks.size() + table.chunks.size() > 0xFFFFFFFF) {
        throw Error(Errc::unsupported, "more than 4294967295 chunks in one pack");
    }
    put(frame);
    append_chunks(table, options_.pack_number, offset_bytes, pack_.chunks);
    pack_.raw_bytes += table.raw_size_bytes;
    if (table.level != 0) pack_.dense_bytes += table.raw_size_bytes;
    ++frame_count_;
}

std::optional<FinishedPack> PackFile::finish() {
    if (frame_count_ > 0) {
        put_footer();
        if (!options_.is_measured) publish();
    }
    is_finished_ = true;
    if (frame_count_ == 0) return std::nullopt;
    return std::move(pack_);
}

void PackFile::put(std::span<const std::byte> bytes) {
    if (!options_.is_measured) file_.append(bytes);
    pack_.file_bytes += bytes.size();
}

void PackFile::create() {
    if (!options_.is_measured) file_ = File::create(staging_path());
    is_created_ = true;
    pack_.number = options_.pack_number;
    const std::uint32_t version = options_.tells_levels ? format::kLevelVersion : format::kVersion;
    format::PackHeader header{format::kPackMagic, version, options_.pack_number, 0};
    header.checksum = format::header_checksum(header);
    put(format::bytes_of(header));
}

void PackFile::put_footer() {
    constexpr std::size_t kPieceBytes = 1024 * 1024;
    Checksum checksum;
    std::vector<std::byte> piece;
    const auto add = [&](std::span<const std::byte> bytes) { piece.insert(piece.end(), bytes.begin(), bytes.end()); };
    const auto flush = [&] {
        checksum.update(piece);
        put(piece);
        piece.clear();
    };
    const std::vector<NewChunk>& chunks = pack_.chunks;
    format::PackTrailer trailer{.footer_offset_bytes = pack_.file_bytes,
                                .frame_count = frame_count_,
                                .chunk_count = static_cast<std::uint32_t>(chunks.size()),
                                .raw_bytes = pack_.raw_bytes,
                                .checksum = 0,
                                .magic = format::kTrailerMagic};
    for (std::size_t from = 0; from < chunks.size();) {
        const ChunkPlace& first = chunks[from].place;
        std::size_t to = from;
        while (to < chunks.size() && chunks[to].place.frame_offset_bytes == first.frame_offset_bytes) ++to;
        add(format::bytes_of(format::FooterFrame{first.frame_size_bytes, static_cast<std::uint32_t>(to - from)}));
        for (; from < to; ++from) {
            add(chunks[from].id.digest.bytes());
            add(format::bytes_of(chunks[from].place.size_bytes));
        }
        if (piece.size() >= kPieceBytes) flush();
    }
    add(format::bytes_of(trailer).first(format::kTrailerCheckedBytes));
    checksum.update(piece);
    trailer.checksum = checksum.value();
    add(format::bytes_of(trailer).subspan(format::kTrailerCheckedBytes));
    put(piece);
}

void PackFile::publish() {
    const std::string final_path = pack_path(options_.packs_folder, options_.pack_number);
    // A number that was used before would replace a pack that others rely on.
    if (exists(final_path)) throw Error(Errc::already_exists, final_path + ": already exists");
    is_publishing_ = true;
    file_.publish(final_path);
}

}  // namespace lamina::store
