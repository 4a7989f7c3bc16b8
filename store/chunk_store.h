#pragma once

#include "store/chunk_sink.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lamina::store {

/// Where a chunk lies (FORMAT.md, "Chunk index"). Packs are numbered; a number is never used again.
struct ChunkPlace {
    std::uint32_t pack = 0;
    std::uint64_t frame_offset_bytes = 0;  ///< In the pack file.
    std::uint32_t frame_size_bytes = 0;    ///< On disk, header included.
    std::uint32_t offset_in_frame_bytes = 0;
    std::uint32_t size_bytes = 0;
};

struct NewChunk {
    ChunkId id;
    ChunkPlace place;
};

/// One pack that a PackWriter finished and published.
struct FinishedPack {
    std::uint32_t number = 0;
    std::uint64_t file_bytes = 0;
    std::uint64_t raw_bytes = 0;  ///< Of the chunks in it, uncompressed.
    std::vector<NewChunk> chunks;
    std::uint64_t dense_bytes = 0;  ///< Of raw_bytes: in frames that tell a level.
};

/// <root>/packs: pack files and the chunk index over them. Readers of any process open it; only the daemon adds.
///
/// find() and read() are thread-safe. A reader that misses a chunk, or finds a pack gone, opens the index list again
/// before it gives up, so that mounts see what was added after they started.
class ChunkStore : public ChunkSource {
public:
    enum class Ahead : std::uint8_t { no, yes };
    /// `cache_bytes` bounds the decompressed frames that are kept; Ahead::yes: of what is read next, too
    /// (frame_ahead.h). Creates nothing.
    static std::unique_ptr<ChunkStore> open(const std::string& packs_folder, std::uint64_t cache_bytes,
                                            Ahead ahead = Ahead::no);
    ~ChunkStore() override = default;

    virtual std::optional<ChunkPlace> find(const ChunkId& chunk) = 0;

    /// Publishes a segment that names the chunks of `pack`; call after the index transaction that names the pack.
    virtual void add_segment(const FinishedPack& pack) = 0;
    /// Publishes an index that names the chunks of `added` too (when there is one) and none of `removed`: after the
    /// index transaction that says the same, and before the files of `removed` go.
    virtual void replace_packs(const FinishedPack* added, const std::vector<std::uint32_t>& removed) = 0;
    /// Drops from the index's files what counts no more. Changes no answer.
    virtual void compact() = 0;
    /// Makes the index hold exactly the chunks of `packs`, read from their footers, or frame headers where a footer is
    /// damaged. Replaces the list in one rename. Used at start when the list does not name exactly the committed
    /// packs, and by gc.
    virtual void rebuild(const std::vector<std::uint32_t>& packs) = 0;
    /// The packs that the published list covers, sorted.
    virtual std::vector<std::uint32_t> indexed_packs() = 0;
    virtual std::uint64_t chunk_count() = 0;
};

std::string pack_path(const std::string& packs_folder, std::uint32_t number);

/// Every chunk of one pack, from its footer (or frame headers), in pack order. Throws corrupt.
std::vector<NewChunk> read_pack_table(const std::string& packs_folder, std::uint32_t number);

/// Problems of one pack, each a line ("pack 17, frame at 4096: bad checksum"); empty when sound. `check_data`
/// decompresses every frame and compares every chunk's digest; `on_bad_chunk` gets each chunk that cannot be served.
std::vector<std::string> check_pack(const std::string& packs_folder, std::uint32_t number, bool check_data,
                                    const std::function<void(const ChunkId&)>& on_bad_chunk);

/// Problems of the published chunk index, each a line; reads all of it. rebuild() mends every one of them.
std::vector<std::string> check_chunk_index(const std::string& packs_folder);

}  // namespace lamina::store
