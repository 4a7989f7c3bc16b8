#pragma once

#include "fuse/arena.h"

#include <array>
#include <cstdint>
#include <optional>

namespace lamina::unionfs {

/// Where a tree lies, as a part of a record. Zeros are an empty tree.
struct TreeRoot {
    std::uint32_t node;
    std::uint32_t reserved;
    std::uint64_t item_count;
};
static_assert(sizeof(TreeRoot) == 16);

struct TreeItem {
    std::uint64_t key = 0;
    std::uint64_t first = 0;
    std::uint64_t second = 0;
};
static_assert(sizeof(TreeItem) == 24);

/// A B+ tree of items sorted by key, in an arena. A root of few items is a small block. `root` lies in the arena.
/// A leaf is given back when its last item goes; nodes are not merged before.
class ArenaTree {
public:
    ArenaTree(Arena& arena, const TreeRoot& root) : arena_(arena), root_(root) {}

    std::uint64_t size() const noexcept { return root_.item_count; }
    std::optional<TreeItem> last_at_or_before(std::uint64_t key) const;
    std::optional<TreeItem> first_at_or_after(std::uint64_t key) const;
    void insert(const TreeItem& item);  ///< The key is not there yet.
    void update(const TreeItem& item);  ///< The key is there.
    void erase(std::uint64_t key);      ///< The key is there.
    void clear();

private:
    struct Node;
    struct Child;
    struct Step {
        std::uint32_t node = 0;
        std::uint32_t position = 0;
    };
    struct Path {
        std::array<Step, 16> steps{};  // From the root down.
        unsigned depth = 0;            // 0: nowhere.
        Step& leaf() noexcept { return steps[depth - 1]; }
        const Step& leaf() const noexcept { return steps[depth - 1]; }
    };

public:
    /// Walks items in order; any change of the tree ends its validity.
    class Cursor {
    public:
        Cursor(const ArenaTree& tree, std::uint64_t first_key);
        const TreeItem* get() const noexcept;  ///< Null: at the end.
        void next();

    private:
        void leave_full_leaf();
        const Arena& arena_;
        Path path_;
    };

private:
    static const Node& node(const Arena& arena, std::uint32_t index) noexcept;
    const Node& node(std::uint32_t index) const noexcept { return node(arena_, index); }
    Path descend(std::uint64_t key) const;
    std::uint32_t allocate_node(std::uint16_t level, std::uint16_t capacity);
    void release_node(std::uint32_t index);
    void release_subtree(std::uint32_t index);
    void grow_root_leaf();
    void split(const Path& path, unsigned step, std::uint64_t new_key);
    void erase_child(const Path& path, unsigned step);

    Arena& arena_;
    const TreeRoot& root_;
};

}  // namespace lamina::unionfs
