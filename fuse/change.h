#pragma once

#include "fuse/node.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

/// A finished change of a mount, as a value: what the change set applies and the log keeper writes. A live operation
/// and the replay of the log run the same ChangeSet::apply(), so that a replayed mount cannot differ from the live one.
///
/// Names and values are views into the caller's memory. `time` becomes mtime and ctime of what the operation touches.
/// `clears_privileges` is about set-id bits; security.capability goes with any other change of data in any case.
namespace lamina::unionfs::change {

/// A new inode under a name: mknod, create, mkdir, symlink. The name is free. O_TMPFILE: `name` is empty, no link.
struct Make {
    NodeId parent = 0;
    std::string_view name;
    NodeId node = 0;  ///< The next new number.
    std::uint32_t mode = 0;
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::uint64_t device = 0;
    Timestamp time;
    std::string_view link_target;
    std::string_view access_acl;   ///< Not empty: system.posix_acl_access of the new inode, inherited.
    std::string_view default_acl;  ///< Not empty: system.posix_acl_default of the new folder, inherited.
};
struct Link {
    NodeId node = 0;
    NodeId parent = 0;
    std::string_view name;
    Timestamp time;
};
/// unlink and rmdir. Where the view below has the name, a whiteout stays.
struct Remove {
    NodeId parent = 0;
    std::string_view name;
    Timestamp time;
};
struct Rename {
    NodeId old_parent = 0;
    std::string_view old_name;
    NodeId new_parent = 0;
    std::string_view new_name;
    bool is_exchange = false;  ///< Both names stay. Else an existing target is replaced.
    Timestamp time;
};
struct SetAttributes {
    NodeId node = 0;
    std::optional<std::uint32_t> mode;  ///< Permission bits. An access ACL's entries follow them.
    std::optional<std::uint32_t> uid;
    std::optional<std::uint32_t> gid;
    std::optional<Timestamp> atime;
    std::optional<Timestamp> mtime;
    bool clears_privileges = false;  ///< Set-id bits and security.capability; after the fields above.
    Timestamp ctime;
};
/// truncate. What lies past the new end is gone, also when the file grows again.
struct Resize {
    NodeId node = 0;
    std::uint64_t size_bytes = 0;
    bool clears_privileges = false;  ///< Set-id bits and security.capability.
    Timestamp time;
};
/// Bytes [offset, offset + size) of a file now lie at `extent_offset_bytes` of the extent file.
struct Write {
    NodeId node = 0;
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
    std::uint64_t extent_offset_bytes = 0;
    bool clears_privileges = false;
    bool is_mapped = false;  ///< Of a mapping's pages, which take no privileges; not even security.capability goes.
    Timestamp time;
};
/// fallocate: the range reads as zeros. `new_size_bytes`: the file's size after it.
struct Zero {
    NodeId node = 0;
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
    std::uint64_t new_size_bytes = 0;
    bool clears_privileges = false;
    Timestamp time;
};
struct SetXattr {
    NodeId node = 0;
    std::string_view name;
    std::string_view value;
    Timestamp time;
};
struct RemoveXattr {
    NodeId node = 0;
    std::string_view name;
    Timestamp time;
};

// The next four make up a checkpoint: they put a state, and say nothing of how it came about.

/// The whole state of a new or changed inode. A node below kFirstNewNode keeps its data and names from the view.
struct PutNode {
    Attributes attributes;  ///< nlink too; not `number`, which is the node's where there is a log.
    std::string_view link_target;
    std::uint64_t view_size_bytes = 0;  ///< The view's bytes show through up to here only (a truncate cut the rest).
    bool has_own_xattrs = false;        ///< The xattrs are those of the PutXattr that follow, not the view's.
};
/// A name of a folder; node 0 is a whiteout.
struct PutName {
    NodeId parent = 0;
    std::string_view name;
    NodeId node = 0;
};
struct PutExtent {
    NodeId node = 0;
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
    std::uint64_t extent_offset_bytes = 0;
    bool is_hole = false;
};
struct PutXattr {
    NodeId node = 0;
    std::string_view name;
    std::string_view value;
};
/// The number that the next new inode gets.
struct PutNextNode {
    NodeId next = kFirstNewNode;
};

using Change = std::variant<Make, Link, Remove, Rename, SetAttributes, Resize, Write, Zero, SetXattr, RemoveXattr,
                            PutNode, PutName, PutExtent, PutXattr, PutNextNode>;

/// Bytes of a change as the log holds them, without framing (fuse/FORMAT.md, "Log").
void encode(const Change& change, std::vector<std::byte>& out);
/// nullopt when malformed: a size, a count, a name (empty, ".", "..", with '/' or NUL, over 255 bytes) out of bounds.
/// The change's views point into `bytes`.
std::optional<Change> decode(std::span<const std::byte> bytes);

}  // namespace lamina::unionfs::change
