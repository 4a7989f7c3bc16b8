#pragma once

#include "store/chunk_store.h"
#include "store/index_segment.h"

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lamina::store {

/// The published list of segments, as it was read. `segments` has only those that could be opened: a damaged one, and
/// the packs that it covers, are left out and told in `problems`.
struct IndexSnapshot {
    /// Which list file this is; a published one never changes, so another list is another file.
    struct Identity {
        std::uint64_t device = 0;
        std::uint64_t inode = 0;
        std::uint64_t size_bytes = 0;
        std::int64_t changed_seconds = 0;
        std::int64_t changed_nanoseconds = 0;
        bool operator==(const Identity&) const = default;
    };
    Identity identity;
    UniqueFd list_file;  ///< Held, so that no other list gets its inode number.
    std::uint64_t generation = 0;
    std::vector<std::shared_ptr<const IndexSegment>> segments;  ///< Oldest first.
    std::map<std::uint32_t, std::size_t> packs;                 ///< To the position in `segments` that covers it.
    std::vector<std::uint32_t> covered;                         ///< The same packs, sorted: for look-ups.
    std::vector<std::string> problems;

    /// An entry counts only while the list names its pack: what gc took away stays in the segments for a while.
    bool covers(std::uint32_t pack) const;
    /// The newest segment that has the chunk tells its place.
    std::optional<ChunkPlace> find(const ChunkId& chunk) const;
    /// All places of the chunk, newest first: a chunk may lie in several packs.
    std::vector<ChunkPlace> find_all(const ChunkId& chunk) const;
};

/// Digest to place over all packs of a folder. Readers in any number of processes; one process adds.
/// Thread-safe. A missing list is an empty index; so is a damaged one, with a problem told. Who has the index open when
/// that happens keeps what it has.
class ChunkIndex {
public:
    /// Of the index's files when it is compact.
    static std::uint64_t compact_bytes(std::uint64_t pack_count, std::uint64_t entry_count);

    explicit ChunkIndex(std::string packs_folder);

    std::shared_ptr<const IndexSnapshot> snapshot() const;
    /// What is published now: `seen` itself when that is still so. Costs a stat() then.
    std::shared_ptr<const IndexSnapshot> refresh(const std::shared_ptr<const IndexSnapshot>& seen);

    struct AddedPack {
        std::uint32_t pack = 0;
        std::span<const NewChunk> chunks;
    };
    /// Publishes a segment with these chunks of `pack`, merged with younger ones where there are many. A pack that is
    /// covered already changes nothing.
    void add(std::uint32_t pack, std::span<const NewChunk> chunks) { update(AddedPack{pack, chunks}, {}); }
    /// What add() does, and in the same step forgets packs, which costs nothing but a new list: their entries do not
    /// count any more, and go when their segment is merged.
    void update(const std::optional<AddedPack>& added, std::span<const std::uint32_t> removed);
    /// Publishes one segment that has only what counts. Throws corrupt when a segment is damaged.
    void compact();
    /// Publishes one segment with exactly these chunks, which cover `packs`; of equal ones the highest pack wins.
    void replace(std::vector<std::uint32_t> packs, std::span<const NewChunk> chunks);

private:
    struct NextList;
    class Merge;

    std::shared_ptr<const IndexSnapshot> load(const std::shared_ptr<const IndexSnapshot>& before) const;
    std::uint64_t next_generation(const IndexSnapshot& now) const;
    void append_segment(NextList& next, Merge& merge) const;
    void publish(const NextList& next);
    void remove_strays(const NextList& next) const;

    const std::string packs_folder_;
    const std::string list_path_;
    mutable std::mutex snapshot_mutex_;  // Guards snapshot_. Taken last, for a copy only.
    std::shared_ptr<const IndexSnapshot> snapshot_;
    std::mutex load_mutex_;  // One thread at a time loads; held across that I/O on purpose: the others want its result.
    std::mutex write_mutex_;  // One thread at a time publishes; before load_mutex_.
};

}  // namespace lamina::store
