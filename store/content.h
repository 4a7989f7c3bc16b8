#pragma once

#include "store/digest.h"

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

/// The values that pass between reading a layer, storing its bytes and building a tree.
namespace lamina::store {

/// A run of a file's bytes, in file order: a stored chunk, or a hole that reads as zeros.
struct ContentPart {
    ChunkId chunk;                 ///< Of all zeros (Digest of nothing meaningful) when `is_hole`.
    std::uint64_t size_bytes = 0;  ///< At least 1; a chunk's is at most kMaxChunkBytes (chunker.h).
    bool is_hole = false;
    static ContentPart hole(std::uint64_t size_bytes);  ///< With no_chunk() as its chunk.
    static ChunkId no_chunk();                          ///< All zeros: what a hole has in place of a chunk.
    bool operator==(const ContentPart&) const = default;
};
inline ChunkId ContentPart::no_chunk() {
    return ChunkId{Digest::from_bytes(std::array<std::byte, Digest::kSizeBytes>{})};
}
inline ContentPart ContentPart::hole(std::uint64_t size_bytes) {
    return ContentPart{.chunk = no_chunk(), .size_bytes = size_bytes, .is_hole = true};
}
using Content = std::vector<ContentPart>;  ///< The sizes add up to the file's size.

enum class FileType : std::uint8_t { regular, directory, symlink, char_device, block_device, fifo, socket };

/// Seconds may be negative; nanoseconds are 0 to 999,999,999.
struct Timestamp {
    std::int64_t seconds = 0;
    std::uint32_t nanoseconds = 0;
    auto operator<=>(const Timestamp&) const = default;
};

/// Attributes of one inode as images carry them. `mode` has the 12 permission bits only.
struct Metadata {
    FileType type = FileType::regular;
    std::uint32_t mode = 0;
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    Timestamp mtime;
    std::uint32_t device_major = 0;  ///< Of char_device and block_device only.
    std::uint32_t device_minor = 0;
    std::string link_target;                    ///< Of symlinks only.
    std::map<std::string, std::string> xattrs;  ///< Full names ("user.x"), raw values.
    bool operator==(const Metadata&) const = default;
};

/// One entry of a layer tar, its body already replaced by stored content.
///
/// `path` is relative, without "." or ".." or empty components and without trailing slash; "" is the layer's root.
/// Whiteouts are still entries named ".wh.x"; layer rules are the tree builder's.
struct LayerEntry {
    std::string path;
    bool is_hardlink = false;
    std::string hardlink_target;  ///< A path as above; only when is_hardlink, and then only `path` matters besides.
    Metadata metadata;
    std::uint64_t size_bytes = 0;  ///< Of regular files: with holes.
    Content content;               ///< Of regular files.
};

}  // namespace lamina::store
