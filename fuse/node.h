#pragma once

#include "store/read_view.h"

#include <sys/stat.h>

#include <cstdint>
#include <string>

namespace lamina::unionfs {

/// What the kernel calls an inode by. 1 is the root; below kFirstNewNode the view's (an image tree's inode numbers, or
/// a stack's in order of first sight), whatever was changed on them; from kFirstNewNode up new inodes, in order of
/// making, never used again. Means the same to the next server of the mount: never a pointer.
using NodeId = std::uint64_t;
inline constexpr NodeId kRootNode = 1;
inline constexpr NodeId kFirstNewNode = NodeId{1} << 40;

using store::Timestamp;

/// Attributes as stat(2) shows them. `mode` has type and permission bits as in <sys/stat.h>.
struct Attributes {
    NodeId node = 0;
    std::uint64_t number = 0;  ///< st_ino; 0: the same as `node`.
    std::uint32_t mode = 0;
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::uint32_t nlink = 1;
    std::uint64_t size_bytes = 0;
    std::uint64_t allocated_bytes = 0;  ///< st_blocks * 512: without holes.
    std::uint64_t device = 0;           ///< dev_t of device nodes (makedev).
    Timestamp atime;
    Timestamp mtime;
    Timestamp ctime;
    Timestamp birth;

    std::uint64_t shown_number() const noexcept { return number != 0 ? number : node; }
};

}  // namespace lamina::unionfs
