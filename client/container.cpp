// The order of things makes every crash repairable. A folder is made, and its lock taken, under the lock of all
// folders; what is to be taken away with it stands in its `state` before it exists. Who finds a folder whose lock is
// free takes it away, in the opposite order: container, mount, folder.

#include "client/container.h"

#include "client/connection.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <fmt/format.h>
#include <spawn.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

extern char** environ;

namespace lamina::client {

namespace json = boost::json;
namespace fs = std::filesystem;

namespace {

constexpr auto kMountLimit = std::chrono::seconds(5);
constexpr auto kRuntimeLimit = std::chrono::seconds(10);
constexpr std::array kPassedOn = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM};

[[noreturn]] void unavailable(const std::string& what, int error_number) {
    throw api::FailureError({"unavailable", what + ": " + std::strerror(error_number)});
}

std::string environment(const char* name) {
    const char* const value = std::getenv(name);
    return value ? value : "";
}

/// The folder of all containers of this user; nobody else may have a hand in it.
std::string containers_folder() {
    std::string base = "/run";
    if (::geteuid() != 0) {
        base = environment("XDG_RUNTIME_DIR");
        if (base.empty()) base = "/tmp/lamina-" + std::to_string(::geteuid());
    }
    std::error_code error;
    for (const std::string& folder : {base, base + "/lamina", base + "/lamina/containers"}) {
        if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) unavailable(folder, errno);
    }
    const std::string folder = base + "/lamina/containers";
    struct stat status {};
    if (::lstat(folder.c_str(), &status) != 0) unavailable(folder, errno);
    if (!S_ISDIR(status.st_mode) || status.st_uid != ::geteuid() || (status.st_mode & 022) != 0) {
        throw api::FailureError({"unavailable", folder + ": not a folder that is yours alone"});
    }
    return folder;
}

OwnedFd open_lock(const std::string& folder) {
    OwnedFd fd(::open((folder + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd) unavailable(folder + "/lock", errno);
    return fd;
}

std::string new_id() {
    std::array<unsigned char, 6> bytes{};
    if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) unavailable("random", errno);
    std::string id = "run-";
    for (const unsigned char byte : bytes) id += fmt::format("{:02x}", byte);
    return id;
}

void write_file(const std::string& path, const std::string& text) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << text;
    file.close();
    if (!file) unavailable("cannot write " + path, errno);
}

std::vector<char*> pointers_to(std::vector<std::string>& words) {
    std::vector<char*> pointers;
    for (std::string& word : words) pointers.push_back(word.data());
    pointers.push_back(nullptr);
    return pointers;
}

/// Without standard files. A program that is not there has done nothing either.
void run_quietly(std::vector<std::string> words) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
    }
    pid_t child = 0;
    const int failed = ::posix_spawnp(&child, words[0].c_str(), &actions, nullptr, pointers_to(words).data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    while (failed == 0 && ::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
}

/// Starts the runtime with this process' standard files, no signal held back, and `lock`, which is then held until the
/// runtime has ended. It dies with this process: what it would still do, nobody could take away.
pid_t start_runtime(std::vector<std::string> words, const OwnedFd& lock) {
    const std::vector<char*> arguments = pointers_to(words);
    const pid_t parent = ::getpid();
    const pid_t child = ::fork();
    if (child < 0) unavailable("fork", errno);
    if (child > 0) return child;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(1);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::fcntl(lock.get(), F_SETFD, 0);
    ::execv(arguments[0], arguments.data());
    const std::string why = "lamina: cannot start " + words[0] + ": " + std::strerror(errno) + "\n";
    if (::write(STDERR_FILENO, why.data(), why.size()) < 0) ::_exit(2);
    ::_exit(1);
}

/// What a folder's `state` says; nothing when a crash came before it was written, and then there is nothing else.
struct State {
    api::Places places;
    std::string runtime;
};

std::optional<State> read_state(const std::string& folder) {
    std::ifstream file(folder + "/state");
    std::ostringstream text;
    text << file.rdbuf();
    json::error_code error;
    const json::value value = json::parse(text.str(), error);
    if (error || !value.is_object()) return std::nullopt;
    const auto member = [&](const char* name) {
        const json::value* const found = value.as_object().if_contains(name);
        return found && found->is_string() ? std::string(found->as_string()) : std::string();
    };
    return State{{member("store"), member("socket")}, member("runtime")};
}

void detach(const std::string& mountpoint) {
    if (::umount2(mountpoint.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0 || errno != EPERM) return;
    run_quietly({"fusermount3", "-u", "-z", mountpoint});
}

/// Ends the mount and throws its changes away; who is in it still, is left with a mount without a place. One whose
/// client was killed may be about to begin.
void discard_mount(const State& state, const std::string& name, const std::string& mountpoint) {
    std::error_code error;
    if (!fs::exists(state.places.store, error)) return detach(mountpoint);
    const std::string target = with_query(api::path::kMounts, {{"mount", name}, {"discard", "true"}});
    const auto end = std::chrono::steady_clock::now() + kMountLimit;
    while (true) {
        try {
            Connection(state.places, true).remove(target);
            return;
        } catch (const api::FailureError& failure) {
            if (failure.failure().code == "not_found") return detach(mountpoint);
            if (std::chrono::steady_clock::now() > end) throw;
            if (failure.failure().code == "busy") detach(mountpoint);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

/// A runtime whose client was killed is being killed too.
void wait_until_free(const std::string& folder) {
    const OwnedFd lock = open_lock(folder);
    const auto end = std::chrono::steady_clock::now() + kRuntimeLimit;
    while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
        if (std::chrono::steady_clock::now() > end) unavailable("its runtime does not end", EBUSY);
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
}

/// Takes away what belongs to a folder whose lock the caller has, then the folder.
void take_away(const std::string& folder, const std::string& id) {
    const std::string mountpoint = folder + "/bundle/rootfs";
    const auto state = read_state(folder);
    std::error_code error;
    if (state && fs::exists(folder + "/runtime", error)) {  // Else another client was killed while it did this.
        wait_until_free(folder + "/runtime");
        run_quietly({state->runtime, "--root", folder + "/runtime/state", "delete", "--force", id});
        discard_mount(*state, id, mountpoint);
    }
    // A mount that is still there must not be emptied.
    if (::rmdir(mountpoint.c_str()) != 0 && errno != ENOENT) unavailable(mountpoint, errno);
    fs::remove_all(folder, error);
    if (error) throw api::FailureError({"unavailable", folder + ": " + error.message()});
}

void warn(const std::string& id, const std::exception& error) {
    fmt::print(stderr, "lamina: container {} is not taken away: {}; the next lamina run tries again\n", id,
               error.what());
}

/// Of clients that were killed. The caller has the lock of all folders.
void take_away_dead(const std::string& all) {
    for (const auto& entry : fs::directory_iterator(all)) {
        const std::string id = entry.path().filename().string();
        if (!id.starts_with("run-") || !entry.is_directory()) continue;
        try {
            const OwnedFd lock = open_lock(entry.path().string());
            if (::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) take_away(entry.path().string(), id);
        } catch (const std::exception& error) {  // One that cannot be taken away must not stop a new one.
            warn(id, error);
        }
    }
}

sigset_t passed_on(bool with_child) {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int number : kPassedOn) ::sigaddset(&set, number);
    if (with_child) ::sigaddset(&set, SIGCHLD);
    return set;
}

/// Waits for the runtime. What the terminal sends goes to all processes of its group: the runtime has it already.
int wait_for(pid_t child) {
    const sigset_t set = passed_on(true);
    while (true) {
        siginfo_t info{};
        const int number = ::sigwaitinfo(&set, &info);
        int status = 0;
        if (::waitpid(child, &status, WNOHANG) == child) {
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        if (number > 0 && number != SIGCHLD && info.si_code != SI_KERNEL) ::kill(child, number);
    }
}

}  // namespace

std::string find_runtime(const std::string& chosen) {
    const std::string named = chosen.empty() ? environment("LAMINA_RUNTIME") : chosen;
    std::vector<std::string> names{"runc", "crun"};
    if (!named.empty()) names = {named};
    std::istringstream path(environment("PATH") + ":/usr/sbin:/usr/bin:/usr/local/bin");
    std::vector<std::string> folders;
    for (std::string folder; std::getline(path, folder, ':');) folders.push_back(folder + "/");
    for (const std::string& name : names) {
        if (name.find('/') != std::string::npos) folders = {""};
        for (const std::string& folder : folders) {
            const std::string program = fs::absolute(folder + name).string();
            if (folder != "/" && ::access(program.c_str(), X_OK) == 0) return program;
        }
    }
    if (!named.empty()) throw api::FailureError({"not_found", "runtime " + named + ": no such program"});
    throw api::FailureError(
        {"unavailable", "no OCI runtime is installed: neither runc nor crun; name another with --runtime"});
}

HeldSignals::HeldSignals() {
    const sigset_t set = passed_on(true);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
}

void HeldSignals::check() {
    sigset_t waiting;
    ::sigpending(&waiting);
    for (const int number : kPassedOn) {
        if (::sigismember(&waiting, number) == 1) {
            throw api::FailureError({"cancelled", fmt::format("ended by signal {}", number)});
        }
    }
}

Container::Container(api::Places places, std::string runtime)
    : places_(std::move(places)), runtime_(std::move(runtime)), id_(new_id()) {
    const std::string all = containers_folder();
    const OwnedFd lock_of_all = open_lock(all);
    if (::flock(lock_of_all.get(), LOCK_EX) != 0) unavailable(all + "/lock", errno);
    take_away_dead(all);
    folder_ = all + "/" + id_;
    if (::mkdir(folder_.c_str(), 0700) != 0) unavailable(folder_, errno);
    lock_ = open_lock(folder_);
    if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) unavailable(folder_, errno);
    for (const std::string& folder : {folder_ + "/runtime", bundle(), root_folder()}) {
        if (::mkdir(folder.c_str(), 0700) != 0) unavailable(folder, errno);
    }
    write_file(folder_ + "/state", json::serialize(json::object{
                                       {"store", places_.store}, {"socket", places_.socket}, {"runtime", runtime_}}));
}

Container::~Container() {
    try {
        take_away(folder_, id_);
    } catch (const std::exception& error) {  // The container's exit status is worth more.
        warn(id_, error);
    }
}

int Container::run() {
    HeldSignals::check();
    const OwnedFd lock = open_lock(folder_ + "/runtime");
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) unavailable(folder_, errno);
    return wait_for(
        start_runtime({runtime_, "--root", folder_ + "/runtime/state", "run", "--bundle", bundle(), id_}, lock));
}

}  // namespace lamina::client
