#include "store/sqlite_pages.h"

#include <sqlite3.h>
#include <xxhash.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <new>

// A VFS over the default one. Of the main database's file each read or write of a whole page passes the checksum; all
// else (parts of the header, the log, temporary files) is handed on. Whether pages have checksums is said by the byte
// of the database's header that tells how much of each page is left to its user. If that byte were damaged nothing
// would be checked, so page 1 is tried with the byte put right as well.
//
// SQLite asks in C: the functions here have its shapes, and hold no object that must be destroyed.

namespace lamina::store {

namespace {

constexpr std::size_t kChecksumBytes = 8;
constexpr std::size_t kReservedAt = 20;  // In the header; https://www.sqlite.org/fileformat.html
constexpr std::size_t kLeastPageBytes = 512;
constexpr std::size_t kMostPageBytes = 65536;

struct CheckedFile {
    sqlite3_file base;
    bool is_database = false;
    bool has_checksums = false;
    // The default VFS's file follows.
};
constexpr std::size_t kOwnBytes = (sizeof(CheckedFile) + 15) / 16 * 16;

CheckedFile& own(sqlite3_file* file) {
    return *reinterpret_cast<CheckedFile*>(file);
}
sqlite3_file* inner(sqlite3_file* file) {
    return reinterpret_cast<sqlite3_file*>(reinterpret_cast<std::byte*>(file) + kOwnBytes);
}
sqlite3_vfs* inner(sqlite3_vfs* vfs) {
    return static_cast<sqlite3_vfs*>(vfs->pAppData);
}

bool is_page(int size, sqlite3_int64 offset) {
    const auto bytes = static_cast<std::size_t>(size);
    return bytes >= kLeastPageBytes && bytes <= kMostPageBytes && std::has_single_bit(bytes) && offset % size == 0;
}

/// Of a page but its last bytes; a page in another's place is wrong too.
std::uint64_t checksum_of(const std::byte* page, std::size_t size, sqlite3_int64 offset) {
    return XXH3_64bits_withSeed(page, size - kChecksumBytes, static_cast<std::uint64_t>(offset));
}

bool is_right(const std::byte* page, std::size_t size, sqlite3_int64 offset) {
    std::uint64_t stored = 0;
    std::memcpy(&stored, page + size - kChecksumBytes, sizeof stored);
    return stored == checksum_of(page, size, offset);
}

bool is_sound(CheckedFile& file, const std::byte* page, std::size_t size, sqlite3_int64 offset) {
    if (offset != 0 || file.has_checksums) return !file.has_checksums || is_right(page, size, offset);
    static thread_local std::array<std::byte, kMostPageBytes> put_right;
    std::memcpy(put_right.data(), page, size);
    put_right[kReservedAt] = std::byte{kChecksumBytes};
    return !is_right(put_right.data(), size, offset);
}

void note_header(CheckedFile& file, const void* data, int size, sqlite3_int64 offset) {
    if (offset != 0 || static_cast<std::size_t>(size) <= kReservedAt) return;
    file.has_checksums = static_cast<const std::byte*>(data)[kReservedAt] == std::byte{kChecksumBytes};
}

int close_file(sqlite3_file* file) {
    return inner(file)->pMethods->xClose(inner(file));
}
int read_file(sqlite3_file* file, void* data, int size, sqlite3_int64 offset) {
    const int code = inner(file)->pMethods->xRead(inner(file), data, size, offset);
    if (code != SQLITE_OK || !own(file).is_database) return code;
    note_header(own(file), data, size, offset);
    if (!is_page(size, offset)) return code;
    const bool is_good =
        is_sound(own(file), static_cast<const std::byte*>(data), static_cast<std::size_t>(size), offset);
    return is_good ? SQLITE_OK : SQLITE_IOERR_DATA;
}
int write_file(sqlite3_file* file, const void* data, int size, sqlite3_int64 offset) {
    if (own(file).is_database) note_header(own(file), data, size, offset);
    if (!own(file).has_checksums || !is_page(size, offset)) {
        return inner(file)->pMethods->xWrite(inner(file), data, size, offset);
    }
    static thread_local std::array<std::byte, kMostPageBytes> page;
    const auto bytes = static_cast<std::size_t>(size);
    std::memcpy(page.data(), data, bytes);
    const std::uint64_t checksum = checksum_of(page.data(), bytes, offset);
    std::memcpy(page.data() + bytes - kChecksumBytes, &checksum, sizeof checksum);
    return inner(file)->pMethods->xWrite(inner(file), page.data(), size, offset);
}
int truncate_file(sqlite3_file* file, sqlite3_int64 size) {
    return inner(file)->pMethods->xTruncate(inner(file), size);
}
int sync_file(sqlite3_file* file, int flags) {
    return inner(file)->pMethods->xSync(inner(file), flags);
}
int size_of_file(sqlite3_file* file, sqlite3_int64* size) {
    return inner(file)->pMethods->xFileSize(inner(file), size);
}
int lock_file(sqlite3_file* file, int kind) {
    return inner(file)->pMethods->xLock(inner(file), kind);
}
int unlock_file(sqlite3_file* file, int kind) {
    return inner(file)->pMethods->xUnlock(inner(file), kind);
}
int is_reserved(sqlite3_file* file, int* answer) {
    return inner(file)->pMethods->xCheckReservedLock(inner(file), answer);
}
int control_file(sqlite3_file* file, int what, void* argument) {
    return inner(file)->pMethods->xFileControl(inner(file), what, argument);
}
int sector_size(sqlite3_file* file) {
    return inner(file)->pMethods->xSectorSize(inner(file));
}
int device_characteristics(sqlite3_file* file) {
    return inner(file)->pMethods->xDeviceCharacteristics(inner(file));
}

/// Version 1: no shared memory and no mappings, past which pages would be read.
constexpr sqlite3_io_methods kMethods{
    1,           close_file,  read_file,    write_file,  truncate_file,          sync_file, size_of_file, lock_file,
    unlock_file, is_reserved, control_file, sector_size, device_characteristics, nullptr,   nullptr,      nullptr,
    nullptr,     nullptr,     nullptr,
};

int open_file(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* out_flags) {
    auto* const opened = new (file) CheckedFile{};
    const int code = inner(vfs)->xOpen(inner(vfs), name, inner(file), flags, out_flags);
    opened->is_database = (flags & SQLITE_OPEN_MAIN_DB) != 0;
    opened->base.pMethods = inner(file)->pMethods ? &kMethods : nullptr;  // Set: to be closed, even when it failed.
    return code;
}
int delete_file(sqlite3_vfs* vfs, const char* name, int syncs_folder) {
    return inner(vfs)->xDelete(inner(vfs), name, syncs_folder);
}
int access_file(sqlite3_vfs* vfs, const char* name, int flags, int* answer) {
    return inner(vfs)->xAccess(inner(vfs), name, flags, answer);
}
int full_path(sqlite3_vfs* vfs, const char* name, int size, char* out) {
    return inner(vfs)->xFullPathname(inner(vfs), name, size, out);
}
int random_bytes(sqlite3_vfs* vfs, int size, char* out) {
    return inner(vfs)->xRandomness(inner(vfs), size, out);
}
int sleep_for(sqlite3_vfs* vfs, int microseconds) {
    return inner(vfs)->xSleep(inner(vfs), microseconds);
}
int current_time(sqlite3_vfs* vfs, double* out) {
    return inner(vfs)->xCurrentTime(inner(vfs), out);
}
int last_error(sqlite3_vfs* vfs, int size, char* out) {
    return inner(vfs)->xGetLastError ? inner(vfs)->xGetLastError(inner(vfs), size, out) : 0;
}
int current_time_integer(sqlite3_vfs* vfs, sqlite3_int64* out) {
    return inner(vfs)->xCurrentTimeInt64(inner(vfs), out);
}

}  // namespace

const char* checked_pages() {
    static sqlite3_vfs vfs = [] {
        sqlite3_vfs* const real = ::sqlite3_vfs_find(nullptr);
        sqlite3_vfs made{};
        made.iVersion = real->iVersion >= 2 ? 2 : 1;
        made.szOsFile = static_cast<int>(kOwnBytes) + real->szOsFile;
        made.mxPathname = real->mxPathname;
        made.zName = "lamina";
        made.pAppData = real;
        made.xOpen = open_file;
        made.xDelete = delete_file;
        made.xAccess = access_file;
        made.xFullPathname = full_path;
        made.xRandomness = random_bytes;
        made.xSleep = sleep_for;
        made.xCurrentTime = current_time;
        made.xGetLastError = last_error;
        made.xCurrentTimeInt64 = current_time_integer;
        return made;
    }();
    static const int is_registered = ::sqlite3_vfs_register(&vfs, 0);
    return is_registered == SQLITE_OK ? vfs.zName : nullptr;  // Null: the default; without memory nothing opens anyway.
}

void reserve_page_checksums(sqlite3* database) {
    int bytes = static_cast<int>(kChecksumBytes);
    ::sqlite3_file_control(database, "main", SQLITE_FCNTL_RESERVE_BYTES, &bytes);
}

}  // namespace lamina::store
