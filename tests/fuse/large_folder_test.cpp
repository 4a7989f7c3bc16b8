// What calls cost in a folder of 10,000 names beside what they cost in one of 1,000: such a folder is made and removed
// in linear time. Compared is the processor's time of this thread alone, the best of some rounds: what else the machine
// does makes a round worse, never better. Work that grows with the folder would cost ten times as much.
#include "support/catch.h"
#include "support/directory_union.h"
#include "support/kept_mount.h"
#include "support/root.h"
#include "support/temp_dir.h"
#include "support/union_fixture.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>

using namespace lamina;
using namespace lamina::unionfs;
using test::UnionPaths;

namespace {

constexpr int kFew = 1'000;
constexpr int kMany = 10'000;
constexpr int kCalls = 100;  // Of each kind, in a round.
constexpr int kRounds = 30;
constexpr double kAllowed = 3;

double processor_seconds() {
    timespec now{};
    REQUIRE(::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double seconds_of(const std::function<void()>& work) {
    const double begin = processor_seconds();
    work();
    return processor_seconds() - begin;
}

/// Whether `work` costs in the folder "/many" about what it costs in "/few".
bool is_as_cheap(const std::function<void(const std::string& folder)>& work) {
    double few = 1e9;
    double many = 1e9;
    for (int round = 0; round < kRounds; ++round) {
        few = std::min(few, seconds_of([&] { work("/few"); }));
        many = std::min(many, seconds_of([&] { work("/many"); }));
        if (round > 1 && many < few * kAllowed) return true;
    }
    UNSCOPED_INFO("in the small folder " << few << " s, in the large one " << many << " s");
    return false;
}

void make_folders_of_names(UnionPaths& at) {
    for (const auto& [folder, count] : {std::pair("/few", kFew), std::pair("/many", kMany)}) {
        REQUIRE(at.mkdir(folder));
        for (int number = 0; number < count; ++number) REQUIRE(at.create(folder + ("/f" + std::to_string(number))));
    }
}

void for_some_names(const std::string& folder, const std::function<bool(const std::string& path)>& call) {
    bool are_done = true;
    for (int number = 0; number < kCalls; ++number) are_done &= call(folder + "/new" + std::to_string(number));
    REQUIRE(are_done);
}

void make_and_remove(UnionPaths& at, const std::string& folder) {
    for_some_names(folder, [&](const auto& path) { return at.create(path).has_value(); });
    for_some_names(folder, [&](const auto& path) { return at.find(path) != 0 && at.find(path + "x") == 0; });
    for_some_names(folder, [&](const auto& path) { return at.link(path, path + "link") == 0; });
    for_some_names(folder, [&](const auto& path) { return at.rename(path, path + "moved") == 0; });
    for_some_names(folder, [&](const auto& path) { return at.unlink(path + "moved") == 0; });
    for_some_names(folder, [&](const auto& path) { return at.unlink(path + "link") == 0; });
    for_some_names(folder, [&](const auto& path) { return at.mkdir(path).has_value() && at.rmdir(path) == 0; });
}

/// 256 names are collected at a time; `cookie` is in the middle of the folder.
void list_some(UnionPaths& at, const std::string& folder, std::uint64_t cookie) {
    std::string name;
    const auto take = [&](const ListedEntry& entry) {
        name = entry.name;
        return false;
    };
    REQUIRE(at.fs->list(at.find(folder), cookie, take));
    REQUIRE(!name.empty());
}

std::uint64_t middle_of(UnionPaths& at, const std::string& folder, int count) {
    std::uint64_t cookie = 0;
    const auto pass = [&](const ListedEntry& entry) {
        cookie = entry.next_cookie;
        return --count > 0;
    };
    REQUIRE(at.fs->list(at.find(folder), 0, pass));
    return cookie;
}

void check(UnionPaths& at) {
    make_folders_of_names(at);
    CHECK(is_as_cheap([&](const std::string& folder) { make_and_remove(at, folder); }));
    const std::uint64_t few = middle_of(at, "/few", kFew / 2);
    const std::uint64_t many = middle_of(at, "/many", kMany / 2);
    CHECK(is_as_cheap([&](const auto& folder) { list_some(at, folder, folder == "/few" ? few : many); }));
    for (int number = 0; number < kMany; ++number) REQUIRE(at.unlink("/many/f" + std::to_string(number)) == 0);
    CHECK(at.rmdir("/many") == 0);
}

/// A union as `lamina mount` serves it, without a mount.
class LogUnion : public UnionPaths {
public:
    LogUnion() : kept_(folder_.path(), view_) {
        fs = std::make_unique<UnionFs>(view_, kept_.state().changes(), &kept_.keeper());
    }
    ~LogUnion() { fs.reset(); }

private:
    test::TempDir folder_;
    test::FakeView view_;
    test::KeptMount kept_;
};

}  // namespace

TEST_CASE("calls cost in a folder of 10,000 names what they cost in one of 1,000, with a log", "[fuse][union][large]") {
    LogUnion at;
    check(at);
}

TEST_CASE("calls cost in a folder of 10,000 names what they cost in one of 1,000, with an upper directory",
          "[fuse][directory][large]") {
    if (!test::is_root()) return;
    ::umask(022);
    const test::TempDir folder("/dev/shm");
    test::DirectoryUnion at(test::make_folders(folder.path()));
    check(at);
}

TEST_CASE("removing names of below costs among 10,000 what it costs among 1,000", "[fuse][directory][large]") {
    const test::TempDir folder("/dev/shm");
    const auto folders = test::make_folders(folder.path());
    for (const auto& [name, count] : {std::pair("/few", kFew), std::pair("/many", kMany)}) {
        const std::string lower = folders.lowers.front() + name;
        REQUIRE(::mkdir(lower.c_str(), 0755) == 0);
        for (int number = 0; number < count; ++number) std::ofstream(lower + "/f" + std::to_string(number)) << number;
    }
    test::DirectoryUnion at(folders);
    std::map<std::string, int> removed;
    constexpr int kEachRound = 20;
    static_assert(kEachRound * kRounds < kFew);
    const auto remove_some = [&](const std::string& from) {
        int& next = removed[from];
        for (const int end = next + kEachRound; next < end; ++next)
            REQUIRE(at.unlink(from + "/f" + std::to_string(next)) == 0);
    };
    CHECK(is_as_cheap(remove_some));
}
