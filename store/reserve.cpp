#include "store/reserve.h"

#include "store/error.h"

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>

namespace lamina::store {

namespace {

constexpr std::uint64_t kLeastBytes = 256 << 10;
constexpr std::uint64_t kMostBytes = 4 << 20;
constexpr std::uint64_t kShareOfFree = 64;
constexpr std::uint64_t kPlentyBytes = 4 << 20;
constexpr std::uint64_t kBlockBytes = 512;  ///< The unit of st_blocks.

std::string reserve_path(const StorePaths& paths) {
    return paths.root + "/reserve";
}

}  // namespace

void keep_reserve(const StorePaths& paths) {
    const std::string path = reserve_path(paths);
    try {
        if (reserve_bytes(paths) >= kLeastBytes) return;
        remove_file(path);  // Of a crash that came before its space.
        const std::uint64_t free = free_bytes(paths);
        if (free < kPlentyBytes) return;
        const std::uint64_t size_bytes = std::clamp(free / kShareOfFree, kLeastBytes, kMostBytes);
        if (File::create(path).allocate(0, size_bytes)) return;
    } catch (const Error&) {  // Full, or not writable: then without.
    }
    try {
        remove_file(path);
    } catch (const Error&) {  // An empty file hurts nobody.
    }
}

bool give_up_reserve(const StorePaths& paths) {
    if (!exists(reserve_path(paths))) return false;
    remove_file(reserve_path(paths));
    return true;
}

std::uint64_t reserve_bytes(const StorePaths& paths) {
    struct stat st {};
    if (::lstat(reserve_path(paths).c_str(), &st) != 0) return 0;
    return static_cast<std::uint64_t>(st.st_blocks) * kBlockBytes;
}

std::uint64_t free_bytes(const StorePaths& paths) {
    struct statvfs disk {};
    if (::statvfs(paths.root.c_str(), &disk) != 0) throw_errno(errno, "statvfs " + paths.root);
    return std::uint64_t{disk.f_bavail} * disk.f_frsize;
}

}  // namespace lamina::store
