#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace lamina::unionfs {

/// Which bytes of the extent file are in use: pure bookkeeping, touches no file. Offsets and sizes are bytes; space is
/// handed out in blocks of 4 KiB, and never the first one (offset 0 means "none"). Not thread-safe.
class SpaceMap {
public:
    static constexpr std::uint64_t kBlockBytes = 4096;
    struct Range {
        std::uint64_t offset_bytes = 0;
        std::uint64_t size_bytes = 0;
        std::uint64_t end() const noexcept { return offset_bytes + size_bytes; }
        bool operator==(const Range&) const = default;
    };

    /// A place for `size_bytes` in one piece. Continues at `previous_end` when that is where something was placed last
    /// and the space behind it is free; else it starts a block. Some space behind it is kept for what continues it.
    std::uint64_t allocate(std::uint64_t size_bytes, std::uint64_t previous_end);
    /// Bytes that are no longer in use. Returns the blocks that hold nothing any more; they stay taken until
    /// add_free(). Nothing happens, and `is_sound` becomes false, when the bytes were not in use.
    std::vector<Range> release(Range range);
    void add_free(Range blocks);
    /// Gives back what was kept for continuing.
    void drop_tails();

    /// For a map that is rebuilt: bytes that are in use. False: they overlap others, or lie out of bounds.
    bool mark_used(Range range);
    /// After the last mark_used(): all blocks between that hold nothing are free.
    void finish_marking();
    /// Instead of finish_marking(): all blocks up to an end that hold nothing stay taken until add_free(). They are
    /// what is returned.
    std::vector<Range> finish_holding(std::uint64_t end_bytes);

    std::uint64_t end_bytes() const noexcept { return end_block_ * kBlockBytes; }  ///< Behind all that was handed out.
    std::uint64_t used_bytes() const noexcept { return used_bytes_; }
    std::uint64_t free_bytes() const noexcept { return free_blocks_ * kBlockBytes; }  ///< Below end_bytes().
    std::uint64_t largest_free_bytes() const noexcept;
    std::vector<Range> free_runs() const;
    bool is_sound() const noexcept { return is_sound_; }

private:
    struct Tail {
        std::uint64_t start_block = 0;
        std::uint64_t limit_block = 0;  ///< Blocks before it are kept.
    };
    using Tails = std::map<std::uint64_t, Tail>;  // By the offset at which something may continue.

    std::optional<std::uint64_t> continue_tail(std::uint64_t size_bytes, std::uint64_t previous_end,
                                               std::uint64_t& wanted_blocks);
    void extend(Tail& tail, std::uint64_t needed_limit);
    std::uint64_t take_blocks(std::uint64_t needed, std::uint64_t wanted, std::uint64_t& taken);
    void take_front(std::uint64_t start, std::uint64_t count);
    void add_free_blocks(std::uint64_t start, std::uint64_t count);
    void keep_tail(std::uint64_t end_bytes, const Tail& tail);
    void drop_tail(Tails::iterator tail);
    void count_use(Range range);
    void grow_to(std::uint64_t end_block);

    std::vector<std::uint16_t> used_{0};  // Bytes in use, by block; the first block stays outside.
    std::uint64_t end_block_ = 1;
    std::uint64_t used_bytes_ = 0;
    std::uint64_t free_blocks_ = 0;
    std::map<std::uint64_t, std::uint64_t> free_;                     // Start block to count; no two touch.
    std::set<std::pair<std::uint64_t, std::uint64_t>> free_by_size_;  // Count, start.
    Tails tails_;
    std::vector<std::uint64_t> tail_order_;  // Oldest first; may hold ends that are gone.
    bool is_sound_ = true;
};

}  // namespace lamina::unionfs
