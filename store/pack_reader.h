#pragma once

#include "store/chunk_store.h"
#include "store/file.h"
#include "store/frame_cache.h"
#include "store/pack_format.h"

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

namespace lamina::store {

/// Checks all of one frame's bytes (header, checksum, table) and unpacks it. Pure; any thread. Throws corrupt, with
/// the reason alone ("bad checksum"): the caller knows where.
std::shared_ptr<const Frame> parse_frame(std::span<const std::byte> frame);

/// What a frame's bytes say about it, checked like parse_frame() but not unpacked; the payload is left alone.
struct FrameTable {
    std::uint32_t frame_size_bytes = 0;
    std::uint32_t raw_size_bytes = 0;
    std::uint8_t level = 0;  ///< Of parse_frame_table() only: a footer does not tell.
    std::vector<Frame::Chunk> chunks;
};
/// `frame` begins with header and table and may end anywhere after them. Does not check the checksum. Throws corrupt.
FrameTable parse_frame_table(std::span<const std::byte> frame);

/// The frames that a pack's footer names, in pack order; frame i lies right behind frame i - 1. `tail` is footer and
/// trailer, the last bytes of a pack of `file_bytes`. Throws corrupt, with the reason alone.
std::vector<FrameTable> parse_footer(std::span<const std::byte> tail, std::uint64_t file_bytes);

/// Offset of the footer in a pack of `file_bytes`, from its last bytes. Throws corrupt, with the reason alone.
std::uint64_t parse_trailer(std::span<const std::byte> trailer, std::uint64_t file_bytes);

/// "pack 17, frame at 4096".
std::string frame_name(std::uint32_t pack, std::uint64_t frame_offset_bytes);

/// Adds the chunks of one frame, with their places, to `chunks`.
void append_chunks(const FrameTable& frame, std::uint32_t pack, std::uint64_t frame_offset_bytes,
                   std::vector<NewChunk>& chunks);

/// Open pack files, at most `limit` at a time; the one unused for longest is closed for another. Thread-safe.
class PackFiles {
public:
    static constexpr std::size_t kDefaultLimit = 64;

    explicit PackFiles(std::string packs_folder, std::size_t limit = kDefaultLimit);
    /// Reads, checks and unpacks a frame. Throws not_found when there is no such pack, corrupt with the frame's name.
    std::shared_ptr<const Frame> read_frame(const ChunkPlace& place);
    /// How large the frame is that begins there. 0: none does.
    std::uint32_t frame_size_bytes(const FrameKey& frame);
    /// The frame's bytes as they lie in the pack, unchecked; `out` is as large as the frame.
    void read_packed(const ChunkPlace& place, std::span<std::byte> out);
    std::size_t open_count();

private:
    struct OpenPack {
        std::uint32_t number;
        std::shared_ptr<const UniqueFd> fd;
    };
    std::shared_ptr<const UniqueFd> open(std::uint32_t pack);

    const std::string packs_folder_;
    const std::size_t limit_;
    std::mutex mutex_;  // Guards open_.
    std::list<OpenPack> open_;
};

}  // namespace lamina::store
