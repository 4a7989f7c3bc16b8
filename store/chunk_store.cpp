#include "store/chunk_store.h"

#include "store/chunk_index.h"
#include "store/error.h"
#include "store/frame_ahead.h"
#include "store/frame_cache.h"
#include "store/pack_reader.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace lamina::store {

namespace {

class PackedChunkStore final : public ChunkStore {
public:
    PackedChunkStore(const std::string& packs_folder, std::uint64_t cache_bytes, Ahead ahead)
        : packs_folder_(packs_folder), index_(packs_folder), files_(packs_folder), cache_(cache_bytes) {
        if (ahead == Ahead::yes) ahead_.emplace([this](const FrameKey& frame) { return load_ahead(frame); });
    }

    std::optional<ChunkPlace> find(const ChunkId& chunk) override {
        const auto seen = index_.snapshot();
        try {
            if (const auto place = seen->find(chunk)) return place;
        } catch (const Error&) {  // A page of the index cannot be read: a newer list may do without it.
            const auto now = index_.refresh(seen);
            if (now == seen) throw;
            return now->find(chunk);
        }
        const auto now = index_.refresh(seen);
        return now == seen ? std::nullopt : now->find(chunk);
    }

    void read(const ChunkId& chunk, std::uint32_t offset_bytes, std::span<std::byte> out) override {
        const auto place = find(chunk);
        if (!place) throw Error(Errc::not_found, "chunk " + chunk.digest.hex() + ": not stored");
        try {
            copy(chunk, *place, offset_bytes, out);
        } catch (const Error& error) {  // Moved since the index was read, or another pack has it too.
            if (error.code() != Errc::not_found && error.code() != Errc::corrupt) throw;
            read_elsewhere(chunk, *place, offset_bytes, out);
        }
    }

    bool is_warm(const ChunkId& chunk) override {
        try {
            const auto place = index_.snapshot()->find(chunk);
            return place && cache_.contains({place->pack, place->frame_offset_bytes});
        } catch (const Error&) {  // The index cannot be read there: read() will find out, where it may take its time.
            return false;
        }
    }

    void add_segment(const FinishedPack& pack) override { index_.add(pack.number, pack.chunks); }

    void replace_packs(const FinishedPack* added, const std::vector<std::uint32_t>& removed) override {
        std::optional<ChunkIndex::AddedPack> pack;
        if (added) pack = {added->number, added->chunks};
        index_.update(pack, removed);
    }
    void compact() override { index_.compact(); }

    void rebuild(const std::vector<std::uint32_t>& packs) override {
        std::vector<NewChunk> chunks;
        for (const std::uint32_t pack : packs) {
            try {
                const std::vector<NewChunk> table = read_pack_table(packs_folder_, pack);
                chunks.insert(chunks.end(), table.begin(), table.end());
            } catch (const Error& error) {  // One lost pack must not take the others with it; check_pack() tells of it.
                if (error.code() != Errc::not_found && error.code() != Errc::corrupt) throw;
            }
        }
        index_.replace(packs, chunks);
    }

    std::vector<std::uint32_t> indexed_packs() override {
        std::vector<std::uint32_t> packs;
        const auto now = index_.refresh(index_.snapshot());  // Kept while it is read: others publish meanwhile.
        for (const auto& [pack, segment] : now->packs) packs.push_back(pack);
        return packs;
    }

    std::uint64_t chunk_count() override {
        std::uint64_t count = 0;
        const auto now = index_.refresh(index_.snapshot());
        for (const auto& segment : now->segments) count += segment->entry_count();
        return count;
    }

private:
    void copy(const ChunkId& chunk, const ChunkPlace& place, std::uint32_t offset_bytes, std::span<std::byte> out) {
        const FrameKey key{place.pack, place.frame_offset_bytes};
        const auto frame = cache_.get(key, [&] { return files_.read_frame(place); });
        if (ahead_) ahead_->touched(key, place.frame_offset_bytes + place.frame_size_bytes);
        const std::span<const std::byte> bytes = frame->bytes_at(chunk, place.offset_in_frame_bytes);
        if (bytes.empty()) {  // The index is wrong, and the frame's own table shows it.
            throw Error(Errc::corrupt, frame_name(place.pack, place.frame_offset_bytes) + ": chunk " +
                                           chunk.digest.hex() + " is not where the index says");
        }
        if (offset_bytes > bytes.size() || out.size() > bytes.size() - offset_bytes) {
            throw Error(Errc::internal, "chunk " + chunk.digest.hex() + ": read past its end");
        }
        std::copy_n(bytes.begin() + offset_bytes, out.size(), out.begin());
    }

    std::uint64_t load_ahead(const FrameKey& frame) {
        const std::uint32_t size_bytes = files_.frame_size_bytes(frame);
        if (size_bytes == 0) return 0;
        const ChunkPlace place{
            .pack = frame.pack, .frame_offset_bytes = frame.offset_bytes, .frame_size_bytes = size_bytes};
        cache_.get(frame, [&] { return files_.read_frame(place); });
        return frame.offset_bytes + size_bytes;
    }

    /// After `tried` failed: every other place that the index names now, and as long as there is a newer index that of
    /// that: packs may be moved again while this looks. Throws what the last place threw.
    void read_elsewhere(const ChunkId& chunk, const ChunkPlace& tried, std::uint32_t offset_bytes,
                        std::span<std::byte> out) {
        for (auto seen = index_.refresh(index_.snapshot());;) {
            std::optional<Error> failure;
            std::vector<ChunkPlace> places = seen->find_all(chunk);
            std::stable_partition(places.begin(), places.end(), [&](const ChunkPlace& place) {
                return place.pack != tried.pack || place.frame_offset_bytes != tried.frame_offset_bytes;
            });
            for (const ChunkPlace& place : places) {
                try {
                    return copy(chunk, place, offset_bytes, out);
                } catch (const Error& error) {  // The next place may do.
                    if (error.code() != Errc::not_found && error.code() != Errc::corrupt) throw;
                    failure = error;
                }
            }
            const auto now = index_.refresh(seen);
            if (now == seen) {
                throw failure.value_or(Error(Errc::not_found, "chunk " + chunk.digest.hex() + ": not stored"));
            }
            seen = now;
        }
    }

    const std::string packs_folder_;
    ChunkIndex index_;
    PackFiles files_;
    FrameCache cache_;
    std::optional<FrameAhead> ahead_;  // Last: its thread uses the rest.
};

}  // namespace

std::unique_ptr<ChunkStore> ChunkStore::open(const std::string& packs_folder, std::uint64_t cache_bytes, Ahead ahead) {
    return std::make_unique<PackedChunkStore>(packs_folder, cache_bytes, ahead);
}

std::vector<std::string> check_chunk_index(const std::string& packs_folder) {
    const ChunkIndex index(packs_folder);
    const auto snapshot = index.snapshot();
    std::vector<std::string> problems = snapshot->problems;
    for (const auto& segment : snapshot->segments) {
        try {
            segment->check_entries();
        } catch (const Error& error) {  // Findings are what is asked for.
            problems.push_back("chunk index segment " + std::to_string(segment->number()) + ": " + error.what());
        }
    }
    return problems;
}

}  // namespace lamina::store
