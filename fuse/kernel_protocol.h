#pragma once

// The kernel's FUSE protocol as far as the packaged libfuse 3.14 does not speak it (kernel 6.18,
// include/uapi/linux/fuse.h, protocol 7.45). The names are our own, so that newer headers may have them too.

#include <linux/fuse.h>

#include <cstddef>
#include <cstdint>

namespace lamina::unionfs::kernel {

inline constexpr std::uint32_t kOpTmpfile = 51;
inline constexpr std::uint32_t kOpStatx = 52;
inline constexpr std::uint32_t kOpCopyFileRange64 = 53;
/// One past the highest opcode that is counted by kind.
inline constexpr std::uint32_t kOpLimit = 64;

// INIT flags. The low 32 travel in `flags`, the high ones in `flags2`.
inline constexpr std::uint64_t kHasResend = std::uint64_t{1} << 39;

/// A notification, in the place of an error: send again what was not answered.
inline constexpr std::int32_t kNotifyResend = 7;

/// FATTR_* of SETATTR: kill set-id bits and file capabilities (HANDLE_KILLPRIV_V2).
inline constexpr std::uint32_t kSetattrKillPrivileges = 1U << 11;
/// Of WRITE's write_flags: pages of a mapping; and the kill bit, likewise.
inline constexpr std::uint32_t kWriteFromMapping = 1U << 0;
inline constexpr std::uint32_t kWriteKillPrivileges = 1U << 2;
/// Of SETXATTR's setxattr_flags (with SETXATTR_EXT): an ACL that takes the set-gid bit away.
inline constexpr std::uint32_t kSetxattrKillSetGid = 1U << 0;

/// Body of SETXATTR when SETXATTR_EXT was agreed on; name and value follow.
struct SetxattrIn {
    std::uint32_t size_bytes;
    std::uint32_t flags;
    std::uint32_t setxattr_flags;
    std::uint32_t padding;
};
static_assert(sizeof(SetxattrIn) == 16);

struct StatxIn {
    std::uint32_t getattr_flags;
    std::uint32_t reserved;
    std::uint64_t handle;
    std::uint32_t flags;
    std::uint32_t mask;
};
static_assert(sizeof(StatxIn) == 24);

struct StatxTime {
    std::int64_t seconds;
    std::uint32_t nanoseconds;
    std::int32_t reserved;
};
struct StatxBody {
    std::uint32_t mask;
    std::uint32_t block_bytes;
    std::uint64_t attributes;
    std::uint32_t nlink;
    std::uint32_t uid;
    std::uint32_t gid;
    std::uint16_t mode;
    std::uint16_t spare0;
    std::uint64_t ino;
    std::uint64_t size_bytes;
    std::uint64_t blocks;
    std::uint64_t attributes_mask;
    StatxTime atime;
    StatxTime birth;
    StatxTime ctime;
    StatxTime mtime;
    std::uint32_t rdev_major;
    std::uint32_t rdev_minor;
    std::uint32_t dev_major;
    std::uint32_t dev_minor;
    std::uint64_t spare2[14];
};
struct StatxOut {
    std::uint64_t attr_valid_s;
    std::uint32_t attr_valid_ns;
    std::uint32_t flags;
    std::uint64_t spare[2];
    StatxBody stat;
};
static_assert(sizeof(StatxBody) == 256 && sizeof(StatxOut) == 288);

}  // namespace lamina::unionfs::kernel
