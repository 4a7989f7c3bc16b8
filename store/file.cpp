#include "store/file.h"

#include "store/error.h"
#include "store/file_ops.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace lamina::store {

namespace {

class KillAt : public FaultHook {
public:
    explicit KillAt(long steps) : left_(steps) {}
    void before(std::string_view, std::string_view) override {
        if (--left_ == 0) ::kill(::getpid(), SIGKILL);
    }

private:
    std::atomic<long> left_;
};

[[noreturn]] void fail(std::string_view step, std::string_view path) {
    const int error_number = errno;
    throw_errno(error_number, std::string(step) + " " + std::string(path));
}

void write_all(int fd, std::uint64_t offset_bytes, std::span<const std::byte> data, const std::string& path) {
    while (!data.empty()) {
        const ssize_t written = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset_bytes));
        if (written < 0) {
            if (errno == EINTR) continue;
            fail("write", path);
        }
        data = data.subspan(static_cast<std::size_t>(written));
        offset_bytes += static_cast<std::uint64_t>(written);
    }
}

std::string temporary_name(const std::string& path) {
    static std::atomic<unsigned> counter{0};
    return path + ".tmp" + std::to_string(::getpid()) + "-" + std::to_string(++counter);
}

}  // namespace

void install_fault_hook_from_environment() {
    const char* const text = std::getenv("LAMINA_KILL_AT");
    if (!text) return;
    static KillAt hook(std::atol(text));
    g_fault_hook.store(&hook, std::memory_order_release);
}

File::File(UniqueFd fd, std::string path, std::uint64_t size_bytes)
    : fd_(std::move(fd)), path_(std::move(path)), size_bytes_(size_bytes) {}

File File::create(const std::string& path) {
    fault_point("create", path);
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd) fail("create", path);
    return File(std::move(fd), path, 0);
}

File File::open_append(const std::string& path) {
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!fd) fail("open", path);
    struct stat st {};
    if (::fstat(fd.get(), &st) != 0) fail("stat", path);
    return File(std::move(fd), path, static_cast<std::uint64_t>(st.st_size));
}

File File::create_or_open(const std::string& path) {
    fault_point("create", path);
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd) fail("open", path);
    struct stat st {};
    if (::fstat(fd.get(), &st) != 0) fail("stat", path);
    return File(std::move(fd), path, static_cast<std::uint64_t>(st.st_size));
}

void File::append(std::span<const std::byte> data) {
    fault_point("write", path_);
    write_all(fd_.get(), size_bytes_, data, path_);
    size_bytes_ += data.size();
}

void File::write_at(std::uint64_t offset_bytes, std::span<const std::byte> data) {
    fault_point("write", path_);
    write_all(fd_.get(), offset_bytes, data, path_);
    size_bytes_ = std::max(size_bytes_, offset_bytes + data.size());
}

void File::sync_data() {
    fault_point("fsync", path_);
    if (::fdatasync(fd_.get()) != 0) fail("fdatasync", path_);
}

void File::sync() {
    fault_point("fsync", path_);
    if (::fsync(fd_.get()) != 0) fail("fsync", path_);
}

void File::truncate(std::uint64_t size_bytes) {
    fault_point("truncate", path_);
    if (::ftruncate(fd_.get(), static_cast<off_t>(size_bytes)) != 0) fail("truncate", path_);
    size_bytes_ = size_bytes;
}

bool File::allocate(std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    fault_point("allocate", path_);
    const auto offset = static_cast<off_t>(offset_bytes);
    while (::fallocate(fd_.get(), FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(size_bytes)) != 0) {
        if (errno == EINTR) continue;
        if (errno == EOPNOTSUPP || errno == ENOSYS) return false;
        if (errno == EFBIG) errno = ENOSPC;  // Past what a file can hold here: for the caller it is the same.
        fail("allocate", path_);
    }
    return true;
}

void File::punch_hole(std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    fault_point("punch", path_);
    const auto offset = static_cast<off_t>(offset_bytes);
    while (::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, static_cast<off_t>(size_bytes)) !=
           0) {
        if (errno == EINTR) continue;
        if (errno == EOPNOTSUPP || errno == ENOSYS) return;
        fail("punch", path_);
    }
}

void File::publish(const std::string& target) {
    sync();
    rename_durably(path_, target);
    path_ = target;
}

MappedFile MappedFile::open(const std::string& path) {
    const UniqueFd fd = open_read(path);
    return map(fd.get(), path);
}

MappedFile MappedFile::map(int fd, const std::string& path_for_errors) {
    struct stat st {};
    if (::fstat(fd, &st) != 0) fail("stat", path_for_errors);
    MappedFile mapped;
    if (st.st_size == 0) return mapped;
    void* const data = ::mmap(nullptr, static_cast<std::size_t>(st.st_size), PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) fail("map", path_for_errors);
    mapped.data_ = static_cast<const std::byte*>(data);
    mapped.size_bytes_ = static_cast<std::size_t>(st.st_size);
    return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    MappedFile taken(std::move(other));
    std::swap(data_, taken.data_);
    std::swap(size_bytes_, taken.size_bytes_);
    return *this;
}

MappedFile::~MappedFile() {
    if (data_) ::munmap(const_cast<std::byte*>(data_), size_bytes_);
}

UniqueFd open_read(const std::string& path) {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) fail("open", path);
    return fd;
}

std::size_t read_some(int fd, std::uint64_t offset_bytes, std::span<std::byte> out, std::string_view path_for_errors) {
    std::size_t done = 0;
    while (done < out.size()) {
        const ssize_t got = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset_bytes + done));
        if (got < 0) {
            if (errno == EINTR) continue;
            fail("read", path_for_errors);
        }
        if (got == 0) break;
        done += static_cast<std::size_t>(got);
    }
    return done;
}

void read_exact(int fd, std::uint64_t offset_bytes, std::span<std::byte> out, std::string_view path_for_errors) {
    const std::size_t got = read_some(fd, offset_bytes, out, path_for_errors);
    if (got == out.size()) return;
    throw Error(Errc::corrupt,
                std::string(path_for_errors) + ": ends before offset " + std::to_string(offset_bytes + out.size()));
}

std::vector<std::byte> read_file(const std::string& path, std::uint64_t limit_bytes) {
    const UniqueFd fd = open_read(path);
    struct stat st {};
    if (::fstat(fd.get(), &st) != 0) fail("stat", path);
    if (!S_ISREG(st.st_mode)) throw Error(Errc::malformed, path + ": not a regular file");
    if (static_cast<std::uint64_t>(st.st_size) > limit_bytes) {
        throw Error(Errc::malformed, path + ": larger than " + std::to_string(limit_bytes) + " bytes");
    }
    std::vector<std::byte> data(static_cast<std::size_t>(st.st_size));
    read_exact(fd.get(), 0, data, path);
    return data;
}

void write_file_atomically(const std::string& path, std::span<const std::byte> data) {
    const std::string temporary = temporary_name(path);
    try {
        File file = File::create(temporary);
        file.append(data);
        file.publish(path);
    } catch (...) {  // Whatever went wrong, the half-written file must not stay.
        ::unlink(temporary.c_str());
        throw;
    }
}

void make_folder(const std::string& path) {
    fault_point("mkdir", path);
    if (::mkdir(path.c_str(), 0700) == 0) {
        sync_folder(folder_of(path));
        return;
    }
    if (errno != EEXIST) fail("mkdir", path);
    struct stat st {};
    if (::stat(path.c_str(), &st) != 0) fail("stat", path);
    if (!S_ISDIR(st.st_mode)) throw_errno(ENOTDIR, "mkdir " + path);
}

void make_folders(const std::string& path) {
    if (exists(path)) return make_folder(path);
    const std::string parent = folder_of(path);
    if (parent != path) make_folders(parent);
    make_folder(path);
}

void sync_folder(const std::string& path) {
    fault_point("fsync", path);
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd) fail("open", path);
    if (::fsync(fd.get()) != 0) fail("fsync", path);
}

void remove_file(const std::string& path) {
    fault_point("unlink", path);
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) fail("unlink", path);
}

void remove_tree(const std::string& path) {
    struct stat st {};
    if (::lstat(path.c_str(), &st) != 0) {
        if (errno == ENOENT) return;
        fail("stat", path);
    }
    if (!S_ISDIR(st.st_mode)) return remove_file(path);
    for (const std::string& name : list_folder(path)) remove_tree(path + "/" + name);
    fault_point("rmdir", path);
    if (::rmdir(path.c_str()) != 0 && errno != ENOENT) fail("rmdir", path);
}

void rename_durably(const std::string& from, const std::string& to) {
    fault_point("rename", to);
    if (::rename(from.c_str(), to.c_str()) != 0) fail("rename", to);
    sync_folder(folder_of(to));
}

std::uint64_t file_size(const std::string& path) {
    struct stat st {};
    if (::stat(path.c_str(), &st) != 0) fail("stat", path);
    return static_cast<std::uint64_t>(st.st_size);
}

bool exists(const std::string& path) {
    struct stat st {};
    return ::lstat(path.c_str(), &st) == 0;
}

std::vector<std::string> list_folder(const std::string& path) {
    const auto close_folder = [](DIR* folder) { ::closedir(folder); };
    const std::unique_ptr<DIR, decltype(close_folder)> folder(::opendir(path.c_str()), close_folder);
    if (!folder) fail("open", path);
    std::vector<std::string> names;
    while (const dirent* const entry = ::readdir(folder.get())) {
        const std::string_view name = entry->d_name;
        if (name != "." && name != "..") names.emplace_back(name);
    }
    std::sort(names.begin(), names.end());
    return names;
}

std::string folder_of(const std::string& path) {
    const auto slash = path.find_last_of('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace lamina::store
