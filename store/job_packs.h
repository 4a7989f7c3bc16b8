#pragma once

#include "store/chunk_sink.h"
#include "store/index.h"
#include "store/pack_builder.h"
#include "store/store_core.h"

#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace lamina::store {

/// Where the new chunks of one job go: all its layers fill one pack together, so that what two of them have in common
/// is stored once although none of them is finished. A layer that is done ends the pack, and the next one begins; a
/// layer too large for one pack ends several. Thread-safe.
class JobPacks {
public:
    /// How large a pack may become before the next one is begun: so memory does not grow with a layer.
    struct Limits {
        std::uint64_t raw_bytes = 1ull << 30;
        std::uint64_t chunks = 128 << 10;
    };
    /// Borrows core and lease. `staging_folder` is the job's.
    JobPacks(StoreCore& core, Leases::Lease& lease, std::string staging_folder, const Limits& limits);

    /// Takes the chunks of one layer: those that are neither stored nor on their way in this job go into the pack. One
    /// thread at a time.
    std::unique_ptr<ChunkSink> lane();

    /// Makes a layer whose chunks all went through lanes: ends the pack, moves `recipe` into layers/, commits the rows,
    /// and lets the chunks be found, each step durable before the next (FORMAT.md, "Order of writing"). What fails here
    /// fails for all layers of the job that are not committed yet, because they may need a chunk of the same pack.
    void commit_layer(const LayerRow& layer, const std::string& recipe);

    /// Makes chunks be stored that went through lanes, of no layer: the layers that need them must be kept.
    void commit_chunks();

private:
    class Lane;
    class Undo;
    struct NewLayer {
        const LayerRow& row;
        const std::string& recipe;
    };

    /// nullopt: the chunk is on its way in this job.
    std::optional<std::uint64_t> ended_packs_unless_known(const ChunkId& id);
    /// The pack to add to; null when more than `ended_packs` have ended.
    std::shared_ptr<PackBuilder> open_pack(std::uint64_t ended_packs);
    void end_if_full(const std::shared_ptr<PackBuilder>& pack);
    void commit(const NewLayer* layer);
    void publish(PackBuilder* pack, const NewLayer* layer);
    void add_segment(const FinishedPack& pack, const NewLayer* layer, Undo& undo);

    StoreCore& core_;
    Leases::Lease& lease_;
    const std::string staging_folder_;
    const Limits limits_;
    CompressionPool pool_;

    std::mutex commit_mutex_;     // One commit at a time, in the order of their packs; held across its I/O. Outermost.
    std::exception_ptr failure_;  ///< Of a commit. Guarded by commit_mutex_.

    std::mutex mutex_;                     // Guards all below.
    std::shared_ptr<PackBuilder> open_;    ///< Null until a chunk is new.
    std::shared_ptr<PackBuilder> ending_;  ///< Its chunks cannot be found in the store yet.
    std::vector<std::uint32_t> numbers_;   ///< Allocated and not used, the highest first.
    std::uint32_t pack_count_ = 0;
    std::uint64_t ended_packs_ = 0;
};

}  // namespace lamina::store
