#include "fuse/extents.h"

#include <algorithm>

namespace lamina::unionfs {
namespace {

/// The part of an extent from `begin` to `end`, which lie within it.
Extent part_of(const Extent& extent, std::uint64_t begin, std::uint64_t end) {
    Extent part = extent;
    part.offset_bytes = begin;
    part.size_bytes = end - begin;
    if (!extent.is_hole) part.extent_offset_bytes += begin - extent.offset_bytes;
    return part;
}

bool continues(const Extent& first, const Extent& second) {
    if (first.end_bytes() != second.offset_bytes || first.is_hole != second.is_hole) return false;
    return first.is_hole || first.extent_offset_bytes + first.size_bytes == second.extent_offset_bytes;
}

}  // namespace

std::optional<Extent> Extents::first_behind(std::uint64_t offset_bytes) const {
    const auto before = tree_.last_at_or_before(offset_bytes);
    if (before && from_item(*before).end_bytes() > offset_bytes) return from_item(*before);
    const auto after = tree_.first_at_or_after(offset_bytes);
    return after ? std::optional(from_item(*after)) : std::nullopt;
}

std::uint64_t Extents::count_in(std::uint64_t begin, std::uint64_t end, std::uint64_t limit) const {
    const auto first = first_behind(begin);
    if (!first) return 0;
    std::uint64_t count = 0;
    for (ArenaTree::Cursor at(tree_, first->offset_bytes); at.get() && at.get()->key < end && count < limit; at.next())
        ++count;
    return count;
}

void Extents::put(const Extent& extent, Effect& effect) {
    cut(extent.offset_bytes, extent.end_bytes(), effect, &extent);
    if (!extent.is_hole) effect.data_bytes += static_cast<std::int64_t>(extent.size_bytes);
    Extent whole = extent;
    const auto before = extent.offset_bytes > 0 ? tree_.last_at_or_before(extent.offset_bytes - 1) : std::nullopt;
    const auto after = tree_.first_at_or_after(extent.end_bytes());
    if (after && continues(extent, from_item(*after))) {
        whole.size_bytes += from_item(*after).size_bytes;
        tree_.erase(after->key);
    }
    if (before && continues(from_item(*before), whole)) {
        Extent longer = from_item(*before);
        longer.size_bytes += whole.size_bytes;
        tree_.update(to_item(longer));
    } else {
        tree_.insert(to_item(whole));
    }
}

void Extents::remove(std::uint64_t begin, std::uint64_t end, Effect& effect) {
    cut(begin, end, effect, nullptr);
}

/// `instead`: what comes to lie in the range.
void Extents::cut(std::uint64_t begin, std::uint64_t end, Effect& effect, const Extent* instead) {
    if (begin >= end) return;
    const auto take = [&](const Extent& extent) {
        if (extent.is_hole) return;
        effect.data_bytes -= static_cast<std::int64_t>(extent.size_bytes);
        const bool stays =
            instead && !instead->is_hole &&
            extent.extent_offset_bytes - extent.offset_bytes == instead->extent_offset_bytes - instead->offset_bytes;
        if (!stays && effect.freed) effect.freed->push_back({extent.extent_offset_bytes, extent.size_bytes});
    };
    if (begin == 0 && tree_.size() > 0 &&
        from_item(*tree_.last_at_or_before(std::numeric_limits<std::uint64_t>::max())).end_bytes() <= end) {
        for_each(take);
        tree_.clear();  // The usual truncate: costs one log entry a node, not one an extent.
        return;
    }
    for (auto found = first_behind(begin); found && found->offset_bytes < end; found = first_behind(begin)) {
        const Extent old = *found;
        const std::uint64_t from = std::max(begin, old.offset_bytes);
        const std::uint64_t to = std::min(end, old.end_bytes());
        if (old.offset_bytes < from)
            tree_.update(to_item(part_of(old, old.offset_bytes, from)));
        else
            tree_.erase(old.offset_bytes);
        if (to < old.end_bytes()) tree_.insert(to_item(part_of(old, to, old.end_bytes())));
        take(part_of(old, from, to));
    }
}

}  // namespace lamina::unionfs
