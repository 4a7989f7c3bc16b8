#pragma once

#include "store/content.h"

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lamina::store {

/// Each distinct string once, by a small number; names repeat in every image.
class StringTable {
public:
    using Id = std::uint32_t;
    StringTable() = default;
    StringTable(StringTable&&) = default;  // Never copied: the keys point into texts_.
    Id add(std::string_view text);
    std::optional<Id> find(std::string_view text) const;
    std::string_view text(Id id) const { return texts_[id]; }  ///< Lives as long as the table.
    std::size_t count() const { return texts_.size(); }

private:
    // Seeded at random: names are an attacker's choice, and those of std::hash can be made to collide by the million.
    struct Hash {
        std::size_t operator()(std::string_view text) const noexcept;
    };
    std::deque<std::string> texts_;  // A deque: the map's keys point into it.
    std::unordered_map<std::string_view, Id, Hash> ids_;
};

/// An image under construction: the layers that were applied so far, merged by the rules of tree_builder.h.
///
/// A directory is known by its number in `directories()`, any other inode by its number in `inodes()`; what a later
/// layer replaced stays in both, unreachable. One thread at a time.
class MergedTree {
public:
    using Number = std::uint32_t;
    static constexpr Number kNone = 0xffffffff;
    static constexpr Number kRoot = 0;

    struct StoredPart {
        ChunkId chunk;
        std::uint64_t size_bytes;
        bool is_hole;
    };
    struct InodeData {
        FileType type = FileType::directory;
        std::uint16_t mode = 0755;
        std::uint32_t uid = 0;
        std::uint32_t gid = 0;
        std::uint32_t mtime_nanoseconds = 0;
        std::int64_t mtime_seconds = 0;
        std::uint64_t size_bytes = 0;
        std::uint32_t device_major = 0;
        std::uint32_t device_minor = 0;
        std::uint32_t xattr_set = 0;  ///< 0: none; n: xattr_sets()[n - 1].
        StringTable::Id link_target = 0;
        std::uint32_t first_part = 0;
        std::uint32_t part_count = 0;
    };
    struct Entry {
        Number number = kNone;
        bool is_directory = false;
    };
    using Entries = std::unordered_map<StringTable::Id, Entry>;
    struct Directory {
        Entries entries;
        Number attributes = kNone;  ///< In inodes(); kNone: made because something lies in it.
    };
    using XattrSet = std::vector<std::pair<StringTable::Id, StringTable::Id>>;  ///< Names and values, sorted by name.

    MergedTree();
    /// Takes one entry of the layer that is being applied, in tar order. Throws malformed; then the object is of no
    /// use.
    void add(const LayerEntry& entry);
    /// Puts the layer that was taken upon what is there.
    void finish_layer();

    const StringTable& strings() const { return strings_; }
    const std::vector<Directory>& directories() const { return directories_; }
    const std::vector<InodeData>& inodes() const { return inodes_; }
    const std::vector<XattrSet>& xattr_sets() const { return xattr_sets_; }
    std::span<const StoredPart> parts(const InodeData& file) const;

private:
    // One directory of the layer that is being applied, before it meets what is below.
    struct LayerDirectory : Directory {
        Number parent = kNone;
        StringTable::Id name = 0;
        std::vector<StringTable::Id> whiteouts;
        bool is_opaque = false;
        bool is_needed = false;  // Something that will be visible lies in it: it is made when it is missing.
    };
    struct Pair {
        Number upper;
        Number lower;
    };

    Number add_inode(const LayerEntry& entry);
    void add_content(const LayerEntry& entry, InodeData& inode);
    std::uint32_t add_xattrs(const std::map<std::string, std::string>& xattrs);
    Number parent_in_layer(std::string_view folder, bool is_needed);
    Number child_in_layer(Number parent, std::string_view name);
    void add_visible(Number parent, std::string_view name, const LayerEntry& entry);
    Number new_layer_directory(Number parent, StringTable::Id name);
    void add_directory(Number parent, StringTable::Id name, const LayerEntry& entry);
    Entry find_link_target(std::string_view path) const;
    void merge(Pair pair, std::vector<Pair>& more);
    Number merged_child(Number lower_parent, Number upper_child);
    std::string path_in_layer(Number directory) const;

    StringTable strings_;
    std::vector<Directory> directories_;
    std::vector<InodeData> inodes_;
    std::vector<StoredPart> parts_;
    std::vector<XattrSet> xattr_sets_;
    std::map<XattrSet, std::uint32_t> xattr_numbers_;
    std::vector<LayerDirectory> layer_;
    std::string last_folder_;  // Of the entry before, and its number: neighbours in a tar share it.
    Number last_parent_ = kNone;
};

}  // namespace lamina::store
