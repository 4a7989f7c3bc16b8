#pragma once

#include "store/chunk_marks.h"
#include "store/store_core.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::store {

/// What everything else is kept for.
struct Roots {
    std::set<DiffId> layers;
    std::set<TreeDigest> trees;
    std::vector<std::int64_t> dead_images;  ///< Rows that nothing keeps.
};

/// What of one pack is needed.
struct PackUse {
    PackRow row;
    std::uint64_t needed_bytes = 0;       ///< Of row.raw_bytes.
    std::uint64_t needed_file_bytes = 0;  ///< What these take in the file, about.
    bool is_dead() const noexcept { return needed_bytes == 0; }
    /// Worth being written anew: more than a quarter of the file is not needed.
    bool is_sparse() const noexcept {
        return !is_dead() && needed_file_bytes < row.file_bytes &&
               (row.file_bytes - needed_file_bytes) * 4 > row.file_bytes;
    }
};

/// Which chunks are needed by layers that must stay: images', mounts' and running jobs'. How it is used so that nothing
/// is lost stands at the top of gc.cpp. One thread; holds no lock between calls.
class Liveness {
public:
    /// Reads the chunk index as it is published now, which must name exactly the committed packs; a damaged one is made
    /// anew first. Mounts of `gone_mounts` count as discarded.
    Liveness(StoreCore& core, std::stop_token stop, std::set<std::string> gone_mounts = {});

    /// Under the leases' lock, with what they hold; without it only for a first guess. corrupt when a mount's base
    /// cannot be read.
    Roots roots(const Leases::Held& held) const;
    Roots roots();  ///< Takes the leases' lock for it.
    /// The same, and every layer that is there although nothing keeps it: until gc takes its row away, the next import
    /// that has it takes it for whole.
    Roots stored(const Leases::Held& held) const;
    Roots stored();  ///< Likewise.
    /// Marks what the layers need that are not marked yet. corrupt when one's recipe cannot be read: then nobody knows
    /// what it needs.
    void mark(const Roots& roots);
    bool has_marked(const Roots& roots) const;

    /// Of each pack that was committed when this was made; one whose table cannot be read is left out, and what it has
    /// counts as needed in other packs too. nullopt: the chunk index and the packs contradict each other.
    std::optional<std::vector<PackUse>> pack_uses();
    /// After mark(): `at` is a row of a pack's table.
    bool is_needed(const NewChunk& at) const { return chunks_->is_needed(at); }
    const ChunkMarks& chunks() const { return *chunks_; }

private:
    void poll() const;

    StoreCore& core_;
    const std::stop_token stop_;
    const std::set<std::string> gone_mounts_;
    std::vector<PackRow> packs_;
    std::unique_ptr<ChunkMarks> chunks_;
    std::set<DiffId> marked_;
};

}  // namespace lamina::store
