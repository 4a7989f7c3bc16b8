#include "fuse/background.h"

#include "store/error.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <string>

namespace lamina::unionfs {
namespace {

constexpr char kReady = '\0';  // In the stream of what the child writes to standard error.

void redirect(int from, int to) {
    if (::dup2(from, to) < 0) store::throw_errno(errno, "dup2");
}

std::string one_line(std::string text) {
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    for (std::size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at)) text.replace(at, 1, "; ");
    return text;
}

/// Waits for the child's word; never returns.
[[noreturn]] void report_child(int from_child, pid_t child) {
    std::string text;
    std::array<char, 1024> room{};
    while (true) {
        const ssize_t got = ::read(from_child, room.data(), room.size());
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        text.append(room.data(), static_cast<std::size_t>(got));
        if (text.find(kReady) != std::string::npos) break;
    }
    const std::size_t ready_at = text.find(kReady);
    const bool is_ready = ready_at != std::string::npos;
    const std::string said = one_line(text.substr(0, ready_at));
    if (!said.empty()) {
        std::fprintf(stderr, "%s\n", said.c_str());
    } else if (!is_ready) {
        int status = 0;
        ::waitpid(child, &status, 0);
        std::fprintf(stderr, "lamina-fuse: the server ended before it served (status %d)\n", status);
    }
    std::fflush(stderr);
    ::_exit(is_ready ? 0 : 1);
}

}  // namespace

Background Background::go(bool is_wanted) {
    if (!is_wanted) return Background(false);
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) store::throw_errno(errno, "pipe");
    store::UniqueFd from_child(ends[0]);
    store::UniqueFd to_parent(ends[1]);
    const pid_t child = ::fork();
    if (child < 0) store::throw_errno(errno, "fork");
    if (child > 0) {
        to_parent = {};
        report_child(from_child.get(), child);
    }
    ::setsid();
    redirect(to_parent.get(), STDERR_FILENO);
    return Background(true);
}

void Background::ready() {
    if (!is_child_) return;
    is_child_ = false;
    const char ready = kReady;
    if (::write(STDERR_FILENO, &ready, 1) != 1) {
        // The parent is gone; nobody waits.
    }
    const store::UniqueFd nothing(::open("/dev/null", O_RDWR | O_CLOEXEC));
    if (!nothing) return;
    for (const int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(nothing.get(), standard);
}

void close_inherited_files() {
    ::close_range(3, ~0U, 0);
}

void fill_standard_files() {
    for (int fd = ::open("/dev/null", O_RDWR); fd >= 0; fd = ::open("/dev/null", O_RDWR)) {
        if (fd > STDERR_FILENO) {
            ::close(fd);
            return;
        }
    }
}

}  // namespace lamina::unionfs
