#pragma once

#include "fuse/arena_tree.h"

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace lamina::unionfs {

/// A run of a file's bytes that does not come from the view: it lies in the extent file, or is a hole over view bytes.
struct Extent {
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
    std::uint64_t extent_offset_bytes = 0;  ///< 0 for holes.
    bool is_hole = false;
    std::uint64_t end_bytes() const noexcept { return offset_bytes + size_bytes; }
    bool operator==(const Extent&) const = default;
};

struct FreedExtent {
    std::uint64_t extent_offset_bytes = 0;
    std::uint64_t size_bytes = 0;
};

/// The extents of one file, sorted, without overlap; byte-granular. Neighbours that continue each other are one.
/// Sums of offset and size stay below 2^63. `root` lies in the arena.
class Extents {
public:
    Extents(Arena& arena, const TreeRoot& root) : tree_(arena, root) {}

    std::uint64_t count() const noexcept { return tree_.size(); }
    /// The first extent that ends behind an offset.
    std::optional<Extent> first_behind(std::uint64_t offset_bytes) const;
    /// How many extents a range touches, counted up to `limit`.
    std::uint64_t count_in(std::uint64_t begin, std::uint64_t end, std::uint64_t limit) const;

    /// What changes of the sum of data bytes a call makes, and the space that nothing names any more.
    struct Effect {
        std::int64_t data_bytes = 0;
        std::vector<FreedExtent>* freed = nullptr;
    };
    /// Space that stays in use at the same place of the file is not freed.
    void put(const Extent& extent, Effect& effect);
    void remove(std::uint64_t begin, std::uint64_t end, Effect& effect);

    template <class Visit>
    void for_each(Visit&& visit) const {
        for (ArenaTree::Cursor at(tree_, 0); at.get(); at.next()) visit(from_item(*at.get()));
    }

private:
    static constexpr std::uint64_t kHoleFlag = std::uint64_t{1} << 63;
    static Extent from_item(const TreeItem& item) noexcept {
        return {.offset_bytes = item.key,
                .size_bytes = item.first & ~kHoleFlag,
                .extent_offset_bytes = item.second,
                .is_hole = (item.first & kHoleFlag) != 0};
    }
    static TreeItem to_item(const Extent& extent) noexcept {
        return {extent.offset_bytes, extent.size_bytes | (extent.is_hole ? kHoleFlag : 0), extent.extent_offset_bytes};
    }
    void cut(std::uint64_t begin, std::uint64_t end, Effect& effect, const Extent* instead);

    ArenaTree tree_;
};

}  // namespace lamina::unionfs
