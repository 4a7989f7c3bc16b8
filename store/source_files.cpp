#include "store/source_files.h"

#include "store/error.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace lamina::store {

namespace {

// O_NONBLOCK: a fifo in the folder must not hold us up; it is refused once it is open.
constexpr int kOpenFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW;

/// Component by component, for kernels and sandboxes without openat2.
int open_by_components(int folder, const std::string& path) {
    UniqueFd current(::fcntl(folder, F_DUPFD_CLOEXEC, 0));
    std::size_t begin = 0;
    while (current) {
        const std::size_t slash = path.find('/', begin);
        const std::string name = path.substr(begin, slash - begin);
        if (name.empty() || name == "." || name == "..") {
            errno = EXDEV;
            return -1;
        }
        if (slash == std::string::npos) return ::openat(current.get(), name.c_str(), kOpenFlags);
        current = UniqueFd(::openat(current.get(), name.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
        begin = slash + 1;
    }
    return -1;
}

int open_beneath(int folder, const std::string& path) {
    if (path.find('\0') != std::string::npos) {
        errno = ENOENT;
        return -1;
    }
    open_how how{};
    how.flags = kOpenFlags;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
    const long fd = ::syscall(SYS_openat2, folder, path.c_str(), &how, sizeof how);
    if (fd < 0 && (errno == ENOSYS || errno == EPERM)) return open_by_components(folder, path);
    return static_cast<int>(fd);
}

}  // namespace

std::vector<std::byte> SourceFiles::read(const std::string& path, std::uint64_t limit_bytes) const {
    const OpenFile file = open(path);
    if (file.size_bytes > limit_bytes) {
        throw Error(Errc::malformed, describe(path) + ": " + std::to_string(file.size_bytes) + " bytes, at most " +
                                         std::to_string(limit_bytes) + " are read");
    }
    std::vector<std::byte> data(static_cast<std::size_t>(file.size_bytes));
    std::span<std::byte> rest = data;
    while (!rest.empty()) {
        const std::size_t got = file.bytes->read(rest);
        if (got == 0) throw Error(Errc::corrupt, describe(path) + ": ends before its size");
        rest = rest.subspan(got);
    }
    return data;
}

FolderFiles::FolderFiles(std::string folder)
    : folder_(std::move(folder)), fd_(::open(folder_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)) {
    if (!fd_) throw_errno(errno, "open " + folder_);
}

bool FolderFiles::has(const std::string& path) const {
    if (path.find('\0') != std::string::npos) return false;
    struct stat st {};
    return ::fstatat(fd_.get(), path.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0;
}

SourceFiles::OpenFile FolderFiles::open(const std::string& path) const {
    UniqueFd fd(open_beneath(fd_.get(), path));
    if (!fd) {
        if (errno == ELOOP) throw Error(Errc::malformed, describe(path) + ": a symbolic link; links are not followed");
        if (errno == EXDEV) throw Error(Errc::malformed, describe(path) + ": outside of the folder");
        throw_errno(errno, describe(path));
    }
    struct stat st {};
    if (::fstat(fd.get(), &st) != 0) throw_errno(errno, describe(path));
    if (!S_ISREG(st.st_mode)) throw Error(Errc::malformed, describe(path) + ": not a regular file");
    OpenFile file{.size_bytes = static_cast<std::uint64_t>(st.st_size)};
    file.first_bytes.resize(4);
    file.first_bytes.resize(read_some(fd.get(), 0, file.first_bytes, describe(path)));
    file.bytes = std::make_unique<FileRangeSource>(std::move(fd), 0, file.size_bytes, describe(path));
    return file;
}

std::string FolderFiles::describe(std::string_view path) const {
    return folder_ + "/" + std::string(path);
}

FileRangeSource::FileRangeSource(UniqueFd fd, std::uint64_t offset_bytes, std::uint64_t size_bytes,
                                 std::string path_for_errors)
    : fd_(std::move(fd)), offset_bytes_(offset_bytes), left_bytes_(size_bytes), path_(std::move(path_for_errors)) {
    ::posix_fadvise(fd_.get(), static_cast<off_t>(offset_bytes), static_cast<off_t>(size_bytes), POSIX_FADV_SEQUENTIAL);
}

std::size_t FileRangeSource::read(std::span<std::byte> out) {
    const std::size_t wanted = static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), left_bytes_));
    if (wanted == 0) return 0;
    const std::size_t got = read_some(fd_.get(), offset_bytes_, out.first(wanted), path_);
    if (got == 0) throw Error(Errc::corrupt, path_ + ": ends before its size");
    offset_bytes_ += got;
    left_bytes_ -= got;
    return got;
}

}  // namespace lamina::store
