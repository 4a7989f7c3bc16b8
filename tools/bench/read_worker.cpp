// read_worker ACTION FOLDER PATHS: does one kind of reading with each path of the file PATHS (one a line, relative to
// FOLDER) and prints how many things it did. Waits for a byte on standard input before it starts.
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr std::size_t kPieceBytes = 1 << 20;
constexpr std::size_t kPageBytes = 4096;
constexpr unsigned kSeed = 7;

[[noreturn]] void die(const std::string& what) {
    std::fprintf(stderr, "%s: %s\n", what.c_str(), std::strerror(errno));
    std::exit(1);
}

int open_file(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) die(path);
    return fd;
}

std::size_t size_of(int fd, const std::string& path) {
    struct stat st {};
    if (::fstat(fd, &st) != 0) die(path);
    return static_cast<std::size_t>(st.st_size);
}

/// Goes through a folder and all below it, and asks for the attributes of each entry. Returns how many there are.
std::size_t walk(const std::string& folder) {
    DIR* const directory = ::opendir(folder.c_str());
    if (directory == nullptr) die(folder);
    std::size_t count = 0;
    std::vector<std::string> below;
    while (const dirent* const entry = ::readdir(directory)) {
        const std::string name = entry->d_name;
        if (name == "." || name == "..") continue;
        struct stat st {};
        if (::fstatat(::dirfd(directory), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) die(folder + "/" + name);
        if (S_ISDIR(st.st_mode)) below.push_back(folder + "/" + name);
        ++count;
    }
    ::closedir(directory);
    for (const std::string& path : below) count += walk(path);
    return count;
}

std::size_t list(const std::string& path) {
    DIR* const directory = ::opendir(path.c_str());
    if (directory == nullptr) die(path);
    while (::readdir(directory) != nullptr) {
    }
    ::closedir(directory);
    return 1;
}

std::size_t stat_path(const std::string& path) {
    struct stat st {};
    if (::lstat(path.c_str(), &st) != 0) die(path);
    return 1;
}

std::size_t look_for_missing(const std::string& path) {
    struct stat st {};
    if (::lstat((path + ".none").c_str(), &st) == 0 || errno != ENOENT) die(path);
    return 1;
}

/// Returns how many bytes it has.
std::size_t read_file(const std::string& path) {
    static std::vector<char> buffer(kPieceBytes);
    const int fd = open_file(path);
    std::size_t bytes = 0;
    while (true) {
        const ssize_t got = ::read(fd, buffer.data(), buffer.size());
        if (got < 0) die(path);
        if (got == 0) break;
        bytes += static_cast<std::size_t>(got);
    }
    ::close(fd);
    return bytes;
}

std::size_t open_and_read(const std::string& path) {
    read_file(path);
    return 1;
}

/// One page of sixteen, and one more, at places that are the same in each run.
std::size_t read_at_random(const std::string& path) {
    const int fd = open_file(path);
    const std::size_t pages = size_of(fd, path) / kPageBytes;
    std::minstd_rand draw(kSeed);
    std::array<char, kPageBytes> buffer;
    const std::size_t count = 1 + pages / 16;
    for (std::size_t i = 0; i < count && pages > 0; ++i) {
        const auto at = static_cast<off_t>(draw() % pages * kPageBytes);
        if (::pread(fd, buffer.data(), buffer.size(), at) < 0) die(path);
    }
    ::close(fd);
    return count;
}

std::size_t read_mapped(const std::string& path) {
    const int fd = open_file(path);
    const std::size_t bytes = size_of(fd, path);
    if (bytes == 0) return 0;
    void* const mapped = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) die(path);
    ::close(fd);
    unsigned sum = 0;
    for (std::size_t at = 0; at < bytes; at += kPageBytes) sum += static_cast<const unsigned char*>(mapped)[at];
    ::munmap(mapped, bytes);
    return sum == ~0U ? 0 : bytes;  // So that the reads are not left out.
}

const std::map<std::string, std::size_t (*)(const std::string&)>& actions() {
    static const std::map<std::string, std::size_t (*)(const std::string&)> all{
        {"walk", walk},           {"readdir", list},         {"stat", stat_path},        {"missing", look_for_missing},
        {"files", open_and_read}, {"sequential", read_file}, {"random", read_at_random}, {"mapped", read_mapped}};
    return all;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4 || !actions().contains(argv[1])) {
        std::fputs("usage: read_worker ACTION FOLDER PATHS; see tools/bench/read\n", stderr);
        return 2;
    }
    std::vector<std::string> paths;
    std::ifstream file(argv[3]);
    for (std::string line; std::getline(file, line);) paths.push_back(std::string(argv[2]) + "/" + line);
    const auto action = actions().at(argv[1]);
    char go = 0;
    if (::read(STDIN_FILENO, &go, 1) < 0) die("standard input");
    std::size_t units = 0;
    for (const std::string& path : paths) units += action(path);
    std::printf("%zu\n", units);
    return 0;
}
