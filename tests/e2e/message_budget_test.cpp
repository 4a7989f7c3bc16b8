#include "support/catch.h"
#include "support/real_mount.h"
#include "support/tar_builder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <string>

using namespace lamina;
using test::RealMount;
using test::text_of;
using test::total;

namespace {

// Where a kind of request is answered once per mount ("not known here"): OPEN, FLUSH, CREATE ... together.
constexpr std::uint64_t kOncePerMount = 4;

std::string image_of(int files) {
    test::TarBuilder tar;
    for (int i = 0; i < files; ++i) {
        if (i % 100 == 0) tar.folder("d" + std::to_string(i / 100));
        tar.file("d" + std::to_string(i / 100) + "/f" + std::to_string(i), "content " + std::to_string(i));
    }
    tar.symlink("link", "d0/f0");
    return tar.tar();
}

std::string name_of(int i) {
    return "d" + std::to_string(i / 100) + "/f" + std::to_string(i);
}

void read_whole(const std::string& path) {
    char buffer[64];
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    REQUIRE(fd >= 0);
    REQUIRE(::read(fd, buffer, sizeof buffer) > 0);
    REQUIRE(::read(fd, buffer, sizeof buffer) == 0);
    REQUIRE(::close(fd) == 0);
}

void write_new(const std::string& path) {
    const int fd = ::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
    REQUIRE(fd >= 0);
    REQUIRE(::write(fd, "hello", 5) == 5);
    REQUIRE(::close(fd) == 0);
}

void append(const std::string& path) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    REQUIRE(fd >= 0);
    REQUIRE(::write(fd, "more", 4) == 4);
    REQUIRE(::close(fd) == 0);
}

// As `ls -lR` does it, but for xattrs.
void list_all(const std::string& folder) {
    DIR* const directory = ::opendir(folder.c_str());
    REQUIRE(directory != nullptr);
    std::vector<std::string> folders;
    while (const dirent* const entry = ::readdir(directory)) {
        const std::string name = entry->d_name;
        if (name == "." || name == "..") continue;
        struct stat attributes {};
        REQUIRE(::lstat((folder + "/" + name).c_str(), &attributes) == 0);
        if (S_ISDIR(attributes.st_mode)) folders.push_back(folder + "/" + name);
    }
    ::closedir(directory);
    for (const auto& below : folders) list_all(below);
}

struct Budget {
    const char* operation;
    std::uint64_t requests;
    std::function<void(const RealMount& mount, int i)> run;
};

void must(int result) {
    INFO(std::strerror(errno));
    REQUIRE(result == 0);
}

}  // namespace

TEST_CASE("what was read once costs no request again", "[e2e][budget][requests.cached]") {
    if (!test::can_mount()) return;
    const bool is_read_only = GENERATE(false, true);
    CAPTURE(is_read_only);
    const int files = 10000;
    RealMount mount(image_of(files), {.is_read_only = is_read_only});
    const auto read_all = [&] {
        for (int i = 0; i < files; ++i) read_whole(mount / name_of(i));
    };
    CHECK(total(mount.requests_of(read_all)) > 0);
    // Whoever makes the kernel drop its caches meanwhile costs a pass, not the promise.
    RealMount::Counts again = mount.requests_of(read_all);
    for (int pass = 0; pass < 3 && !again.empty(); ++pass) again = mount.requests_of(read_all);
    CHECK(text_of(again) == "");
}

TEST_CASE("a missing name costs one request, once", "[e2e][budget][requests.cached]") {
    if (!test::can_mount()) return;
    RealMount mount(image_of(100));
    const auto look = [&] {
        for (int i = 0; i < 1000; ++i) {
            struct stat attributes {};
            REQUIRE(::lstat((mount / ("d0/none" + std::to_string(i))).c_str(), &attributes) != 0);
            REQUIRE(errno == ENOENT);
        }
    };
    CHECK(total(mount.requests_of(look)) <= 1000 + kOncePerMount);
    CHECK(text_of(mount.requests_of(look)) == "");
}

TEST_CASE("a symbolic link is read once", "[e2e][budget][requests.cached]") {
    if (!test::can_mount()) return;
    RealMount mount(image_of(100));
    read_whole(mount / "link");
    CHECK(text_of(mount.requests_of([&] { read_whole(mount / "link"); })) == "");
}

// A listing that came from us makes the kernel forget the directory's access time where it could be written: the next
// stat of each directory asks once more.
TEST_CASE("listing a tree with attributes costs nothing when nothing is new", "[e2e][budget][requests.cached]") {
    if (!test::can_mount()) return;
    const bool is_read_only = GENERATE(false, true);
    CAPTURE(is_read_only);
    RealMount mount(image_of(1000), {.is_read_only = is_read_only});
    const auto list = [&] { list_all(mount.mountpoint()); };
    const auto first = mount.requests_of(list);
    INFO(text_of(first));
    CHECK(total(first) <= 40 + kOncePerMount + (first.contains("lookup") ? first.at("lookup") : 0));
    const auto second = mount.requests_of(list);
    if (is_read_only) {
        CHECK(text_of(second) == "");
    } else {
        CHECK(total(second) <= 11);
    }
    CHECK(text_of(mount.requests_of(list)) == "");
}

TEST_CASE("ls -lR asks for no attribute twice", "[e2e][budget]") {
    if (!test::can_mount()) return;
    const bool is_read_only = GENERATE(false, true);
    CAPTURE(is_read_only);
    RealMount mount(image_of(1000), {.is_read_only = is_read_only});
    const auto list = [&] { REQUIRE(test::run_program({"ls", "-lR", mount.mountpoint()}).exit_code == 0); };
    list();
    if (!is_read_only) {  // The access times of the directories, as above; then their ACLs, which went with them.
        list();
        list();
    }
    RealMount::Counts again = mount.requests_of(list);
    INFO(text_of(again));
    if (!is_read_only) again.erase("listxattr");  // By ls of coreutils 9.7, not 9.1, of each name: never cached.
    // Where xattrs may be set, ls asks for one SELinux label, and the root's ACLs are not cached by the kernel: it was
    // there before INIT said that there are ACLs.
    CHECK(total(again) <= (is_read_only ? 0 : 3));
}

TEST_CASE("each change stays within its budget of requests", "[e2e][budget][requests.changes]") {
    if (!test::can_mount()) return;
    RealMount mount(image_of(200));
    const std::vector<Budget> budgets = {
        {"create, write, close", 5, [](const auto& m, int i) { write_new(m / ("n" + std::to_string(i))); }},
        {"append", 1, [](const auto& m, int i) { append(m / ("n" + std::to_string(i))); }},
        {"chmod", 1, [](const auto& m, int i) { must(::chmod((m / ("n" + std::to_string(i))).c_str(), 0600)); }},
        {"rename", 3,
         [](const auto& m, int i) {
             must(::rename((m / ("n" + std::to_string(i))).c_str(), (m / ("r" + std::to_string(i))).c_str()));
         }},
        {"link", 3,
         [](const auto& m, int i) {
             must(::link((m / ("r" + std::to_string(i))).c_str(), (m / ("l" + std::to_string(i))).c_str()));
         }},
        {"unlink", 2, [](const auto& m, int i) { must(::unlink((m / ("l" + std::to_string(i))).c_str())); }},
        {"truncate", 2, [](const auto& m, int i) { must(::truncate((m / ("r" + std::to_string(i))).c_str(), 2)); }},
        {"mkdir", 3, [](const auto& m, int i) { must(::mkdir((m / ("d" + std::to_string(i) + "x")).c_str(), 0755)); }},
        {"rmdir", 2, [](const auto& m, int i) { must(::rmdir((m / ("d" + std::to_string(i) + "x")).c_str())); }},
        {"symlink", 3, [](const auto& m, int i) { must(::symlink("to", (m / ("s" + std::to_string(i))).c_str())); }},
    };
    constexpr int kTimes = 100;
    for (const auto& budget : budgets) {
        CAPTURE(budget.operation);
        const auto requests = mount.requests_of([&] {
            for (int i = 0; i < kTimes; ++i) budget.run(mount, i);
        });
        INFO(text_of(requests));
        CHECK(total(requests) <= kTimes * budget.requests + kOncePerMount);
    }
}
