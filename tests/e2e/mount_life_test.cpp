#include "store/file.h"
#include "support/catch.h"
#include "support/real_mount.h"
#include "support/tar_builder.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <fstream>
#include <thread>

using namespace lamina;
using test::RealMount;

namespace {

std::string small_image() {
    return test::TarBuilder().folder("etc").file("etc/motd", "welcome").symlink("link", "etc/motd").tar();
}

std::string read_text(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

void write_text(const std::string& path, const std::string& text, bool syncs = false) {
    const store::UniqueFd fd(::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644));
    REQUIRE(fd);
    REQUIRE(::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    if (syncs) REQUIRE(::fsync(fd.get()) == 0);
}

std::string pattern(std::size_t size_bytes, unsigned seed) {
    std::string bytes(size_bytes, '\0');
    unsigned state = seed * 2654435761U + 1;
    for (char& byte : bytes) {
        state = state * 1664525U + 1013904223U;
        byte = static_cast<char>(state >> 24);
    }
    return bytes;
}

}  // namespace

TEST_CASE("what was changed is there after an unmount and the next mount", "[e2e]") {
    if (!test::can_mount()) return;
    RealMount mount(small_image());
    CHECK(read_text(mount / "etc/motd") == "welcome");
    write_text(mount / "etc/motd", "goodbye");
    write_text(mount / "new", pattern(3'000'000, 1));
    REQUIRE(::mkdir((mount / "folder").c_str(), 0700) == 0);
    REQUIRE(::rename((mount / "etc").c_str(), (mount / "folder/etc2").c_str()) == 0);

    mount.unmount();
    CHECK_FALSE(mount.is_mounted());
    mount.start();

    CHECK(read_text(mount / "folder/etc2/motd") == "goodbye");
    CHECK(read_text(mount / "new") == pattern(3'000'000, 1));
    CHECK(::access((mount / "etc").c_str(), F_OK) != 0);
}

TEST_CASE("what was synced is there after holder and server were killed", "[e2e][crash][death.next-mount]") {
    if (!test::can_mount()) return;
    RealMount mount(small_image());
    for (int round = 0; round < 3; ++round) {
        const std::string name = "synced" + std::to_string(round);
        write_text(mount / name, pattern(200'000, static_cast<unsigned>(round)), true);
        mount.kill_all(SIGKILL);
        mount.start();
        for (int i = 0; i <= round; ++i) {
            CHECK(read_text(mount / ("synced" + std::to_string(i))) == pattern(200'000, static_cast<unsigned>(i)));
        }
        CHECK(read_text(mount / "etc/motd") == "welcome");
    }
}

TEST_CASE("a mount whose holder and server are dead gives way to a new one on the same mount point", "[e2e][crash]") {
    if (!test::can_mount()) return;
    RealMount mount(small_image());
    write_text(mount / "synced", "text", true);
    const pid_t server = mount.server();
    REQUIRE(::kill(mount.holder(), SIGKILL) == 0);
    REQUIRE(::kill(server, SIGKILL) == 0);
    mount.wait_until_gone();
    CHECK(::access((mount / "etc").c_str(), F_OK) != 0);
    mount.start();
    CHECK(read_text(mount / "synced") == "text");
}

TEST_CASE("a server ends when its mount does, in whatever way, and the mount can start again", "[e2e]") {
    if (!test::can_mount()) return;
    const std::string way = GENERATE("umount", "fusermount3", "--stop", "SIGTERM", "SIGINT");
    CAPTURE(way);
    RealMount mount(small_image());
    write_text(mount / "kept", way);
    if (way == "umount") {
        mount.unmount();
    } else if (way == "fusermount3") {
        REQUIRE(test::run_program({"fusermount3", "-u", mount.mountpoint()}).exit_code == 0);
    } else if (way == "--stop") {
        const auto ran = mount.lamina_fuse({"--stop"});
        CHECK(ran.output == "{\"ok\":true}\n");
    } else {
        REQUIRE(::kill(mount.server(), way == "SIGTERM" ? SIGTERM : SIGINT) == 0);
    }
    mount.wait_until_gone();
    CHECK_FALSE(mount.is_mounted());
    CHECK_FALSE(store::exists(mount.folder() + "/control"));
    mount.start();
    CHECK(read_text(mount / "kept") == way);
}

TEST_CASE("a mount in use is not stopped unless forced", "[e2e]") {
    if (!test::can_mount()) return;
    RealMount mount(small_image());
    const store::UniqueFd held = store::open_read(mount / "etc/motd");

    const auto refused = mount.lamina_fuse({"--stop"});
    CHECK(refused.exit_code == 1);
    CHECK(refused.output.find("\"code\":\"busy\"") != std::string::npos);
    CHECK(read_text(mount / "etc/motd") == "welcome");

    CHECK(mount.lamina_fuse({"--stop", "--force"}).exit_code == 0);
    mount.wait_until_gone();
    CHECK_FALSE(mount.is_mounted());
}

TEST_CASE("SIGTERM under load ends the server, and what was synced stays", "[e2e]") {
    if (!test::can_mount()) return;
    RealMount mount(small_image());
    std::atomic<bool> is_over{false};
    std::atomic<int> written{0};
    std::atomic<int> ended{0};
    std::vector<std::jthread> writers;
    for (int client = 0; client < 2; ++client) {
        writers.emplace_back([&, client] {
            for (int i = 0; !is_over; ++i) {
                const std::string name = mount / ("w" + std::to_string(client) + "." + std::to_string(i));
                const store::UniqueFd fd(::open(name.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
                if (!fd || ::write(fd.get(), "x", 1) != 1) break;
                if (i == 50 && ::fsync(fd.get()) != 0) break;
                ++written;
            }
            ++ended;
        });
    }
    while (written < 400 && ended == 0) std::this_thread::yield();
    REQUIRE(::kill(mount.server(), SIGTERM) == 0);
    mount.wait_until_gone();
    is_over = true;
    writers.clear();
    CHECK_FALSE(mount.is_mounted());
    mount.start();
    CHECK(read_text(mount / "w0.50") == "x");
    CHECK(read_text(mount / "w1.50") == "x");
    CHECK(read_text(mount / "w0.10") == "x");
}

TEST_CASE("what is root's in the image is the user's in a mount of his own", "[e2e][owners.user-mount]") {
    if (!test::can_mount()) return;
    RealMount mount(test::TarBuilder().file("roots", "").file("others", "", {.uid = 4321, .gid = 4322}).tar());
    write_text(mount / "mine", "x");
    for (const char* const name : {"roots", "mine"}) {
        struct stat attributes {};
        REQUIRE(::lstat((mount / name).c_str(), &attributes) == 0);
        CHECK(attributes.st_uid == ::geteuid());
        CHECK(attributes.st_gid == ::getegid());
    }
    struct stat others {};
    REQUIRE(::lstat((mount / "others").c_str(), &others) == 0);
    CHECK(others.st_uid == 4321);
    CHECK(others.st_gid == 4322);
    CHECK(::chown((mount / "roots").c_str(), ::geteuid(), ::getegid()) == 0);
}

TEST_CASE("two clients at once see each its own and the other's files whole", "[e2e]") {
    if (!test::can_mount()) return;
    RealMount mount(small_image());
    constexpr int kFiles = 300;
    std::vector<std::jthread> clients;
    std::atomic<int> failures{0};
    for (int client = 0; client < 2; ++client) {
        clients.emplace_back([&, client] {
            for (int i = 0; i < kFiles; ++i) {
                const std::string name = mount / (std::to_string(client) + "." + std::to_string(i));
                std::ofstream(name) << name;
                if (read_text(name) != name) ++failures;
                if (i % 3 == 0 && ::rename(name.c_str(), (name + "r").c_str()) != 0) ++failures;
            }
        });
    }
    clients.clear();
    CHECK(failures == 0);
    for (int i = 0; i < kFiles; ++i) {
        const std::string name = mount / ("1." + std::to_string(i));
        CHECK(read_text(i % 3 == 0 ? name + "r" : name) == name);
    }
}

TEST_CASE("no request is lost while the reading threads take turns", "[e2e][reading.turns]") {
    if (!test::can_mount()) return;
    const std::string reader = GENERATE("auto", "plain", "eager");
    CAPTURE(reader);
    RealMount mount(small_image(), {.arguments = {"-o", "reader=" + reader}});
    std::atomic<int> failures{0};
    const auto work = [&](int client, int files) {
        for (int i = 0; i < files; ++i) {
            const std::string name = mount / (std::to_string(client) + "-" + std::to_string(i));
            std::ofstream(name) << name;
            if (read_text(name) != name) ++failures;
            if (i % 2 == 0 && ::unlink(name.c_str()) != 0) ++failures;
        }
    };
    work(0, 1500);  // Alone, so that a burst is seen.
    {
        std::jthread one([&] { work(1, 500); });
        std::jthread two([&] { work(2, 500); });
    }
    work(3, 500);
    CHECK(failures == 0);
    const std::string stats = mount.stats();
    INFO(stats);
    const bool was_quiet = stats.find("\"to_quiet\":0,") == std::string::npos;
    if (reader == "plain") CHECK_FALSE(was_quiet);
    if (reader == "eager" && stats.find("\"may_be_quiet\":true") != std::string::npos) CHECK(was_quiet);
}

TEST_CASE("a server that dies at any step of its work on the disk leaves a mount that starts", "[e2e][crash]") {
    if (!test::can_mount()) return;
    RealMount mount(small_image());
    write_text(mount / "first", "synced", true);
    mount.unmount();
    for (int step = 1; step <= 40; step += 3) {
        CAPTURE(step);
        ::setenv("LAMINA_KILL_AT", std::to_string(step).c_str(), 1);
        const auto ran = mount.try_start();
        ::unsetenv("LAMINA_KILL_AT");
        bool is_synced = false;
        if (ran.exit_code == 0) {  // Else it died before it served.
            const store::UniqueFd fd(::open((mount / "second").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644));
            const std::string text = "step " + std::to_string(step);
            if (fd && ::pwrite(fd.get(), text.data(), text.size(), 0) == static_cast<ssize_t>(text.size())) {
                is_synced = ::ftruncate(fd.get(), static_cast<off_t>(text.size())) == 0 && ::fsync(fd.get()) == 0;
            }
            ::mkdir((mount / "folder").c_str(), 0755);
            ::rmdir((mount / "folder").c_str());
        }
        mount.lamina_fuse({"--stop", "--force"});
        mount.wait_until_gone();
        mount.start();
        CHECK(read_text(mount / "first") == "synced");
        if (is_synced) CHECK(read_text(mount / "second") == "step " + std::to_string(step));
        mount.unmount();
    }
}

TEST_CASE("a server needs no descriptor for each file", "[e2e]") {
    if (!test::can_mount()) return;
    test::TarBuilder tar;
    for (int i = 0; i < 3000; ++i) tar.file("f" + std::to_string(i), "content " + std::to_string(i));
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
    const rlimit few{.rlim_cur = 40, .rlim_max = before.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &few) == 0);
    {
        RealMount mount(tar.tar());
        for (int i = 0; i < 3000; ++i) {
            CHECK(read_text(mount / ("f" + std::to_string(i))) == "content " + std::to_string(i));
            write_text(mount / ("n" + std::to_string(i)), "new");
        }
        CHECK(store::list_folder("/proc/" + std::to_string(mount.server()) + "/fd").size() < 40);
    }
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
}

TEST_CASE("a read-only mount refuses every change", "[e2e][ops.read-only]") {
    if (!test::can_mount()) return;
    RealMount mount(small_image(), {.is_read_only = true});
    CHECK(read_text(mount / "link") == "welcome");
    CHECK((::mkdir((mount / "x").c_str(), 0755) == -1 && errno == EROFS));
    CHECK((::unlink((mount / "link").c_str()) == -1 && errno == EROFS));
    CHECK((::chmod((mount / "etc").c_str(), 0700) == -1 && errno == EROFS));
    CHECK((::open((mount / "etc/motd").c_str(), O_WRONLY) == -1 && errno == EROFS));
}

TEST_CASE("lamina-fuse says in one line why it does not mount", "[e2e]") {
    if (!test::can_mount()) return;
    RealMount mount(small_image());
    mount.unmount();
    const auto fails_with = [](const test::Ran& ran, int code, const std::string& words) {
        INFO(ran.output);
        CHECK(ran.exit_code == code);
        CHECK(ran.output.find(words) != std::string::npos);
        CHECK(std::ranges::count(ran.output, '\n') == 1);
    };
    fails_with(mount.lamina_fuse({"/no/such/place"}), 1, "No such file");
    fails_with(mount.lamina_fuse({mount.store_root()}), 1, "inside the store");
    fails_with(mount.lamina_fuse({mount.store_root() + "/.."}), 1, "the store lies below it");
    fails_with(mount.lamina_fuse({mount.folder() + "/base"}), 1, "not a folder");
    fails_with(mount.lamina_fuse({"--what"}), 2, "unknown option");
    fails_with(mount.lamina_fuse({"--stats"}), 1, "no server runs here");
    fails_with(mount.lamina_fuse({"-o", "cache=lots", mount.mountpoint()}), 2, "not a size");

    write_text(mount.folder() + "/base", "nonsense");
    fails_with(mount.try_start(), 1, "base");
    REQUIRE(::unlink((mount.folder() + "/base").c_str()) == 0);
    fails_with(mount.try_start(), 1, "base");
    CHECK_FALSE(mount.is_mounted());
}

TEST_CASE("a server in the background holds none of its parent's files", "[e2e]") {
    if (!test::can_mount()) return;
    RealMount mount(small_image());
    const std::string files = "/proc/" + std::to_string(mount.server()) + "/fd";
    for (const char* const standard : {"0", "1", "2"}) {
        std::array<char, 64> target{};
        REQUIRE(::readlink((files + "/" + standard).c_str(), target.data(), target.size() - 1) > 0);
        CHECK(std::string(target.data()) == "/dev/null");
    }
    CHECK(::getsid(mount.server()) == mount.server());
}

TEST_CASE("damaged file data is an error of that file alone, and is logged", "[e2e][errors.one-request]") {
    if (!test::can_mount()) return;
    RealMount mount(test::TarBuilder().file("bad", pattern(200'000, 3)).file("empty", "").tar());
    mount.unmount();
    const std::string pack = mount.store_root() + "/packs/" + store::list_folder(mount.store_root() + "/packs").front();
    for (const auto& name : store::list_folder(mount.store_root() + "/packs")) {
        const std::string path = mount.store_root() + "/packs/" + name;
        if (store::file_size(path) < 100'000) continue;
        const store::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
        REQUIRE(::pwrite(fd.get(), "damage", 6, 70'000) == 6);
    }
    mount.start();
    char byte = 0;
    const store::UniqueFd bad = store::open_read(mount / "bad");
    CHECK((::pread(bad.get(), &byte, 1, 100'000) == -1 && errno == EIO));
    CHECK(read_text(mount / "empty").empty());
    write_text(mount / "new", "still works");
    CHECK(read_text(mount / "new") == "still works");
    CHECK(read_text(mount.folder() + "/server.log").find("localhost/test:latest") != std::string::npos);
}
