#include "store/pack_copy.h"

#include "store/error.h"

#include <algorithm>
#include <utility>

namespace lamina::store {

namespace format = pack_format;

PackCopy::PackCopy(const PackFile::Options& options, const Liveness& liveness, std::stop_token stop)
    : options_(options),
      liveness_(liveness),
      stop_(std::move(stop)),
      sources_(options.packs_folder),
      file_(options),
      compressor_(kImportLevel) {}

bool PackCopy::add(std::uint32_t pack) {
    const std::vector<NewChunk> table = read_pack_table(options_.packs_folder, pack);
    bool is_whole = true;
    for (std::size_t begin = 0; begin < table.size();) {
        if (stop_.stop_requested()) throw Error(Errc::cancelled, "stopped");
        std::size_t end = begin;
        while (end < table.size() && table[end].place.frame_offset_bytes == table[begin].place.frame_offset_bytes)
            ++end;
        is_whole = add_frame(std::span(table).subspan(begin, end - begin)) && is_whole;
        begin = end;
    }
    return is_whole;
}

/// `chunks`: all of one frame, in its order.
bool PackCopy::add_frame(std::span<const NewChunk> chunks) {
    const auto is_needed = [&](const NewChunk& chunk) { return liveness_.is_needed(chunk); };
    const auto needed_count = std::count_if(chunks.begin(), chunks.end(), is_needed);
    if (needed_count == 0) return true;
    std::vector<std::byte> packed(chunks.front().place.frame_size_bytes);
    std::shared_ptr<const Frame> frame;
    try {
        sources_.read_packed(chunks.front().place, packed);
        frame = parse_frame(packed);
    } catch (const Error& error) {
        if (error.code() != Errc::corrupt && error.code() != Errc::not_found) throw;
        return false;
    }
    std::vector<std::span<const std::byte>> bytes;
    for (const NewChunk& chunk : chunks) {
        bytes.push_back(frame->bytes_at(chunk.id, chunk.place.offset_in_frame_bytes));
        if (Digest::of(bytes.back()) != chunk.id.digest) return false;
    }
    if (static_cast<std::size_t>(needed_count) == frame->chunks.size()) {
        flush();
        file_.append(packed);
        return true;
    }
    for (std::size_t i = 0; i < chunks.size(); ++i) {
        if (is_needed(chunks[i])) add_chunk(chunks[i].id, bytes[i]);
    }
    return true;
}

void PackCopy::add_chunk(const ChunkId& id, std::span<const std::byte> bytes) {
    if (open_.raw.size() + bytes.size() > format::kMaxFrameRawBytes || open_.rows.size() == format::kMaxFrameChunks) {
        flush();
    }
    format::ChunkRow& row = open_.rows.emplace_back();
    std::copy(id.digest.bytes().begin(), id.digest.bytes().end(), row.digest.begin());
    row.size_bytes = static_cast<std::uint32_t>(bytes.size());
    open_.raw.insert(open_.raw.end(), bytes.begin(), bytes.end());
}

void PackCopy::flush() {
    if (open_.rows.empty()) return;
    compressor_.pack(open_);
    file_.append(open_.packed);
    open_.clear();
}

std::optional<FinishedPack> PackCopy::finish() {
    flush();
    return file_.finish();
}

}  // namespace lamina::store
