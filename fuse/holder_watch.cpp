#include "fuse/holder_watch.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace lamina::unionfs {
namespace {

/// A small file's text; empty when it cannot be read.
template <std::size_t kSize>
const char* read_text(const char* path, std::array<char, kSize>& room) noexcept {
    room[0] = '\0';
    const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return room.data();
    std::size_t used = 0;
    while (used < kSize - 1) {
        const ssize_t got = ::read(fd, room.data() + used, kSize - 1 - used);
        if (got <= 0) break;
        used += static_cast<std::size_t>(got);
    }
    ::close(fd);
    room[used] = '\0';
    return room.data();
}

/// As in proc(5): 'D' waits for a disk, 'T' is stopped; 0 when it is gone.
char state_of(pid_t process, const char* task) noexcept {
    std::array<char, 64> path{};
    std::snprintf(path.data(), path.size(), "/proc/%d/task/%.20s/stat", static_cast<int>(process), task);
    std::array<char, 256> room{};
    const char* const name_end = std::strrchr(read_text(path.data(), room), ')');
    return name_end != nullptr && name_end[1] == ' ' ? name_end[2] : '\0';
}

/// One that is may hold a request of which nobody can tell.
bool is_stopped(pid_t process) noexcept {
    std::array<char, 24> task{};
    std::snprintf(task.data(), task.size(), "%d", static_cast<int>(process));
    return state_of(process, task.data()) == 'T';
}

}  // namespace

void ServerWatch::start(unsigned limit_ms) noexcept {
    *this = {};
    limit_ms_ = limit_ms;
}

bool ServerWatch::is_stuck(const SessionPage& page, int fuse_fd, pid_t server) noexcept {
    pollfd waiting{.fd = fuse_fd, .events = POLLIN, .revents = 0};
    const bool serves = page.state == static_cast<std::uint64_t>(SessionPage::State::serving);
    bool requests_wait = ::poll(&waiting, 1, 0) > 0 || is_stopped(server);
    for (const SessionPage::Word& in_hand : page.in_hand) requests_wait = requests_wait || in_hand != 0;
    const std::uint64_t progress = page.progress;
    const bool is_still = progress == progress_ && (requests_wait || !serves);
    progress_ = progress;
    looks_ = is_still ? looks_ + 1 : 0;
    if (looks_ < kLooks || waits_for_disk(server)) return false;
    has_found_stuck_ = true;
    return true;
}

bool waits_for_disk(pid_t process) noexcept {
    std::array<char, 64> path{};
    std::snprintf(path.data(), path.size(), "/proc/%d/task", static_cast<int>(process));
    const int folder = ::open(path.data(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return false;
    bool waits = false;
    alignas(dirent64) std::array<char, 2048> room{};
    for (long got = 0; !waits && (got = ::syscall(SYS_getdents64, folder, room.data(), room.size())) > 0;) {
        for (long at = 0; at < got;) {
            const auto* const entry = reinterpret_cast<const dirent64*>(room.data() + at);
            waits = waits || (entry->d_name[0] != '.' && state_of(process, entry->d_name) == 'D');
            at += entry->d_reclen;
        }
    }
    ::close(folder);
    return waits;
}

std::uint64_t out_of_memory_kills() noexcept {
    static std::array<char, 16384> room;
    const char* const found = std::strstr(read_text("/proc/vmstat", room), "\noom_kill ");
    return found == nullptr ? 0 : std::strtoull(found + std::strlen("\noom_kill "), nullptr, 10);
}

std::uint64_t monotonic_ns() noexcept {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace lamina::unionfs
