#include "store/helper_program.h"

#include "store/error.h"
#include "store/file.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include <spawn.h>

#include <array>
#include <cerrno>
#include <cstring>

extern char** environ;

namespace lamina::store {

namespace {

constexpr std::size_t kMaxInputBytes = 4096;  // A pipe takes them without a reader.
constexpr std::size_t kMaxOutputBytes = 64 << 10;

struct Pipe {
    UniqueFd read_end;
    UniqueFd write_end;
};

Pipe make_pipe() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw_errno(errno, "pipe");
    return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

/// A running program; killed when it goes before wait().
class Child {
public:
    Child(const std::vector<std::string>& words, int input, int output) : name_(words.front()) {
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
        posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
        posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
        std::vector<std::string> copies = words;
        std::vector<char*> pointers;
        for (std::string& word : copies) pointers.push_back(word.data());
        pointers.push_back(nullptr);
        const int failed = ::posix_spawnp(&pid_, name_.c_str(), &actions, nullptr, pointers.data(), environ);
        posix_spawn_file_actions_destroy(&actions);
        if (failed != 0) throw Error(Errc::unavailable, "cannot start " + name_ + ": " + std::strerror(failed));
    }
    ~Child() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
        }
    }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;

    int wait() {
        int status = 0;
        while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
        }
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }

private:
    std::string name_;
    pid_t pid_ = -1;
};

std::string read_until_end(int fd, std::chrono::seconds limit, const std::string& name) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + limit;
    std::string output;
    std::array<char, 4096> piece;
    while (true) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
        if (left <= 0)
            throw Error(Errc::timed_out, name + ": still runs after " + std::to_string(limit.count()) + " s");
        pollfd waiting{.fd = fd, .events = POLLIN, .revents = 0};
        if (::poll(&waiting, 1, static_cast<int>(left)) <= 0) continue;
        const ssize_t count = ::read(fd, piece.data(), piece.size());
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) throw_errno(errno, "read from " + name);
        if (count == 0) return output;
        output.append(piece.data(), static_cast<std::size_t>(count));
        if (output.size() > kMaxOutputBytes) throw Error(Errc::malformed, name + ": prints more than 64 KiB");
    }
}

}  // namespace

HelperResult run_helper(const std::vector<std::string>& words, const std::string& input, std::chrono::seconds limit) {
    if (input.size() > kMaxInputBytes) throw Error(Errc::malformed, words.front() + ": its input is too long");
    Pipe to_program = make_pipe();
    Pipe from_program = make_pipe();
    Child child(words, to_program.read_end.get(), from_program.write_end.get());
    from_program.write_end = UniqueFd();
    // A program that does not read its input may be gone already: what it printed still counts.
    static_cast<void>(::write(to_program.write_end.get(), input.data(), input.size()) < 0);
    to_program.read_end = UniqueFd();  // Only now: a program that has ended already raises no SIGPIPE.
    to_program.write_end = UniqueFd();
    HelperResult result;
    result.output = read_until_end(from_program.read_end.get(), limit, words.front());
    result.exit_status = child.wait();
    return result;
}

}  // namespace lamina::store
