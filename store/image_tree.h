#pragma once

#include "store/content.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lamina::store {

/// Number of an inode in its tree: 1 is the root, then without gaps up to inode_count(). Part of the format; what stat
/// shows as st_ino.
using TreeIno = std::uint64_t;
inline constexpr TreeIno kTreeRoot = 1;

struct TreeAttributes {
    FileType type = FileType::regular;
    std::uint32_t mode = 0;  ///< 12 permission bits.
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::uint32_t nlink = 1;  ///< Of directories: 2 + subdirectories.
    std::uint64_t size_bytes = 0;
    std::uint64_t data_bytes = 0;  ///< Without holes.
    Timestamp mtime;
    std::uint32_t device_major = 0;
    std::uint32_t device_minor = 0;
    bool has_xattrs = false;
};

struct TreeName {
    std::string_view name;  ///< Lives as long as the tree.
    TreeIno ino = 0;
    FileType type = FileType::regular;
};

/// The metadata of one image, all layers merged: mapped, immutable (FORMAT.md, "Image tree").
///
/// Opening checks header and section table, in time that does not depend on the tree's size. Each 64 KiB is checked
/// against its digest when first touched, each index at use: throws corrupt. Thread-safe, takes no lock on checked
/// pages.
class ImageTree {
public:
    static std::shared_ptr<const ImageTree> open(const std::string& path, const TreeDigest& expected);
    virtual ~ImageTree() = default;

    virtual std::uint64_t inode_count() const = 0;
    virtual std::uint64_t logical_bytes() const = 0;        ///< Sum of the sizes of all regular files, each inode once.
    virtual std::uint64_t checked_block_count() const = 0;  ///< Of 64 KiB each: how much was touched so far.
    virtual bool has_xattrs() const = 0;                    ///< Any inode of it.
    virtual TreeAttributes attributes(TreeIno ino) const = 0;  ///< not_found: no such inode.
    virtual std::optional<TreeName> lookup(TreeIno directory, std::string_view name) const = 0;
    virtual std::uint32_t entry_count(TreeIno directory) const = 0;
    virtual TreeName entry(TreeIno directory, std::uint32_t position) const = 0;  ///< Sorted by name (bytes).
    virtual TreeIno parent(TreeIno directory) const = 0;  ///< Of directories only; the root's is itself.
    virtual std::string_view link_target(TreeIno symlink) const = 0;
    virtual std::vector<std::pair<std::string_view, std::string_view>> xattrs(TreeIno ino) const = 0;
    /// The parts of a regular file that overlap a range, with the file offset at which each begins. A binary search.
    struct PlacedPart {
        std::uint64_t offset_bytes = 0;
        ContentPart part;
    };
    virtual std::vector<PlacedPart> parts(TreeIno file, std::uint64_t offset_bytes, std::uint64_t size_bytes) const = 0;
    /// Checks every byte and every index; returns problems as lines. For verify.
    virtual std::vector<std::string> check() const = 0;
};

}  // namespace lamina::store
