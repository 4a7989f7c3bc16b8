#include "store/blob_spool.h"

#include "store/error.h"
#include "store/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <vector>

namespace lamina::store {

namespace {

constexpr std::size_t kBufferBytes = 256 << 10;
constexpr mode_t kOwnerOnly = 0600;

UniqueFd open_spool(const std::string& path, int flags) {
    return UniqueFd(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, kOwnerOnly));
}

}  // namespace

void BlobSpool::put(std::uint64_t offset_bytes, std::span<const std::byte> bytes) const noexcept {
    const UniqueFd fd = open_spool(path_, O_WRONLY | O_CREAT);
    while (fd && !bytes.empty()) {
        const ssize_t count = ::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset_bytes));
        if (count <= 0) return;
        offset_bytes += static_cast<std::uint64_t>(count);
        bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
}

bool BlobSpool::has(std::uint64_t first, std::uint64_t end) const noexcept {
    const UniqueFd fd = open_spool(path_, O_RDONLY);
    struct stat st {};
    if (!fd || ::fstat(fd.get(), &st) != 0 || static_cast<std::uint64_t>(st.st_size) < end) return false;
    if (first == end) return true;
    const off_t hole = ::lseek(fd.get(), static_cast<off_t>(first), SEEK_HOLE);
    return hole < 0 || static_cast<std::uint64_t>(hole) >= end;
}

std::optional<BlobDigest> BlobSpool::digest(std::uint64_t size_bytes, const std::stop_token& stop) const {
    const UniqueFd fd = open_spool(path_, O_RDONLY);
    std::vector<std::byte> buffer(kBufferBytes);
    Hasher hasher;
    std::uint64_t done = 0;
    while (fd) {
        if (stop.stop_requested()) throw Error(Errc::cancelled, "stopped");
        const ssize_t count = ::read(fd.get(), buffer.data(), buffer.size());
        if (count < 0) return std::nullopt;
        if (count == 0) break;
        hasher.update(std::span(buffer).first(static_cast<std::size_t>(count)));
        done += static_cast<std::uint64_t>(count);
    }
    if (!fd || done != size_bytes) return std::nullopt;
    return BlobDigest{hasher.finish()};
}

}  // namespace lamina::store
