#include "daemon/child_process.h"

#include "store/error.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <spawn.h>

#include <algorithm>
#include <array>
#include <cstring>

extern char** environ;

namespace lamina::daemon {

namespace {

constexpr int kStopLookMs = 200;
constexpr std::size_t kMaxLastWords = 2048;

pid_t spawn(const std::string& program, const std::vector<std::string>& arguments, int output, int errors) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, errors, STDERR_FILENO);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    std::vector<std::string> words{program};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> pointers;
    for (std::string& word : words) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    pid_t child = 0;
    const int failed = ::posix_spawnp(&child, program.c_str(), &actions, &attributes, pointers.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (failed != 0) {
        throw store::Error(store::Errc::unavailable, "cannot start " + program + ": " + std::strerror(failed));
    }
    return child;
}

}  // namespace

ChildProcess::ChildProcess(const std::string& program, const std::vector<std::string>& arguments, std::stop_token stop)
    : program_(program), stop_(std::move(stop)) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) store::throw_errno(errno, "pipe");
    output_ = store::UniqueFd(ends[0]);
    const store::UniqueFd write_end(ends[1]);
    errors_ = store::UniqueFd(::memfd_create("stderr", MFD_CLOEXEC));
    if (!errors_) store::throw_errno(errno, "memfd");
    pid_ = spawn(program, arguments, write_end.get(), errors_.get());
}

ChildProcess::~ChildProcess() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
}

std::size_t ChildProcess::read(std::span<std::byte> out) {
    while (pid_ != 0) {
        if (stop_.stop_requested()) throw store::Error(store::Errc::cancelled, program_ + " was stopped");
        pollfd waiting{.fd = output_.get(), .events = POLLIN, .revents = 0};
        if (::poll(&waiting, 1, kStopLookMs) <= 0) continue;
        const ssize_t got = ::read(output_.get(), out.data(), out.size());
        if (got > 0) return static_cast<std::size_t>(got);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) store::throw_errno(errno, "read from " + program_);
        finish();
    }
    return 0;
}

std::string ChildProcess::run_to_end(std::size_t limit_bytes) {
    std::string text;
    std::array<std::byte, 4096> piece;
    while (const std::size_t got = read(piece)) {
        const std::size_t kept = std::min(got, limit_bytes - std::min(limit_bytes, text.size()));
        text.append(reinterpret_cast<const char*>(piece.data()), kept);
    }
    return text;
}

void ChildProcess::finish() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
    const std::string words = last_words();
    constexpr int kTryAgainExit = 75;  // EX_TEMPFAIL of sysexits.h.
    const bool may_be_repeated = WIFEXITED(status) && WEXITSTATUS(status) == kTryAgainExit;
    const std::string how = WIFSIGNALED(status) ? "was ended by signal " + std::to_string(WTERMSIG(status)) : "failed";
    throw store::Error(may_be_repeated ? store::Errc::busy : store::Errc::unavailable,
                       words.empty() ? program_ + " " + how : words);
}

std::string ChildProcess::last_words() const {
    std::array<std::byte, kMaxLastWords> buffer;
    const std::size_t got = store::read_some(errors_.get(), 0, buffer, program_);
    std::string words(reinterpret_cast<const char*>(buffer.data()), got);
    while (!words.empty() && words.back() == '\n') words.pop_back();
    std::replace(words.begin(), words.end(), '\n', ' ');
    return words;
}

}  // namespace lamina::daemon
