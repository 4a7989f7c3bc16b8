#include "support/real_mount.h"

#include "store/file.h"
#include "support/catch.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <spawn.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

namespace lamina::test {
namespace {

constexpr std::chrono::seconds kPatience{20};
constexpr std::chrono::milliseconds kPause{2};

std::string program() {
    const char* const given = std::getenv("LAMINA_FUSE");
    return given != nullptr ? given : LAMINA_FUSE_PROGRAM;
}

}  // namespace

Ran run_program(const std::vector<std::string>& words) {
    std::array<int, 2> ends{};
    REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
    store::UniqueFd from(ends[0]);
    store::UniqueFd to(ends[1]);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, to.get(), STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, to.get(), STDERR_FILENO);
    std::vector<std::string> copies = words;
    std::vector<char*> pointers;
    for (auto& word : copies) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    pid_t child = 0;
    const int spawned = ::posix_spawnp(&child, pointers[0], &actions, nullptr, pointers.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    REQUIRE(spawned == 0);
    to = {};
    Ran ran;
    std::array<char, 4096> room{};
    for (ssize_t got = ::read(from.get(), room.data(), room.size()); got > 0;
         got = ::read(from.get(), room.data(), room.size())) {
        ran.output.append(room.data(), static_cast<std::size_t>(got));
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    ran.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return ran;
}

bool can_mount() {
    const bool is_root = ::geteuid() == 0;
    if (::access("/dev/fuse", R_OK | W_OK) != 0) {
        WARN("SKIPPED: /dev/fuse cannot be used here");
        return false;
    }
    const char* const has_set_id = "test -u \"$(command -v fusermount3)\"";
    if (!is_root && run_program({"sh", "-c", has_set_id}).exit_code != 0) {
        WARN("SKIPPED: an ordinary user needs fusermount3 to mount");
        return false;
    }
    return true;
}

RealMount::RealMount(const std::string& layer_tar) : RealMount(layer_tar, Options()) {}

RealMount::RealMount(const std::string& layer_tar, const Options& options)
    : store_(temp_ / "store"), options_(options), mountpoint_(temp_ / "mnt") {
    store_.add_layer(layer_tar);
    folder_ = store_.make_mount("0123456789abcdef", options.is_read_only);
    store::make_folder(mountpoint_);
    start();
}

RealMount::~RealMount() {
    if (is_mounted() || ::access((folder_ + "/control").c_str(), F_OK) == 0) {
        lamina_fuse({"--stop", "--force"});
        ::umount2(mountpoint_.c_str(), MNT_DETACH);
        if (::geteuid() != 0) run_program({"fusermount3", "-uzq", mountpoint_});
    }
}

Ran RealMount::lamina_fuse(const std::vector<std::string>& words) const {
    std::vector<std::string> all = {program(), "--state", folder_};
    all.insert(all.end(), words.begin(), words.end());
    return run_program(all);
}

Ran RealMount::try_start(const std::vector<std::string>& more) {
    std::vector<std::string> words = options_.arguments;
    words.insert(words.end(), more.begin(), more.end());
    words.push_back(mountpoint_);
    return lamina_fuse(words);
}

void RealMount::start() {
    const Ran ran = try_start();
    INFO(ran.output);
    REQUIRE(ran.exit_code == 0);
    REQUIRE(is_mounted());
}

void RealMount::wait_until_gone() {
    const store::UniqueFd lock(::open((folder_ + "/lock").c_str(), O_RDWR | O_CLOEXEC));
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
        REQUIRE(std::chrono::steady_clock::now() < until);
        std::this_thread::sleep_for(kPause);
    }
}

void RealMount::unmount() {
    if (::umount2(mountpoint_.c_str(), 0) != 0) {
        REQUIRE(errno == EPERM);
        REQUIRE(run_program({"fusermount3", "-u", mountpoint_}).exit_code == 0);
    }
    wait_until_gone();
}

void RealMount::kill_all(int signal) {
    const pid_t serving = server();
    REQUIRE(::kill(holder(), signal) == 0);
    REQUIRE(::kill(serving, signal) == 0);
    wait_until_gone();
    ::umount2(mountpoint_.c_str(), MNT_DETACH);
    if (::geteuid() != 0) run_program({"fusermount3", "-uzq", mountpoint_});
}

bool RealMount::is_mounted() const {
    std::ifstream mounts("/proc/self/mountinfo");
    for (std::string line; std::getline(mounts, line);) {
        if (line.find(" " + mountpoint_ + " ") != std::string::npos) return true;
    }
    return false;
}

std::string RealMount::stats() const {
    const Ran ran = lamina_fuse({"--stats"});
    INFO(ran.output);
    REQUIRE(ran.exit_code == 0);
    return ran.output;
}

std::uint64_t RealMount::number_of(const std::string& member) const {
    const std::string line = stats();
    const std::string key = "\"" + member + "\":";
    const std::size_t at = line.find(key);
    REQUIRE(at != std::string::npos);
    return std::strtoull(line.c_str() + at + key.size(), nullptr, 10);
}

pid_t RealMount::server() const {
    return static_cast<pid_t>(number_of("pid"));
}

pid_t RealMount::holder() const {
    return static_cast<pid_t>(number_of("holder_pid"));
}

RealMount::Counts RealMount::counts() const {
    const std::string line = stats();
    std::size_t at = line.find("\"requests\":{");
    REQUIRE(at != std::string::npos);
    at += std::string_view("\"requests\":{").size();
    Counts counts;
    while (line[at] == '"') {
        const std::size_t end = line.find('"', at + 1);
        std::uint64_t count = 0;
        const auto parsed = std::from_chars(line.data() + end + 2, line.data() + line.size(), count);
        counts[line.substr(at + 1, end - at - 1)] = count;
        at = static_cast<std::size_t>(parsed.ptr - line.data()) + 1;
    }
    return counts;
}

std::uint64_t total(const RealMount::Counts& counts) {
    std::uint64_t sum = 0;
    for (const auto& [kind, count] : counts) sum += count;
    return sum;
}

std::string text_of(const RealMount::Counts& counts) {
    std::string text;
    for (const auto& [kind, count] : counts) text += kind + "=" + std::to_string(count) + " ";
    return text;
}

}  // namespace lamina::test
