#pragma once

#include <cstddef>
#include <cstdint>

/// Byte layout of tar headers (POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format").
namespace lamina::store {

inline constexpr std::size_t kTarBlockBytes = 512;

/// The fields that all dialects share. Numbers are octal text, or base-256 when the first byte has bit 7 set (GNU).
struct UstarHeader {
    char name[100];
    char mode[8];
    char uid[8];
    char gid[8];
    char size[12];
    char mtime[12];
    char checksum[8];  ///< Sum of all bytes of the header, these eight taken as spaces.
    char type_flag;
    char link_name[100];
    char magic[6];    ///< "ustar\0", or "ustar " (GNU), or anything (V7).
    char version[2];  ///< "00", or " \0" (GNU).
    char user_name[32];
    char group_name[32];
    char device_major[8];
    char device_minor[8];
    char prefix[155];  ///< Of POSIX headers: stands before the name, with a slash between.
    char padding[12];
};
static_assert(sizeof(UstarHeader) == kTarBlockBytes);

struct GnuSparsePart {
    char offset[12];
    char size[12];
};
static_assert(sizeof(GnuSparsePart) == 24);

/// Where a GNU header of a sparse file ('S') has other fields than a POSIX one.
struct GnuSparseHeader {
    char same_as_ustar[345];
    char atime[12];
    char ctime[12];
    char offset[12];
    char long_names[4];
    char unused[1];
    GnuSparsePart parts[4];
    char is_extended;  ///< Not 0: a GnuSparseExtension block follows.
    char real_size[12];
    char padding[17];
};
static_assert(sizeof(GnuSparseHeader) == kTarBlockBytes);
static_assert(offsetof(GnuSparseHeader, parts) == 386);
static_assert(offsetof(GnuSparseHeader, is_extended) == 482);

struct GnuSparseExtension {
    GnuSparsePart parts[21];
    char is_extended;
    char padding[7];
};
static_assert(sizeof(GnuSparseExtension) == kTarBlockBytes);

inline constexpr std::uint64_t tar_padding(std::uint64_t body_bytes) {
    return (kTarBlockBytes - body_bytes % kTarBlockBytes) % kTarBlockBytes;
}

}  // namespace lamina::store
