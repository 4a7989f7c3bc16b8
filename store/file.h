#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lamina::store {

/// Owns a file descriptor. Closing ignores errors, which is right for readers only; writers use File.
class UniqueFd {
public:
    UniqueFd() = default;
    explicit UniqueFd(int fd) noexcept : fd_(fd) {}
    UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    UniqueFd& operator=(UniqueFd&& other) noexcept {
        UniqueFd taken(std::move(other));  // Leaves with our old fd and closes it. Self-move is harmless.
        std::swap(fd_, taken.fd_);
        return *this;
    }
    ~UniqueFd() {
        if (fd_ >= 0) ::close(fd_);
    }
    int get() const noexcept { return fd_; }
    int release() noexcept { return std::exchange(fd_, -1); }
    explicit operator bool() const noexcept { return fd_ >= 0; }

private:
    int fd_ = -1;
};

/// A file under construction or an append-only file; every step passes the fault hook (file_ops.h). Offsets and sizes
/// are bytes. All writes are exact or throw (no_space, quota, unavailable ...). One thread at a time for append().
class File {
public:
    static File create(const std::string& path);          ///< O_CREAT | O_EXCL, mode 0600.
    static File open_append(const std::string& path);     ///< Existing; size() is the file's.
    static File create_or_open(const std::string& path);  ///< Existing or new; size() is the file's.
    File() = default;
    void append(std::span<const std::byte> data);
    void write_at(std::uint64_t offset_bytes, std::span<const std::byte> data);
    void sync_data();  ///< fdatasync
    void sync();       ///< fsync
    void truncate(std::uint64_t size_bytes);
    /// Disk space for a range, so that writes there cannot fail for lack of it; size_bytes() stays. False: the file
    /// system cannot. Throws no_space, quota.
    bool allocate(std::uint64_t offset_bytes, std::uint64_t size_bytes);
    /// Gives the range's disk space back; it reads as zeros. Nothing happens where the file system cannot.
    void punch_hole(std::uint64_t offset_bytes, std::uint64_t size_bytes);
    /// fsync, rename to `target` (same file system), fsync of the target's folder. The file stays open.
    void publish(const std::string& target);
    std::uint64_t size_bytes() const noexcept { return size_bytes_; }
    const std::string& path() const noexcept { return path_; }
    int fd() const noexcept { return fd_.get(); }

private:
    File(UniqueFd fd, std::string path, std::uint64_t size_bytes);
    UniqueFd fd_;
    std::string path_;
    std::uint64_t size_bytes_ = 0;
};

/// A read-only mapping of a whole file. Moves, never copies. A mapping of an empty file has an empty span.
class MappedFile {
public:
    MappedFile() = default;
    static MappedFile open(const std::string& path);
    static MappedFile map(int fd, const std::string& path_for_errors);
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();
    std::span<const std::byte> bytes() const noexcept { return {data_, size_bytes_}; }

private:
    const std::byte* data_ = nullptr;
    std::size_t size_bytes_ = 0;
};

UniqueFd open_read(const std::string& path);  ///< O_RDONLY | O_CLOEXEC; throws not_found and others.
/// Reads exactly out.size() bytes or throws corrupt ("path: ends before offset N").
void read_exact(int fd, std::uint64_t offset_bytes, std::span<std::byte> out, std::string_view path_for_errors);
/// Reads up to out.size() bytes; fewer only at the end of the file.
std::size_t read_some(int fd, std::uint64_t offset_bytes, std::span<std::byte> out, std::string_view path_for_errors);
std::vector<std::byte> read_file(const std::string& path, std::uint64_t limit_bytes);  ///< malformed when larger.
/// Writes `data` to `path` so that after a crash it is the old or the new file: temporary, fsync, rename, fsync folder.
void write_file_atomically(const std::string& path, std::span<const std::byte> data);

void make_folder(const std::string& path);   ///< One level, mode 0700; an existing one is fine. Syncs the parent.
void make_folders(const std::string& path);  ///< All levels.
void sync_folder(const std::string& path);
void remove_file(const std::string& path);  ///< A missing file is fine.
void remove_tree(const std::string& path);  ///< Everything below and itself; does not follow links.
void rename_durably(const std::string& from, const std::string& to);  ///< rename, then fsync of the target's folder.
std::uint64_t file_size(const std::string& path);
bool exists(const std::string& path);
std::vector<std::string> list_folder(const std::string& path);  ///< Names without "." and "..", sorted.
std::string folder_of(const std::string& path);

}  // namespace lamina::store
