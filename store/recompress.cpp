#include "store/recompress.h"

#include "store/error.h"
#include "store/liveness.h"
#include "store/pack_builder.h"
#include "store/pack_swap.h"
#include "store/rate_limit.h"
#include "store/recipe.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

// A part is some of what the packs hold that are to be compressed anew: so much that it takes a short while, so that
// what is lost when it is stopped is little, and that neighbours in path order come together. It is chosen, read and
// compressed without any lock that others would wait for. Only then the part is made to count (pack_swap.h), in the way
// of gc, under the lock of gc: a source pack goes when nothing of it is needed that has not been moved. A pack larger
// than a part is moved piece by piece: the chunk index finds the newer place, so what is left of it is smaller each
// time.
//
// What is needed is first guessed, to leave the rest out, and found out when the part is made to count.

namespace lamina::store {

namespace {

constexpr std::uint64_t kLeastPartBytes = 64ull << 20;
constexpr std::uint64_t kMostPartBytes = 1ull << 30;
constexpr std::uint64_t kPartsOfStore = 64;
constexpr std::uint64_t kCacheBytes = 32ull << 20;
constexpr auto kLockPatience = std::chrono::milliseconds(50);

struct Part {
    std::vector<std::uint32_t> sources;
    std::vector<NewChunk> chunks;  ///< In the order in which they are written.
};

class Recompression {
public:
    Recompression(StoreCore& core, const UpkeepRequest& request, const std::stop_token& stop)
        : core_(core),
          request_(request),
          stop_(stop),
          rate_(request.bytes_per_second),
          reader_(ChunkStore::open(core.paths.packs(), kCacheBytes)),
          pool_(std::thread::hardware_concurrency(), kUpkeepLevel,
                request.is_background ? CompressionPool::Priority::background : CompressionPool::Priority::normal) {}

    RecompressResult run() {
        for (const PackRow& pack : packs_to_recompress(core_)) total_bytes_ += pack.raw_bytes;
        while (const auto part = next_part()) {
            write(*part);
        }
        return result_;
    }

private:
    std::optional<Part> next_part();
    void sort_by_path(std::vector<NewChunk>& chunks);
    void write(const Part& part);
    void copy(const Part& part, PackBuilder& builder);
    void commit(const Part& part, PackBuilder& builder);
    void report(const ChunkPlace& place);
    void poll() const {
        if (stop_.stop_requested()) throw Error(Errc::cancelled, "stopped");
    }

    StoreCore& core_;
    const UpkeepRequest& request_;
    const std::stop_token& stop_;
    RateLimit rate_;
    std::unique_ptr<ChunkStore> reader_;  ///< With a cache of its own: the daemon's serves others.
    CompressionPool pool_;
    std::set<std::uint32_t> tried_;  ///< Sources that stay for now: kept by a job, or not readable.
    std::uint64_t done_bytes_ = 0;
    std::uint64_t total_bytes_ = 0;
    RecompressResult result_;
};

std::optional<Part> Recompression::next_part() {
    poll();
    std::uint64_t store_bytes = 0;
    for (const PackRow& pack : core_.index->packs()) store_bytes += pack.raw_bytes;
    const std::uint64_t part_bytes = std::clamp(store_bytes / kPartsOfStore, kLeastPartBytes, kMostPartBytes);
    Liveness liveness(core_, stop_);
    liveness.mark(liveness.stored());
    Part part;
    std::uint64_t bytes = 0;
    for (const PackRow& pack : packs_to_recompress(core_)) {
        if (bytes >= part_bytes) break;
        if (tried_.contains(pack.number) || !liveness.chunks().covers(pack.number)) continue;
        std::vector<NewChunk> table;
        try {
            table = read_pack_table(core_.paths.packs(), pack.number);
        } catch (const Error& error) {  // For verify to report.
            if (error.code() != Errc::corrupt && error.code() != Errc::not_found) throw;
            tried_.insert(pack.number);
            continue;
        }
        part.sources.push_back(pack.number);
        for (const NewChunk& chunk : table) {
            if (bytes >= part_bytes) break;
            if (!liveness.is_needed(chunk)) continue;
            part.chunks.push_back(chunk);
            bytes += chunk.place.size_bytes;
        }
    }
    if (part.sources.empty()) return std::nullopt;
    sort_by_path(part.chunks);
    return part;
}

/// As the images' layers have them. What no image needs, but a mount or a job, comes last, as it lies.
void Recompression::sort_by_path(std::vector<NewChunk>& chunks) {
    std::unordered_map<ChunkId, std::size_t> rank;
    for (const NewChunk& chunk : chunks) rank.emplace(chunk.id, chunks.size());
    std::set<DiffId> seen;
    std::size_t next = 0;
    for (const ImageRow& image : core_.index->images()) {
        for (const DiffId& layer : image.layers) {
            if (!seen.insert(layer).second) continue;
            poll();
            try {
                for (const ChunkId& chunk : Recipe::open(core_.paths.recipe(layer))->chunks()) {
                    const auto found = rank.find(chunk);
                    if (found != rank.end() && found->second == chunks.size()) found->second = next++;
                }
            } catch (const Error& error) {  // Removed meanwhile; or damaged, which the order need not care for.
                if (error.code() != Errc::corrupt && error.code() != Errc::not_found) throw;
            }
        }
    }
    std::ranges::stable_sort(chunks, {}, [&](const NewChunk& chunk) { return rank.at(chunk.id); });
}

void Recompression::write(const Part& part) {
    Leases::Lease lease = core_.leases.take();
    const JobFolder folder(core_);
    const std::uint32_t number = core_.index->allocate_pack();
    lease.keep_pack(number);
    PackBuilder builder({.packs_folder = core_.paths.packs(),
                         .staging_folder = folder.path(),
                         .pack_number = number,
                         .tells_levels = true},
                        pool_);
    copy(part, builder);
    commit(part, builder);
}

void Recompression::copy(const Part& part, PackBuilder& builder) {
    PackBuilder::Lane& lane = builder.add_lane();
    std::vector<std::byte> buffer;
    for (const NewChunk& chunk : part.chunks) {
        rate_.take(chunk.place.size_bytes, stop_);
        buffer.resize(chunk.place.size_bytes);
        report(chunk.place);
        try {
            reader_->read(chunk.id, 0, buffer);
        } catch (const Error& error) {  // Not needed any more, and gone; or damaged: then its pack stays.
            if (error.code() != Errc::corrupt && error.code() != Errc::not_found) throw;
            continue;
        }
        if (Digest::of(buffer) == chunk.id.digest) builder.add(lane, chunk.id, buffer);
    }
}

void Recompression::report(const ChunkPlace& place) {
    done_bytes_ += place.size_bytes;
    total_bytes_ = std::max(total_bytes_, done_bytes_);
    if (!request_.progress) return;
    request_.progress({"compressing", "pack " + std::to_string(place.pack), done_bytes_, total_bytes_});
}

void Recompression::commit(const Part& part, PackBuilder& builder) {
    std::unique_lock collecting(core_.collecting, std::defer_lock);
    while (!collecting.try_lock_for(kLockPatience)) poll();
    const std::optional<FinishedPack> pack = builder.finish();
    Liveness liveness(core_, stop_);
    std::vector<std::uint32_t> sources = part.sources;
    std::erase_if(sources, [&](std::uint32_t source) { return !core_.index->has_pack(source); });
    std::vector<std::uint32_t> removed;
    if (pack) removed = swap_packs(core_, liveness, *pack, sources);
    result_.freed_bytes += static_cast<std::int64_t>(remove_strays(core_));
    if (pack) {
        result_.freed_bytes -= static_cast<std::int64_t>(pack->file_bytes);
        result_.raw_bytes += pack->raw_bytes;
        ++result_.packs_written;
    }
    result_.packs_removed += removed.size();
    // What could not be moved is not tried again. Of the last source, only a piece may have been in this part.
    const bool is_moving = pack && !pack->chunks.empty();
    for (const std::uint32_t source : sources) {
        const bool may_be_cut = is_moving && source == part.sources.back();
        if (!may_be_cut && std::ranges::find(removed, source) == removed.end()) tried_.insert(source);
    }
}

}  // namespace

std::vector<PackRow> packs_to_recompress(StoreCore& core) {
    std::vector<PackRow> packs = core.index->packs();
    std::erase_if(packs, [](const PackRow& pack) { return (pack.raw_bytes - pack.dense_bytes) * 8 < pack.raw_bytes; });
    return packs;
}

RecompressResult recompress(StoreCore& core, const UpkeepRequest& request, const std::stop_token& stop) {
    return Recompression(core, request, stop).run();
}

}  // namespace lamina::store
