#pragma once

#include "store/file.h"
#include "store/image_tree.h"
#include "store/tree_format.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace lamina::store {

/// An image tree in its file. The promises are those of ImageTree; this class is shared by the code that serves it
/// (image_tree.cpp) and the code that checks all of it (tree_check.cpp).
class MappedTree final : public ImageTree {
public:
    MappedTree(const std::string& path, const TreeDigest& expected);

    std::uint64_t inode_count() const override { return count(tree_format::Table::inodes); }
    std::uint64_t logical_bytes() const override { return header_.logical_bytes; }
    std::uint64_t checked_block_count() const override { return checked_blocks_.load(std::memory_order_relaxed); }
    TreeAttributes attributes(TreeIno ino) const override;
    std::optional<TreeName> lookup(TreeIno directory, std::string_view name) const override;
    std::uint32_t entry_count(TreeIno directory) const override;
    TreeName entry(TreeIno directory, std::uint32_t position) const override;
    TreeIno parent(TreeIno directory) const override;
    std::string_view link_target(TreeIno symlink) const override;
    bool has_xattrs() const override { return count(tree_format::Table::xattr_sets) != 0; }
    std::vector<std::pair<std::string_view, std::string_view>> xattrs(TreeIno ino) const override;
    std::vector<PlacedPart> parts(TreeIno file, std::uint64_t offset_bytes, std::uint64_t size_bytes) const override;
    std::vector<std::string> check() const override;

private:
    friend class TreeCheck;

    void open_header(const TreeDigest& expected);
    void check_tables() const;
    [[noreturn]] void fail(const std::string& why) const;
    std::uint64_t count(tree_format::Table table) const {
        return header_.tables[static_cast<std::uint32_t>(table)].count;
    }
    const std::byte* body_at(std::uint64_t offset_bytes, std::uint64_t size_bytes) const;
    void check_block(std::uint64_t block) const;
    template <class Record>
    Record record(tree_format::Table table, std::uint64_t number) const;
    tree_format::Inode inode(TreeIno ino) const;
    tree_format::Inode inode_of_type(TreeIno ino, FileType type) const;
    TreeName name_at(const tree_format::Inode& directory, std::uint64_t position) const;
    std::string_view string(std::uint64_t offset_bytes, std::uint64_t size_bytes) const;
    std::uint64_t part_end(const tree_format::Inode& file, std::uint64_t position) const;
    ContentPart part(const tree_format::Inode& file, std::uint64_t position, std::uint64_t begin_bytes,
                     std::uint64_t end_bytes) const;

    std::string path_;
    UniqueFd fd_;
    MappedFile mapping_;
    std::vector<std::byte> head_;  // A copy: what was checked once must not be read from the disk again.
    tree_format::Header header_{};
    std::uint64_t body_bytes_ = 0;
    mutable std::vector<std::atomic<std::uint64_t>> checked_;  // A bit per block.
    mutable std::atomic<std::uint64_t> checked_blocks_{0};
};

template <class Record>
Record MappedTree::record(tree_format::Table table, std::uint64_t number) const {
    const tree_format::TablePlace& place = header_.tables[static_cast<std::uint32_t>(table)];
    if (number >= place.count) fail("a reference outside its table");
    Record out;
    std::memcpy(&out, body_at(place.offset_bytes + number * sizeof out, sizeof out), sizeof out);
    return out;
}

}  // namespace lamina::store
