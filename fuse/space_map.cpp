#include "fuse/space_map.h"

#include <algorithm>
#include <cassert>
#include <limits>

/// Each block has a count of its bytes in use. A block whose count falls to zero is dead: its owner gets it back by
/// add_free() when nothing can read it any more. Free runs of blocks are kept by start, so that neighbours join, and by
/// size, so that the smallest that fits is found.
///
/// What was placed last leaves a tail: the rest of its last block, and perhaps whole blocks behind it, which only what
/// continues at exactly that offset may use. A file that grows in small steps so stays in one piece, and its tail grows
/// with it. There are few tails; the oldest gives its blocks back when there are too many.
namespace lamina::unionfs {

namespace {

constexpr std::size_t kMaxTails = 64;
constexpr std::uint64_t kMaxGrowthBlocks = 256;  // 1 MiB kept ahead of a file that grows.
constexpr std::uint64_t kMaxBlocks =
    static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / SpaceMap::kBlockBytes;

constexpr std::uint64_t blocks_for(std::uint64_t size_bytes) {
    return size_bytes / SpaceMap::kBlockBytes + (size_bytes % SpaceMap::kBlockBytes != 0 ? 1 : 0);
}

}  // namespace

std::uint64_t SpaceMap::allocate(std::uint64_t size_bytes, std::uint64_t previous_end) {
    const std::uint64_t needed = blocks_for(size_bytes);
    std::uint64_t wanted = needed;
    if (previous_end != 0) {
        if (const auto place = continue_tail(size_bytes, previous_end, wanted)) return *place;
    }
    Tail tail;
    std::uint64_t taken = 0;
    tail.start_block = take_blocks(needed, wanted, taken);
    tail.limit_block = tail.start_block + taken;
    const std::uint64_t offset = tail.start_block * kBlockBytes;
    count_use({offset, size_bytes});
    keep_tail(offset + size_bytes, tail);
    return offset;
}

std::optional<std::uint64_t> SpaceMap::continue_tail(std::uint64_t size_bytes, std::uint64_t previous_end,
                                                     std::uint64_t& wanted_blocks) {
    const auto found = tails_.find(previous_end);
    if (found == tails_.end()) return std::nullopt;
    Tail tail = found->second;
    const std::uint64_t needed_limit = blocks_for(previous_end + size_bytes);
    if (needed_limit > tail.limit_block) extend(tail, needed_limit);
    if (needed_limit > tail.limit_block) {  // Something else lies there: a new piece, bigger than the last.
        const std::uint64_t had = tail.limit_block - tail.start_block;
        wanted_blocks = std::max(wanted_blocks, std::min(2 * had, wanted_blocks + kMaxGrowthBlocks));
        found->second = tail;
        drop_tail(found);
        return std::nullopt;
    }
    tails_.erase(found);
    count_use({previous_end, size_bytes});
    keep_tail(previous_end + size_bytes, tail);
    return previous_end;
}

void SpaceMap::extend(Tail& tail, std::uint64_t needed_limit) {
    const std::uint64_t needed = needed_limit - tail.limit_block;
    const std::uint64_t had = tail.limit_block - tail.start_block;
    const std::uint64_t wanted = std::max(needed, std::min(had, kMaxGrowthBlocks));
    if (tail.limit_block == end_block_) {
        grow_to(end_block_ + wanted);
        tail.limit_block += wanted;
        return;
    }
    const auto behind = free_.find(tail.limit_block);
    if (behind == free_.end() || behind->second < needed) return;
    const std::uint64_t count = std::min(behind->second, wanted);
    take_front(tail.limit_block, count);
    tail.limit_block += count;
}

std::uint64_t SpaceMap::take_blocks(std::uint64_t needed, std::uint64_t wanted, std::uint64_t& taken) {
    auto fits = free_by_size_.lower_bound({wanted, 0});
    if (fits == free_by_size_.end()) fits = free_by_size_.lower_bound({needed, 0});
    if (fits != free_by_size_.end()) {
        taken = std::min(fits->first, wanted);
        const std::uint64_t start = fits->second;
        take_front(start, taken);
        return start;
    }
    const std::uint64_t start = end_block_;  // No free run ends there: add_free_blocks() moves the end instead.
    taken = wanted;
    grow_to(start + taken);
    return start;
}

void SpaceMap::take_front(std::uint64_t start, std::uint64_t count) {
    const auto run = free_.find(start);
    assert(run != free_.end() && run->second >= count);
    const std::uint64_t left = run->second - count;
    free_by_size_.erase({run->second, start});
    free_.erase(run);
    if (left != 0) {
        free_.emplace(start + count, left);
        free_by_size_.emplace(left, start + count);
    }
    free_blocks_ -= count;
}

void SpaceMap::add_free_blocks(std::uint64_t start, std::uint64_t count) {
    if (count == 0) return;
    free_blocks_ += count;
    auto after = free_.lower_bound(start);
    if (after != free_.end() && after->first == start + count) {
        count += after->second;
        free_by_size_.erase({after->second, after->first});
        after = free_.erase(after);
    }
    if (after != free_.begin()) {
        const auto before = std::prev(after);
        if (before->first + before->second == start) {
            start = before->first;
            count += before->second;
            free_by_size_.erase({before->second, before->first});
            free_.erase(before);
        }
    }
    if (start + count == end_block_) {  // Nothing behind it: the file ends earlier.
        free_blocks_ -= count;
        end_block_ = start;
        used_.resize(static_cast<std::size_t>(end_block_));
        return;
    }
    free_.emplace(start, count);
    free_by_size_.emplace(count, start);
}

std::vector<SpaceMap::Range> SpaceMap::release(Range range) {
    std::vector<Range> dead;
    const bool is_inside = range.size_bytes != 0 && range.offset_bytes >= kBlockBytes &&
                           range.size_bytes <= end_bytes() && range.offset_bytes <= end_bytes() - range.size_bytes;
    if (!is_inside) {
        is_sound_ = is_sound_ && range.size_bytes == 0;
        return dead;
    }
    std::uint64_t at = range.offset_bytes;
    while (at < range.end()) {
        const std::uint64_t block = at / kBlockBytes;
        const std::uint64_t block_end = (block + 1) * kBlockBytes;
        const auto size = static_cast<std::uint16_t>(std::min(range.end(), block_end) - at);
        std::uint16_t& used = used_[static_cast<std::size_t>(block)];
        at += size;
        if (used < size) {
            is_sound_ = false;
            continue;
        }
        used = static_cast<std::uint16_t>(used - size);
        used_bytes_ -= size;
        if (used != 0) continue;
        const auto tail = tails_.upper_bound(block * kBlockBytes);  // One that would continue in this dead block.
        if (tail != tails_.end() && tail->first < block_end) drop_tail(tail);
        if (!dead.empty() && dead.back().end() == block * kBlockBytes) {
            dead.back().size_bytes += kBlockBytes;
        } else {
            dead.push_back({block * kBlockBytes, kBlockBytes});
        }
    }
    return dead;
}

void SpaceMap::add_free(Range blocks) {
    add_free_blocks(blocks.offset_bytes / kBlockBytes, blocks.size_bytes / kBlockBytes);
}

void SpaceMap::keep_tail(std::uint64_t end_bytes, const Tail& tail) {
    if (tails_.size() >= kMaxTails) {
        auto oldest = tail_order_.begin();
        while (oldest != tail_order_.end() && !tails_.contains(*oldest)) ++oldest;
        if (oldest != tail_order_.end()) {
            const std::uint64_t end = *oldest++;
            tail_order_.erase(tail_order_.begin(), oldest);
            drop_tail(tails_.find(end));
        }
    }
    if (tail_order_.size() >= 4 * kMaxTails) {
        std::erase_if(tail_order_, [&](std::uint64_t end) { return !tails_.contains(end); });
    }
    tails_.insert_or_assign(end_bytes, tail);
    tail_order_.push_back(end_bytes);
}

void SpaceMap::drop_tail(Tails::iterator tail) {
    const std::uint64_t first = blocks_for(tail->first);
    const std::uint64_t limit = tail->second.limit_block;
    tails_.erase(tail);
    if (first < limit) add_free_blocks(first, limit - first);
}

void SpaceMap::drop_tails() {
    while (!tails_.empty()) drop_tail(tails_.begin());
    tail_order_.clear();
}

void SpaceMap::count_use(Range range) {
    for (std::uint64_t at = range.offset_bytes; at < range.end();) {
        const std::uint64_t block = at / kBlockBytes;
        const auto size = static_cast<std::uint16_t>(std::min(range.end(), (block + 1) * kBlockBytes) - at);
        std::uint16_t& used = used_[static_cast<std::size_t>(block)];
        used = static_cast<std::uint16_t>(used + size);
        at += size;
    }
    used_bytes_ += range.size_bytes;
}

void SpaceMap::grow_to(std::uint64_t end_block) {
    if (end_block <= end_block_) return;
    used_.resize(static_cast<std::size_t>(end_block));
    end_block_ = end_block;
}

bool SpaceMap::mark_used(Range range) {
    if (range.offset_bytes < kBlockBytes || range.size_bytes == 0) return false;
    constexpr std::uint64_t kMaxBytes = kMaxBlocks * kBlockBytes;
    if (range.offset_bytes > kMaxBytes || range.size_bytes > kMaxBytes - range.offset_bytes) return false;
    grow_to(blocks_for(range.end()));
    for (std::uint64_t at = range.offset_bytes; at < range.end();) {
        const std::uint64_t block = at / kBlockBytes;
        const std::uint64_t size = std::min(range.end(), (block + 1) * kBlockBytes) - at;
        if (used_[static_cast<std::size_t>(block)] + size > kBlockBytes) return false;
        used_[static_cast<std::size_t>(block)] =
            static_cast<std::uint16_t>(used_[static_cast<std::size_t>(block)] + size);
        used_bytes_ += size;
        at += size;
    }
    return true;
}

void SpaceMap::finish_marking() {
    std::uint64_t start = 1;
    const std::uint64_t end = end_block_;
    for (std::uint64_t block = 1; block <= end; ++block) {
        if (block < end && used_[static_cast<std::size_t>(block)] == 0) continue;
        add_free_blocks(start, block - start);
        start = block + 1;
    }
}

std::vector<SpaceMap::Range> SpaceMap::finish_holding(std::uint64_t end_bytes) {
    std::vector<Range> held;
    grow_to(std::min(blocks_for(end_bytes), kMaxBlocks));
    std::uint64_t start = 1;
    for (std::uint64_t block = 1; block <= end_block_; ++block) {
        if (block < end_block_ && used_[static_cast<std::size_t>(block)] == 0) continue;
        if (block > start) held.push_back({start * kBlockBytes, (block - start) * kBlockBytes});
        start = block + 1;
    }
    return held;
}

std::vector<SpaceMap::Range> SpaceMap::free_runs() const {
    std::vector<Range> runs;
    for (const auto& [start, count] : free_) runs.push_back({start * kBlockBytes, count * kBlockBytes});
    return runs;
}

std::uint64_t SpaceMap::largest_free_bytes() const noexcept {
    return free_by_size_.empty() ? 0 : free_by_size_.rbegin()->first * kBlockBytes;
}

}  // namespace lamina::unionfs
