#pragma once

#include "store/chunk_index.h"
#include "store/chunk_store.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace lamina::store {

/// Which chunks are needed: a bit for each entry of the chunk index as it was published when this was made. A chunk
/// that lies in several packs counts where the index finds it, so that what is left over when everything else goes is
/// what readers find. One thread. Reads the packs folder, changes nothing.
class ChunkMarks {
public:
    /// Checks every entry of the index. Throws corrupt when it is damaged: nothing may be removed by it.
    explicit ChunkMarks(const std::string& packs_folder);

    bool covers(std::uint32_t pack) const { return index_->covers(pack); }
    /// One that the index does not have is needed wherever a pack's table names it.
    void mark(const ChunkId& chunk);
    /// `at` is a row of a pack's table.
    bool is_needed(const NewChunk& at) const;
    /// The same, and remembers that a pack has it there.
    bool claim(const NewChunk& at);
    /// What the index places in these packs is needed in any pack that has it: nobody knows whether they can give it.
    void distrust(std::set<std::uint32_t> packs) { distrusted_ = std::move(packs); }
    /// Of what is marked, the packs in which the index places a chunk that was not claimed there. For an index that is
    /// right, and claims of all rows of all packs, these are the packs whose tables could not be read.
    std::set<std::uint32_t> unclaimed_packs() const;
    /// The number of different chunks in the entries for which `stays(pack, is_marked)`.
    std::uint64_t count(const std::function<bool(std::uint32_t pack, bool is_marked)>& stays) const;

private:
    struct Segment {
        std::shared_ptr<const IndexSegment> file;
        std::vector<bool> marked;
        std::vector<bool> claimed;
    };
    struct Entry {
        Segment* segment = nullptr;
        std::uint64_t position = 0;
    };
    std::optional<Entry> find(const ChunkId& chunk) const;

    std::shared_ptr<const IndexSnapshot> index_;
    mutable std::vector<Segment> segments_;  ///< Oldest first.
    std::unordered_set<ChunkId> unplaced_;
    std::set<std::uint32_t> distrusted_;
};

}  // namespace lamina::store
