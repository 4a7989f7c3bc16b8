// fs_worker ACTION DIRECTORY COUNT: does one kind of file-system work COUNT times and prints the seconds it took. The
// names are the same for all actions of one DIRECTORY, so that they follow each other: create, stat, ... unlink.
// Waits for a byte on standard input before it starts, so that two workers can be let go at once.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>

namespace {

constexpr std::size_t kFileBytes = 128;

[[noreturn]] void die(const std::string& what) {
    std::fprintf(stderr, "%s: %s\n", what.c_str(), std::strerror(errno));
    std::exit(1);
}

void must(int result, const std::string& what) {
    if (result < 0) die(what);
}

std::string file_name(const std::string& directory, long number) {
    return directory + "/f" + std::to_string(number);
}

void create_file(const std::string& name) {
    static const char data[kFileBytes] = {'x'};
    const int fd = ::open(name.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
    must(fd, name);
    if (::write(fd, data, sizeof data) != static_cast<ssize_t>(sizeof data)) die(name);
    must(::close(fd), name);
}

void read_file(const std::string& name) {
    char buffer[4096];
    const int fd = ::open(name.c_str(), O_RDONLY | O_CLOEXEC);
    must(fd, name);
    while (true) {
        const ssize_t got = ::read(fd, buffer, sizeof buffer);
        if (got < 0) die(name);
        if (got == 0) break;
    }
    ::close(fd);
}

void append_file(const std::string& name) {
    const int fd = ::open(name.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    must(fd, name);
    if (::write(fd, "more", 4) != 4) die(name);
    ::close(fd);
}

void list_directory(const std::string& name) {
    DIR* directory = ::opendir(name.c_str());
    if (directory == nullptr) die(name);
    while (::readdir(directory) != nullptr) {
    }
    ::closedir(directory);
}

void stat_file(const std::string& name, bool is_missing) {
    struct stat attributes {};
    const int result = ::lstat(name.c_str(), &attributes);
    if ((result != 0) != is_missing) die(name);
}

using Step = std::function<void(const std::string& directory, long number)>;

const std::map<std::string, Step>& steps() {
    static const std::map<std::string, Step> all = {
        {"create", [](const auto& d, long n) { create_file(file_name(d, n)); }},
        {"stat", [](const auto& d, long n) { stat_file(file_name(d, n), false); }},
        {"missing", [](const auto& d, long n) { stat_file(file_name(d, n) + ".none", true); }},
        {"read", [](const auto& d, long n) { read_file(file_name(d, n)); }},
        {"append", [](const auto& d, long n) { append_file(file_name(d, n)); }},
        {"chmod", [](const auto& d, long n) { must(::chmod(file_name(d, n).c_str(), 0600), d); }},
        {"rename",
         [](const auto& d, long n) { must(::rename(file_name(d, n).c_str(), (file_name(d, n) + ".new").c_str()), d); }},
        {"unlink", [](const auto& d, long n) { must(::unlink((file_name(d, n) + ".new").c_str()), d); }},
        {"mkdir", [](const auto& d, long n) { must(::mkdir((file_name(d, n) + ".d").c_str(), 0755), d); }},
        {"rmdir", [](const auto& d, long n) { must(::rmdir((file_name(d, n) + ".d").c_str()), d); }},
        {"readdir", [](const auto& d, long) { list_directory(d); }},
    };
    return all;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4 || !steps().contains(argv[1])) {
        std::fprintf(stderr, "usage: fs_worker ACTION DIRECTORY COUNT\nactions:");
        for (const auto& [name, step] : steps()) std::fprintf(stderr, " %s", name.c_str());
        std::fprintf(stderr, "\n");
        return 2;
    }
    const std::string directory = argv[2];
    const Step& step = steps().at(argv[1]);
    const long count = std::atol(argv[3]);
    ::mkdir(directory.c_str(), 0755);
    char go = 0;
    if (::read(STDIN_FILENO, &go, 1) < 0) die("standard input");
    const auto begin = std::chrono::steady_clock::now();
    for (long number = 0; number < count; ++number) step(directory, number);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    std::printf("%.6f\n", took.count());
    return 0;
}
