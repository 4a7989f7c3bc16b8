// A mount goes on when its server dies: real mounts, real kills.
#include "store/file.h"
#include "support/catch.h"
#include "support/real_mount.h"
#include "support/tar_builder.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

using namespace lamina;
using test::RealMount;

namespace {

std::string image() {
    return test::TarBuilder().folder("etc").file("etc/motd", "welcome").file("data", std::string(300'000, 'd')).tar();
}

std::string read_text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

bool write_text(const std::string& path, const std::string& text) {
    std::ofstream file(path, std::ios::binary);
    file << text;
    file.close();
    return file.good();
}

void wait_for_restarts(const RealMount& mount, std::uint64_t count) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (mount.number_of("restarts") < count) {
        REQUIRE(std::chrono::steady_clock::now() < until);
        std::this_thread::yield();
    }
}

bool is_stopped(pid_t process) {
    const std::string tasks = "/proc/" + std::to_string(process) + "/task";
    for (const std::string& task : store::list_folder(tasks)) {
        const std::string line = read_text(tasks + "/" + task + "/stat");
        if (line.substr(line.rfind(')')).substr(0, 3) != ") T") return false;
    }
    return true;
}

/// Sets a variable of the environment for as long as it lives.
class Environment {
public:
    Environment(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
    ~Environment() { ::unsetenv(name_); }
    Environment(const Environment&) = delete;
    Environment& operator=(const Environment&) = delete;

private:
    const char* name_;
};

/// Makes, changes, renames and removes, and checks what each call says and what is there then. Returns how many calls
/// went wrong.
int scripted_changes(const std::string& root, int rounds) {
    int wrong = 0;
    const auto want = [&](bool is_right) { wrong += is_right ? 0 : 1; };
    for (int round = 0; round < rounds; ++round) {
        const std::string base = root + "/r" + std::to_string(round);
        want(::mkdir(base.c_str(), 0755) == 0);
        want(write_text(base + "/a", "text " + std::to_string(round)));
        want(::link((base + "/a").c_str(), (base + "/b").c_str()) == 0);
        want(::symlink("a", (base + "/s").c_str()) == 0);
        want(::rename((base + "/b").c_str(), (base + "/c").c_str()) == 0);
        want(::chmod((base + "/c").c_str(), 0600) == 0);
        want(::unlink((base + "/a").c_str()) == 0);
        want(read_text(base + "/c") == "text " + std::to_string(round));
        want(::access((base + "/a").c_str(), F_OK) != 0 && errno == ENOENT);
        want(::mkdir((base + "/d").c_str(), 0700) == 0);
        want(::rmdir((base + "/d").c_str()) == 0);
        want(::unlink((base + "/s").c_str()) == 0);
        struct stat attributes {};
        want(::stat((base + "/c").c_str(), &attributes) == 0 && attributes.st_nlink == 1 &&
             (attributes.st_mode & 07777) == 0600);
        if (round % 2 == 1) {
            want(::unlink((base + "/c").c_str()) == 0);
            want(::rmdir(base.c_str()) == 0);
        }
    }
    return wrong;
}

}  // namespace

TEST_CASE("open files, mappings and unlinked files live on when the server is killed", "[e2e][survival]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const pid_t holder = mount.holder();
    const store::UniqueFd open(::open((mount / "etc/motd").c_str(), O_RDWR | O_CLOEXEC));
    REQUIRE(write_text(mount / "gone", "unlinked"));
    const store::UniqueFd unlinked(::open((mount / "gone").c_str(), O_RDWR | O_CLOEXEC));
    REQUIRE(::unlink((mount / "gone").c_str()) == 0);
    const store::UniqueFd data(::open((mount / "data").c_str(), O_RDWR | O_CLOEXEC));
    auto* const mapped =
        static_cast<char*>(::mmap(nullptr, 300'000, PROT_READ | PROT_WRITE, MAP_SHARED, data.get(), 0));
    REQUIRE(mapped != MAP_FAILED);
    for (std::uint64_t kills = 1; kills <= 3; ++kills) {
        CAPTURE(kills);
        const pid_t server = mount.server();
        mapped[kills] = 'x';
        REQUIRE(::kill(server, SIGKILL) == 0);
        CHECK(::pwrite(open.get(), "W", 1, 0) == 1);
        wait_for_restarts(mount, kills);
        CHECK(mount.server() != server);
        CHECK(mount.holder() == holder);
        CHECK(mapped[100'000 * (kills - 1)] != '\0');
        char text[9] = {};
        CHECK(::pread(unlinked.get(), text, 8, 0) == 8);
        CHECK(std::string(text) == "unlinked");
        CHECK(::msync(mapped, 300'000, MS_SYNC) == 0);
    }
    ::munmap(mapped, 300'000);
    CHECK(read_text(mount / "etc/motd") == "Welcome");
    CHECK(read_text(mount / "data").substr(0, 6) == "dxxxdd");
    CHECK(mount.number_of("last_gap_us") > 0);
}

TEST_CASE("what was not yet in the log when the server died is there after the next mount", "[e2e][survival]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    for (int round = 0; round < 5; ++round) {
        REQUIRE(write_text(mount / ("f" + std::to_string(round)), std::string(100'000, 'a')));
        REQUIRE(::kill(mount.server(), SIGKILL) == 0);
        wait_for_restarts(mount, static_cast<std::uint64_t>(round) + 1);
    }
    REQUIRE(::rename((mount / "etc").c_str(), (mount / "moved").c_str()) == 0);
    REQUIRE(::kill(mount.server(), SIGKILL) == 0);
    mount.unmount();
    mount.start();
    for (int round = 0; round < 5; ++round)
        CHECK(read_text(mount / ("f" + std::to_string(round))) == std::string(100'000, 'a'));
    CHECK(read_text(mount / "moved/motd") == "welcome");
}

TEST_CASE("no call fails and none is made twice while servers die at every kind of point", "[e2e][survival]") {
    if (!test::can_mount()) return;
    const std::string points = GENERATE("received:30", "before_reply:30", "after_reply:30", "arena:800", "file:40");
    CAPTURE(points);
    const Environment kills("LAMINA_KILL_POINTS", points.c_str());
    RealMount mount(image());
    CHECK(scripted_changes(mount.mountpoint(), 40) == 0);
    ::unsetenv("LAMINA_KILL_POINTS");
    CHECK(mount.number_of("restarts") > 0);
    for (int round = 0; round < 40; ++round) {
        const std::string base = mount / ("r" + std::to_string(round));
        CHECK((::access(base.c_str(), F_OK) == 0) == (round % 2 == 0));
    }
}

TEST_CASE("a mount ends in errors, not in processes that hang, where requests cannot be sent again",
          "[e2e][survival]") {
    if (!test::can_mount()) return;
    RealMount mount(image(), {.arguments = {"-o", "resend=off"}});
    const pid_t server = mount.server();
    REQUIRE(::kill(server, SIGKILL) == 0);
    mount.wait_until_gone();
    struct stat attributes {};
    CHECK((::stat((mount / "not/looked/up").c_str(), &attributes) == -1 && errno == ENOTCONN));
    CHECK(read_text(mount.folder() + "/server.log").find("cannot hand its requests on") != std::string::npos);
    mount.start();
    CHECK(read_text(mount / "etc/motd") == "welcome");
}

TEST_CASE("a server that stands still while requests wait is replaced", "[e2e][survival]") {
    if (!test::can_mount()) return;
    RealMount mount(image(), {.arguments = {"-o", "watchdog=0.3"}});
    const pid_t server = mount.server();
    REQUIRE(::kill(server, SIGSTOP) == 0);
    while (!is_stopped(server)) std::this_thread::yield();  // None of its threads takes a request any more.
    CHECK(read_text(mount / "etc/motd") == "welcome");
    CHECK(mount.server() != server);
    CHECK(mount.number_of("restarts") == 1);
}

TEST_CASE("a server goes on without its holder, and ends the mount as ever", "[e2e][survival]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const pid_t holder = mount.holder();
    REQUIRE(::kill(holder, SIGKILL) == 0);
    REQUIRE(write_text(mount / "after", "x"));
    mount.unmount();
    mount.start();
    CHECK(read_text(mount / "after") == "x");
}

TEST_CASE("SIGTERM to the holder ends the mount, and nothing is left of it", "[e2e][survival]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    REQUIRE(write_text(mount / "kept", "x"));
    const pid_t server = mount.server();
    REQUIRE(::kill(mount.holder(), SIGTERM) == 0);
    mount.wait_until_gone();
    CHECK_FALSE(mount.is_mounted());
    CHECK((::kill(server, 0) == -1 && errno == ESRCH));
    CHECK_FALSE(store::exists(mount.folder() + "/control"));
    mount.start();
    CHECK(read_text(mount / "kept") == "x");
}
