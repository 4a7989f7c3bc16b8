// A mount goes on when its server dies: real mounts, real kills.
#include "store/file.h"
#include "support/catch.h"
#include "support/real_mount.h"
#include "support/tar_builder.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

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

bool sync_file(const std::string& path) {
    const store::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    return fd && ::fsync(fd.get()) == 0;
}

/// One line to a control socket, and what comes back; empty: the server was gone before it answered.
std::string ask_socket(const std::string& path, const std::string& line) {
    const store::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    REQUIRE(path.size() < sizeof address.sun_path);
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::send(fd.get(), line.data(), line.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(line.size()));
    std::array<char, 4096> room{};
    const ssize_t got = ::recv(fd.get(), room.data(), room.size(), 0);
    return {room.data(), got > 0 ? static_cast<std::size_t>(got) : 0};
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
        want(sync_file(base + "/a"));
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

TEST_CASE("open files, mappings and unlinked files live on when the server is killed",
          "[e2e][survival][death.unseen]") {
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

TEST_CASE("what was not yet in the log when the server died is there after the next mount",
          "[e2e][survival][death.unseen]") {
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

TEST_CASE("no call fails and none is made twice while servers die at every kind of point",
          "[e2e][survival][death.unseen][death.once]") {
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

TEST_CASE("marked points are for servers of a mount that serves", "[e2e][survival]") {
    if (!test::can_mount()) return;
    const Environment kills("LAMINA_KILL_POINTS", "file:15,arena:150");
    for (int round = 0; round < 20; ++round) CHECK(read_text(RealMount(image()) / "etc/motd") == "welcome");
}

TEST_CASE("a mount ends in errors, not in processes that hang, where requests cannot be sent again",
          "[e2e][survival][death.errors]") {
    if (!test::can_mount()) return;
    RealMount mount(image(), {.arguments = {"-o", "resend=off"}});
    const pid_t server = mount.server();
    REQUIRE(::kill(server, SIGKILL) == 0);
    mount.wait_until_gone();
    struct stat attributes {};  // A call that comes before the kernel has let go of the connection is aborted.
    CHECK(
        (::stat((mount / "not/looked/up").c_str(), &attributes) == -1 && (errno == ENOTCONN || errno == ECONNABORTED)));
    CHECK((::stat((mount / "not/looked/up").c_str(), &attributes) == -1 && errno == ENOTCONN));
    CHECK(read_text(mount.folder() + "/server.log").find("cannot hand its requests on") != std::string::npos);
    mount.start();
    CHECK(read_text(mount / "etc/motd") == "welcome");
}

TEST_CASE("a mount ends in errors, with a line that says so, where no server can be started any more",
          "[e2e][survival][death.errors]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const std::string base = mount.folder() + "/base";
    REQUIRE(::rename(base.c_str(), (base + ".away").c_str()) == 0);
    REQUIRE(::kill(mount.server(), SIGKILL) == 0);
    struct stat attributes {};
    CHECK(
        (::stat((mount / "not/looked/up").c_str(), &attributes) == -1 && (errno == ENOTCONN || errno == ECONNABORTED)));
    mount.wait_until_gone();
    CHECK((::stat((mount / "not/looked/up").c_str(), &attributes) == -1 && errno == ENOTCONN));
    CHECK(read_text(mount.folder() + "/server.log").find("no server can be started") != std::string::npos);
    REQUIRE(::rename((base + ".away").c_str(), base.c_str()) == 0);
    mount.start();
    CHECK(read_text(mount / "etc/motd") == "welcome");
}

TEST_CASE("an unmount leaves no process, no socket and no memory", "[e2e][survival]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    REQUIRE(::kill(mount.server(), SIGKILL) == 0);
    const pid_t holder = mount.holder();
    const pid_t server = mount.server();  // The second one.
    mount.unmount();
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (::kill(holder, 0) == 0 || ::kill(server, 0) == 0) {  // With them goes what they had mapped.
        REQUIRE(std::chrono::steady_clock::now() < until);
        std::this_thread::yield();
    }
    CHECK_FALSE(store::exists(mount.folder() + "/control"));
}

TEST_CASE("a server that stands still while requests wait is replaced", "[e2e][survival][death.stuck]") {
    if (!test::can_mount()) return;
    RealMount mount(image(), {.arguments = {"-o", "watchdog=0.3"}});
    const pid_t server = mount.server();
    REQUIRE(::kill(server, SIGSTOP) == 0);
    CHECK(read_text(mount / "etc/motd") == "welcome");
    CHECK(mount.server() != server);
    CHECK(mount.number_of("restarts") == 1);
}

TEST_CASE("another program takes over a live mount, and the old one goes on when that cannot",
          "[e2e][survival][death.upgrade]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const store::UniqueFd open(::open((mount / "etc/motd").c_str(), O_RDWR | O_CLOEXEC));
    REQUIRE(write_text(mount / "before", "x"));
    const auto ran = mount.lamina_fuse({"--upgrade"});
    INFO(ran.output);
    CHECK(ran.exit_code == 0);
    CHECK(mount.number_of("restarts") == 1);
    CHECK(::pwrite(open.get(), "W", 1, 0) == 1);
    REQUIRE(::kill(mount.server(), SIGKILL) == 0);  // The next one is of that program too.
    CHECK(read_text(mount / "before") == "x");

    const pid_t server = mount.server();
    ask_socket(mount.folder() + "/control", "{\"ask\":\"upgrade\",\"program\":\"/bin/false\"}\n");
    CHECK(read_text(mount / "etc/motd") == "Welcome");
    CHECK(mount.server() != server);
    CHECK(read_text(mount.folder() + "/server.log").find("back to the old one") != std::string::npos);
}

TEST_CASE("a request that crashes every server is answered with an error, and the rest goes on",
          "[e2e][survival][death.poison]") {
    if (!test::can_mount()) return;
    const Environment poison("LAMINA_POISON", "poisonous");
    RealMount mount(image());
    const store::UniqueFd open(::open((mount / "etc/motd").c_str(), O_RDWR | O_CLOEXEC));
    struct stat attributes {};
    CHECK((::stat((mount / "poisonous").c_str(), &attributes) == -1 && errno == EIO));
    CHECK(::pwrite(open.get(), "W", 1, 0) == 1);
    CHECK(write_text(mount / "harmless", "x"));
    CHECK(mount.number_of("restarts") == 3);
    CHECK(read_text(mount.folder() + "/server.log").find("killed the server too often") != std::string::npos);
}

TEST_CASE("what a mount changed is told whole while its server is killed over it", "[e2e][survival][death.readers]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const auto write_again = [&](const std::string& text) {  // Only the data moves.
        const std::array<timespec, 2> times{};
        REQUIRE(write_text(mount / "f0", text));
        REQUIRE(::utimensat(AT_FDCWD, (mount / "f0").c_str(), times.data(), 0) == 0);
    };
    for (int i = 0; i < 200; ++i) REQUIRE(write_text(mount / ("f" + std::to_string(i)), std::string(20'000, 'a')));
    write_again(std::string(400'000, 'a'));
    const auto diff = mount.lamina_fuse({"--diff"});
    const auto layer = mount.lamina_fuse({"--export"});
    REQUIRE((diff.exit_code == 0 && layer.exit_code == 0));
    for (int round = 0; round < 20; ++round) {
        write_again(std::string(400'000, 'b'));
        write_again(std::string(400'000, 'a'));
        const std::jthread killer([round, server = mount.server()] {
            std::this_thread::sleep_for(std::chrono::milliseconds(round));
            ::kill(server, SIGKILL);
        });
        const auto now = mount.lamina_fuse({round % 2 == 0 ? "--diff" : "--export"});
        if (round % 2 == 0) CHECK((now.exit_code == 0 && now.output == diff.output));
        if (round % 2 == 1 && now.exit_code != 75) CHECK((now.exit_code == 0 && now.output == layer.output));
    }
    CHECK(mount.number_of("restarts") == 20);
}

TEST_CASE("a server goes on without its holder, and ends the mount as ever", "[e2e][survival][death.alone]") {
    if (!test::can_mount()) return;
    RealMount mount(image());
    const pid_t holder = mount.holder();
    REQUIRE(::kill(holder, SIGKILL) == 0);
    REQUIRE(write_text(mount / "after", "x"));
    mount.unmount();
    mount.start();
    CHECK(read_text(mount / "after") == "x");
}

TEST_CASE("SIGTERM to the holder ends the mount, and nothing is left of it", "[e2e][survival][death.alone]") {
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
