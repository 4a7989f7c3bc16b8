// Calls on descriptors, their bytes, and mappings.
#include "e2e/differential/calls.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <setjmp.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

namespace lamina::test::differential {
namespace {

constexpr std::size_t kMostBytes = 1 << 20;
constexpr std::size_t kMapBytes = 256 << 10;

sigjmp_buf g_bus_error;

void on_bus_error(int) {
    ::siglongjmp(g_bus_error, 1);
}

std::string data_of(const std::string& seed, std::uint64_t offset_bytes, const std::string& count) {
    return bytes_of({offset_bytes, std::min<std::uint64_t>(number_word(count), kMostBytes),
                     static_cast<unsigned>(number_word(seed))});
}

std::uint32_t type_of(int file) {
    struct stat attributes {};
    return ::fstat(file, &attributes) == 0 ? attributes.st_mode & S_IFMT : 0;
}

std::string counted(ssize_t result) {
    return result < 0 ? answer_of(result) : std::to_string(result);
}

/// Which offsets and lengths may be used depends on the disk below, so descriptors of O_DIRECT have calls of their own.
bool is_direct(int file) {
    const int flags = ::fcntl(file, F_GETFL);
    return flags >= 0 && (flags & O_DIRECT) != 0;
}

/// Memory at a block's edge.
class Blocks {
public:
    static constexpr std::size_t kBytes = 4096;
    explicit Blocks(std::uint64_t count)
        : size_bytes_(std::min<std::uint64_t>(count, 16) * kBytes),
          bytes_(static_cast<char*>(std::aligned_alloc(kBytes, size_bytes_)), &std::free) {}
    std::span<char> span() const noexcept { return {bytes_.get(), size_bytes_}; }

private:
    std::size_t size_bytes_;
    std::unique_ptr<char, decltype(&std::free)> bytes_;
};

/// Touches memory that may have lost its file: true when that raised SIGBUS.
template <class Touch>
bool raises_bus_error(Touch&& touch) {
    struct sigaction action {};
    struct sigaction before {};
    action.sa_handler = on_bus_error;
    ::sigaction(SIGBUS, &action, &before);
    volatile bool is_raised = true;
    if (::sigsetjmp(g_bus_error, 1) == 0) {
        touch();
        is_raised = false;
    }
    ::sigaction(SIGBUS, &before, nullptr);
    return is_raised;
}

/// Whether a file holds nothing but zeros in a range, of which at most the first MiB is looked at.
bool is_zero(int file, std::uint64_t begin, std::uint64_t end) {
    std::string bytes(std::min<std::uint64_t>(end - begin, kMostBytes), '\0');
    const ssize_t got = ::pread(file, bytes.data(), bytes.size(), static_cast<off_t>(begin));
    if (got < 0) return true;  // Not open for reading.
    return std::string_view(bytes.data(), static_cast<std::size_t>(got)).find_first_not_of('\0') == std::string::npos;
}

}  // namespace

void Actor::add_file_calls(std::map<std::string, Function>& table) {
    table.insert({{"open", &Actor::open},
                  {"tmpfile", &Actor::tmpfile},
                  {"linkfd", &Actor::linkfd},
                  {"close", &Actor::close},
                  {"dup", &Actor::dup},
                  {"read", &Actor::read},
                  {"pread", &Actor::pread},
                  {"write", &Actor::write},
                  {"pwrite", &Actor::pwrite},
                  {"lseek", &Actor::lseek},
                  {"ftruncate", &Actor::ftruncate},
                  {"fallocate", &Actor::fallocate},
                  {"seek", &Actor::seek},
                  {"fsync", &Actor::fsync},
                  {"fdatasync", &Actor::fdatasync},
                  {"copyrange", &Actor::copyrange},
                  {"sendfile", &Actor::sendfile},
                  {"map", &Actor::map},
                  {"mstore", &Actor::mstore},
                  {"mload", &Actor::mload},
                  {"unmap", &Actor::unmap},
                  {"dread", &Actor::dread},
                  {"dwrite", &Actor::dwrite},
                  {"flock", &Actor::flock},
                  {"setlk", &Actor::setlk}});
}

std::string Actor::open(const Words& words) {
    const int flags = flags_word(words.at(3)) | O_CLOEXEC | O_NONBLOCK;  // A fifo without the other end must not wait.
    return put(words.at(1), ::open(words.at(2).c_str(), flags, octal_word(words.at(4))));
}

std::string Actor::tmpfile(const Words& words) {
    const int flags = flags_word(words.at(3)) | O_TMPFILE | O_CLOEXEC;
    return put(words.at(1), ::open(words.at(2).c_str(), flags, octal_word(words.at(4))));
}

std::string Actor::linkfd(const Words& words) {
    return answer_of(::linkat(fd(words.at(1)), "", AT_FDCWD, words.at(2).c_str(), AT_EMPTY_PATH));
}

std::string Actor::close(const Words& words) {
    const int result = ::close(fd(words.at(1)));
    fds_.erase(words.at(1));
    listings_.erase(words.at(1));
    return answer_of(result);
}

std::string Actor::dup(const Words& words) {
    return put(words.at(2), ::fcntl(fd(words.at(1)), F_DUPFD_CLOEXEC, 0));
}

std::string Actor::read(const Words& words) {
    if (is_direct(fd(words.at(1)))) return "direct";
    if (type_of(fd(words.at(1))) == S_IFDIR) return "a folder";  // Its position is not the same on both sides.
    std::string room(std::min<std::uint64_t>(number_word(words.at(2)), kMostBytes), '\0');
    const ssize_t got = ::read(fd(words.at(1)), room.data(), room.size());
    if (got < 0) return answer_of(got);
    return digest_of(std::string_view(room.data(), static_cast<std::size_t>(got)));
}

std::string Actor::pread(const Words& words) {
    if (is_direct(fd(words.at(1)))) return "direct";
    std::string room(std::min<std::uint64_t>(number_word(words.at(3)), kMostBytes), '\0');
    const ssize_t got =
        ::pread(fd(words.at(1)), room.data(), room.size(), static_cast<off_t>(number_word(words.at(2))));
    if (got < 0) return answer_of(got);
    return digest_of(std::string_view(room.data(), static_cast<std::size_t>(got)));
}

std::string Actor::write(const Words& words) {
    if (is_direct(fd(words.at(1)))) return "direct";
    if (type_of(fd(words.at(1))) == S_IFIFO) return "a fifo";  // The kernel moves no times of ours.
    const std::string data = data_of(words.at(2), 0, words.at(3));
    return counted(::write(fd(words.at(1)), data.data(), data.size()));
}

std::string Actor::pwrite(const Words& words) {
    if (is_direct(fd(words.at(1)))) return "direct";
    const std::uint64_t offset_bytes = number_word(words.at(2));
    const std::string data = data_of(words.at(3), offset_bytes, words.at(4));
    return counted(::pwrite(fd(words.at(1)), data.data(), data.size(), static_cast<off_t>(offset_bytes)));
}

std::string Actor::lseek(const Words& words) {
    const int whence = words.at(3) == "set" ? SEEK_SET : words.at(3) == "cur" ? SEEK_CUR : SEEK_END;
    if (type_of(fd(words.at(1))) == S_IFDIR) return "a folder";
    return counted(::lseek(fd(words.at(1)), std::stoll(words.at(2)), whence));
}

std::string Actor::ftruncate(const Words& words) {
    return answer_of(::ftruncate(fd(words.at(1)), std::stoll(words.at(2))));
}

std::string Actor::fallocate(const Words& words) {
    return answer_of(
        ::fallocate(fd(words.at(1)), flags_word(words.at(2)), std::stoll(words.at(3)), std::stoll(words.at(4))));
}

// Where data begins may differ by up to a block; what is called a hole must read as zeros, and data must be there.
std::string Actor::seek(const Words& words) {
    const int file = fd(words.at(1));
    const bool wants_data = words.at(3) == "data";
    const off_t offset = std::stoll(words.at(2));
    struct stat attributes {};
    if (::fstat(file, &attributes) != 0) return answer_of(-1);
    if (!S_ISREG(attributes.st_mode)) return "no file";
    const off_t position = ::lseek(file, 0, SEEK_CUR);
    const off_t found = ::lseek(file, offset, wants_data ? SEEK_DATA : SEEK_HOLE);
    const int error = errno;
    ::lseek(file, position, SEEK_SET);
    const bool is_inside = offset >= 0 && offset < attributes.st_size;
    if (found < 0) {
        if (error == ENXIO && is_inside && wants_data)
            return is_zero(file, static_cast<std::uint64_t>(offset), static_cast<std::uint64_t>(attributes.st_size))
                       ? "ok"
                       : "no data, but there is";
        errno = error;
        return answer_of(-1);
    }
    if (found < offset || found > attributes.st_size) return "out of range";
    if (wants_data && !is_zero(file, static_cast<std::uint64_t>(offset), static_cast<std::uint64_t>(found)))
        return "data was skipped";
    return "ok";
}

std::string Actor::fsync(const Words& words) {
    return answer_of(::fsync(fd(words.at(1))));
}

std::string Actor::fdatasync(const Words& words) {
    return answer_of(::fdatasync(fd(words.at(1))));
}

std::string Actor::copyrange(const Words& words) {
    if (is_direct(fd(words.at(1))) || is_direct(fd(words.at(3)))) return "direct";
    off_t from = std::stoll(words.at(2));
    off_t to = std::stoll(words.at(4));
    return counted(::copy_file_range(fd(words.at(1)), &from, fd(words.at(3)), &to, number_word(words.at(5)), 0));
}

std::string Actor::sendfile(const Words& words) {
    if (is_direct(fd(words.at(1))) || is_direct(fd(words.at(2)))) return "direct";
    off_t from = std::stoll(words.at(3));
    return counted(::sendfile(fd(words.at(1)), fd(words.at(2)), &from, number_word(words.at(4))));
}

std::string Actor::map(const Words& words) {
    const int file = fd(words.at(2));
    const int access = ::fcntl(file, F_GETFL) & O_ACCMODE;
    const int protection = access == O_RDWR ? PROT_READ | PROT_WRITE : PROT_READ;
    void* const address = ::mmap(nullptr, kMapBytes, protection, MAP_SHARED, file, 0);
    if (address == MAP_FAILED) return answer_of(-1);
    unmap(words);
    mappings_[words.at(1)] = {address, kMapBytes, ::fcntl(file, F_DUPFD_CLOEXEC, 0), access == O_RDWR};
    return "ok";
}

// Stored bytes are written back at once: until then SEEK_DATA and times need not tell of them.
std::string Actor::mstore(const Words& words) {
    const auto found = mappings_.find(words.at(1));
    if (found == mappings_.end() || !found->second.is_writable) return "no such slot";
    const Mapping& mapping = found->second;
    struct stat attributes {};
    if (::fstat(mapping.fd, &attributes) != 0) return answer_of(-1);
    const std::uint64_t offset_bytes = number_word(words.at(2));
    const auto size_bytes = std::min(static_cast<std::uint64_t>(attributes.st_size), std::uint64_t{kMapBytes});
    if (offset_bytes >= size_bytes) return "past the end";
    const std::uint64_t count = std::min(number_word(words.at(4)), size_bytes - offset_bytes);
    const std::string data = bytes_of({offset_bytes, count, static_cast<unsigned>(number_word(words.at(3)))});
    auto* const target = static_cast<char*>(mapping.address) + offset_bytes;
    if (raises_bus_error([&] { std::memcpy(target, data.data(), data.size()); })) return "SIGBUS";
    if (::msync(mapping.address, kMapBytes, MS_SYNC) != 0 && errno != ENOMEM) return answer_of(-1);
    return std::to_string(count);
}

std::string Actor::mload(const Words& words) {
    const auto found = mappings_.find(words.at(1));
    if (found == mappings_.end()) return "no such slot";
    const std::uint64_t offset_bytes = std::min<std::uint64_t>(number_word(words.at(2)), kMapBytes);
    std::string room(std::min<std::uint64_t>(number_word(words.at(3)), kMapBytes - offset_bytes), '\0');
    const auto* const source = static_cast<const char*>(found->second.address) + offset_bytes;
    if (raises_bus_error([&] { std::memcpy(room.data(), source, room.size()); })) return "SIGBUS";
    return digest_of(room);
}

std::string Actor::unmap(const Words& words) {
    const auto found = mappings_.find(words.at(1));
    if (found == mappings_.end()) return "no such slot";
    ::munmap(found->second.address, found->second.size_bytes);
    ::close(found->second.fd);
    mappings_.erase(found);
    return "ok";
}

std::string Actor::dread(const Words& words) {
    const Blocks blocks(1 + number_word(words.at(3)));
    const auto at = static_cast<off_t>(number_word(words.at(2)) * Blocks::kBytes);
    const ssize_t got = ::pread(fd(words.at(1)), blocks.span().data(), blocks.span().size(), at);
    if (got < 0) return answer_of(got);
    return digest_of(std::string_view(blocks.span().data(), static_cast<std::size_t>(got)));
}

std::string Actor::dwrite(const Words& words) {
    const Blocks blocks(1 + number_word(words.at(4)));
    const std::uint64_t at = number_word(words.at(2)) * Blocks::kBytes;
    const std::string data = bytes_of({at, blocks.span().size(), static_cast<unsigned>(number_word(words.at(3)))});
    std::ranges::copy(data, blocks.span().begin());
    return counted(::pwrite(fd(words.at(1)), blocks.span().data(), blocks.span().size(), static_cast<off_t>(at)));
}

std::string Actor::flock(const Words& words) {
    const int kind = words.at(2) == "sh" ? LOCK_SH : words.at(2) == "ex" ? LOCK_EX : LOCK_UN;
    return answer_of(::flock(fd(words.at(1)), kind | LOCK_NB));
}

std::string Actor::setlk(const Words& words) {
    struct flock lock {};
    lock.l_type = words.at(2) == "rd" ? F_RDLCK : words.at(2) == "wr" ? F_WRLCK : F_UNLCK;
    lock.l_start = std::stoll(words.at(3));
    lock.l_len = std::stoll(words.at(4));
    return answer_of(::fcntl(fd(words.at(1)), F_SETLK, &lock));
}

}  // namespace lamina::test::differential
