// A node is a block: a header, then items (leaf) or children (inner node). A child's key is at or below all keys in it;
// that of the first child counts as minus infinity. An insertion that meets a full node splits the topmost full one
// whose parent has room, and starts again. Appends (the usual case: files written and names made in order) leave full
// nodes behind.
#include "fuse/arena_tree.h"

#include "store/error.h"

#include <algorithm>
#include <cstring>
#include <span>

namespace lamina::unionfs {

struct ArenaTree::Child {
    std::uint64_t key;
    std::uint32_t node;
    std::uint32_t reserved;
};

struct ArenaTree::Node {
    std::uint16_t level;  // 0: a leaf.
    std::uint16_t capacity;
    std::uint16_t count;
    std::uint16_t reserved;

    std::span<const TreeItem> items() const noexcept {
        return {static_cast<const TreeItem*>(static_cast<const void*>(this + 1)), count};
    }
    std::span<const Child> children() const noexcept {
        return {static_cast<const Child*>(static_cast<const void*>(this + 1)), count};
    }
    TreeItem* items_to_change() noexcept { return static_cast<TreeItem*>(static_cast<void*>(this + 1)); }
    Child* children_to_change() noexcept { return static_cast<Child*>(static_cast<void*>(this + 1)); }
    static std::uint64_t body_bytes(std::uint16_t level, std::uint16_t capacity) noexcept {
        return std::uint64_t{capacity} * (level == 0 ? sizeof(TreeItem) : sizeof(Child));
    }
    std::uint64_t body_bytes() const noexcept { return body_bytes(level, capacity); }
};

namespace {

constexpr std::uint16_t kInnerCapacity = 31;
constexpr std::array<std::uint16_t, 3> kLeafCapacities = {2, 6, 21};  // 64, 160, 512 bytes.
constexpr std::uint16_t kLeafCapacity = kLeafCapacities.back();

template <class NodeType>
NodeType& edit_node(Arena& arena, std::uint32_t index) {
    NodeType& node = arena.fresh(Ref<NodeType>{index});
    arena.save(&node, sizeof(NodeType) + node.body_bytes());
    return node;
}

template <class Entry>
void insert_at(Entry* entries, std::uint16_t& count, std::size_t position, const Entry& entry) {
    std::memmove(entries + position + 1, entries + position, (count - position) * sizeof(Entry));
    entries[position] = entry;
    ++count;
}

template <class Entry>
void erase_at(Entry* entries, std::uint16_t& count, std::size_t position) {
    --count;
    std::memmove(entries + position, entries + position + 1, (count - position) * sizeof(Entry));
}

}  // namespace

const ArenaTree::Node& ArenaTree::node(const Arena& arena, std::uint32_t index) noexcept {
    return arena.get(Ref<Node>{index});
}

std::uint32_t ArenaTree::allocate_node(std::uint16_t level, std::uint16_t capacity) {
    const auto ref = arena_.allocate<Node>(Node::body_bytes(level, capacity));
    arena_.fresh(ref).level = level;
    arena_.fresh(ref).capacity = capacity;
    return ref.index;
}

void ArenaTree::release_node(std::uint32_t index) {
    arena_.release(Ref<Node>{index}, node(index).body_bytes());
}

void ArenaTree::release_subtree(std::uint32_t index) {
    if (node(index).level > 0)
        for (const Child& child : node(index).children()) release_subtree(child.node);
    release_node(index);
}

void ArenaTree::clear() {
    if (root_.node != 0) release_subtree(root_.node);
    arena_.set(root_, TreeRoot{});
}

/// To the leaf where the key is or would be. The leaf's position is that of the first item at or after the key; the
/// positions above say which child was taken.
ArenaTree::Path ArenaTree::descend(std::uint64_t key) const {
    Path path;
    std::uint32_t index = root_.node;
    while (index != 0) {
        if (path.depth == path.steps.size()) throw store::Error(store::Errc::internal, "arena tree: too deep");
        const Node& at = node(index);
        Step& step = path.steps[path.depth++];
        step.node = index;
        if (at.level == 0) {
            const auto items = at.items();
            const auto found = std::ranges::lower_bound(items, key, {}, &TreeItem::key);
            step.position = static_cast<std::uint32_t>(found - items.begin());
            break;
        }
        const auto children = at.children();
        const auto above = std::ranges::upper_bound(children.subspan(1), key, {}, &Child::key);
        step.position = static_cast<std::uint32_t>(above - children.subspan(1).begin());
        index = children[step.position].node;
    }
    return path;
}

std::optional<TreeItem> ArenaTree::last_at_or_before(std::uint64_t key) const {
    const Path path = descend(key);
    if (path.depth == 0) return std::nullopt;
    const auto items = node(path.leaf().node).items();
    if (path.leaf().position < items.size() && items[path.leaf().position].key == key)
        return items[path.leaf().position];
    if (path.leaf().position > 0) return items[path.leaf().position - 1];
    for (unsigned step = path.depth - 1; step-- > 0;) {  // The last item of the neighbour to the left.
        if (path.steps[step].position == 0) continue;
        std::uint32_t index = node(path.steps[step].node).children()[path.steps[step].position - 1].node;
        while (node(index).level > 0) index = node(index).children().back().node;
        return node(index).items().back();
    }
    return std::nullopt;
}

std::optional<TreeItem> ArenaTree::first_at_or_after(std::uint64_t key) const {
    const TreeItem* const item = Cursor(*this, key).get();
    return item ? std::optional(*item) : std::nullopt;
}

void ArenaTree::insert(const TreeItem& item) {
    if (root_.node == 0) arena_.set(root_.node, allocate_node(0, kLeafCapacities.front()));
    for (;;) {
        const Path path = descend(item.key);
        const Node& leaf = node(path.leaf().node);
        if (leaf.count < leaf.capacity) {
            Node& changed = edit_node<Node>(arena_, path.leaf().node);
            insert_at(changed.items_to_change(), changed.count, path.leaf().position, item);
            arena_.set(root_.item_count, root_.item_count + 1);
            return;
        }
        if (leaf.capacity < kLeafCapacity) {
            grow_root_leaf();
            continue;
        }
        unsigned step = path.depth - 1;
        while (step > 0 && node(path.steps[step - 1].node).count == kInnerCapacity) --step;
        split(path, step, item.key);
    }
}

/// Only a root is smaller than a whole leaf.
void ArenaTree::grow_root_leaf() {
    const std::uint32_t old_index = root_.node;
    const auto larger = std::ranges::upper_bound(kLeafCapacities, node(old_index).capacity);
    const std::uint32_t index = allocate_node(0, *larger);
    Node& fresh = arena_.fresh(Ref<Node>{index});
    fresh.count = node(old_index).count;
    std::ranges::copy(node(old_index).items(), fresh.items_to_change());
    arena_.set(root_.node, index);
    release_node(old_index);
}

/// Splits the node at `step`, whose parent has room or which is the root, to make room for `new_key`.
void ArenaTree::split(const Path& path, unsigned step, std::uint64_t new_key) {
    const std::uint32_t left_index = path.steps[step].node;
    const bool is_leaf = node(left_index).level == 0;
    const std::uint16_t count = node(left_index).count;
    const bool is_append =
        is_leaf ? node(left_index).items().back().key < new_key : path.steps[step].position + 1U == count;
    const auto keep = static_cast<std::uint16_t>(!is_append ? count / 2 : is_leaf ? count : count - 1);
    const std::uint32_t right_index = allocate_node(node(left_index).level, node(left_index).capacity);
    Node& right = arena_.fresh(Ref<Node>{right_index});
    right.count = static_cast<std::uint16_t>(count - keep);
    std::uint64_t right_key = new_key;
    if (is_leaf) {
        std::ranges::copy(node(left_index).items().subspan(keep), right.items_to_change());
        if (right.count > 0) right_key = right.items().front().key;
    } else {
        std::ranges::copy(node(left_index).children().subspan(keep), right.children_to_change());
        right_key = right.children().front().key;
    }
    arena_.set(node(left_index).count, keep);
    std::uint32_t parent = step > 0 ? path.steps[step - 1].node : 0;
    std::uint32_t position = step > 0 ? path.steps[step - 1].position : 0;
    if (step == 0) {
        parent = allocate_node(static_cast<std::uint16_t>(node(left_index).level + 1), kInnerCapacity);
        Node& root = arena_.fresh(Ref<Node>{parent});
        root.children_to_change()[0] = {.key = 0, .node = left_index, .reserved = 0};
        root.count = 1;
        arena_.set(root_.node, parent);
    }
    Node& changed = edit_node<Node>(arena_, parent);
    insert_at(changed.children_to_change(), changed.count, position + 1,
              Child{.key = right_key, .node = right_index, .reserved = 0});
}

void ArenaTree::update(const TreeItem& item) {
    const Path path = descend(item.key);
    arena_.set(node(path.leaf().node).items()[path.leaf().position], item);
}

void ArenaTree::erase(std::uint64_t key) {
    const Path path = descend(key);
    if (path.depth == 0 || path.leaf().position >= node(path.leaf().node).count ||
        node(path.leaf().node).items()[path.leaf().position].key != key)
        throw store::Error(store::Errc::internal, "arena tree: no such key");
    Node& leaf = edit_node<Node>(arena_, path.leaf().node);
    erase_at(leaf.items_to_change(), leaf.count, path.leaf().position);
    arena_.set(root_.item_count, root_.item_count - 1);
    if (leaf.count > 0) return;
    release_node(path.leaf().node);
    if (path.depth == 1)
        arena_.set(root_.node, 0);
    else
        erase_child(path, path.depth - 2);
}

/// Takes the child of the path's way out of the inner node at `step`.
void ArenaTree::erase_child(const Path& path, unsigned step) {
    const std::uint32_t index = path.steps[step].node;
    Node& inner = edit_node<Node>(arena_, index);
    erase_at(inner.children_to_change(), inner.count, path.steps[step].position);
    if (inner.count == 0) {
        release_node(index);
        if (step == 0)
            arena_.set(root_.node, 0);
        else
            erase_child(path, step - 1);
        return;
    }
    while (node(root_.node).level > 0 && node(root_.node).count == 1) {
        const std::uint32_t old_root = root_.node;
        arena_.set(root_.node, node(old_root).children().front().node);
        release_node(old_root);
    }
}

ArenaTree::Cursor::Cursor(const ArenaTree& tree, std::uint64_t first_key)
    : arena_(tree.arena_), path_(tree.descend(first_key)) {
    leave_full_leaf();
}

const TreeItem* ArenaTree::Cursor::get() const noexcept {
    if (path_.depth == 0) return nullptr;
    return &node(arena_, path_.leaf().node).items()[path_.leaf().position];
}

void ArenaTree::Cursor::next() {
    if (path_.depth == 0) return;
    ++path_.leaf().position;
    leave_full_leaf();
}

/// Behind a leaf's last item: on to the first of the next leaf.
void ArenaTree::Cursor::leave_full_leaf() {
    if (path_.depth == 0 || path_.leaf().position < node(arena_, path_.leaf().node).count) return;
    const unsigned leaf_depth = path_.depth;
    do {
        if (--path_.depth == 0) return;
    } while (path_.leaf().position + 1 >= node(arena_, path_.leaf().node).count);
    ++path_.leaf().position;
    while (path_.depth < leaf_depth) {
        const Step& above = path_.leaf();
        path_.steps[path_.depth] = {node(arena_, above.node).children()[above.position].node, 0};
        ++path_.depth;
    }
}

}  // namespace lamina::unionfs
