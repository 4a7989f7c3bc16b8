// Random programs of the union table's commands, on a union over an upper directory and on a plain folder: each answer
// and the trees must agree, over several mounts of the same upper, and when the kernel's overlayfs mounts it.
#include "fuse/union_fs_target.h"
#include "support/catch.h"
#include "support/directory_union.h"
#include "support/root.h"
#include "support/temp_dir.h"
#include "support/union_manifest.h"

#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

using namespace lamina;

namespace {

constexpr const char* kWithMetacopy = "redirect_dir=on,index=on,metacopy=on";

class UpperProgram {
public:
    UpperProgram(unsigned seed, const std::string& folder) : random_(seed), folders_(test::make_folders(folder)) {
        folders_.makes_metacopy = seed % 2 == 0;
        REQUIRE(::mkdir((folder + "/plain").c_str(), 0755) == 0);
        plain_ = std::make_unique<test::FolderTarget>(folder + "/plain");
        test::FolderTarget lower(folders_.lowers[0]);
        for (std::uint32_t count = pick(25); count > 0; --count) {
            const auto words = make_words();
            CHECK(plain_->run(words) == lower.run(words));
        }
        plain_folder_ = folder + "/plain";
    }

    void session(int steps) {
        test::DirectoryUnion at(folders_);
        test::UnionFsTarget target(at);
        open_.clear();
        for (int step = 0; step < steps; ++step) one_step(target);
        for (const std::string& handle : std::set<std::string>(open_)) both(target, {"close", handle});
        const auto live = test::union_manifest(at, {.has_times = false});
        expect(test::difference(test::folder_manifest(plain_folder_, {.has_times = false}), live));

        numbers_ = test::union_manifest(at, {.has_times = true, .has_numbers = true});
    }
    /// A mount that follows shows the same, numbers and times too.
    void check_again() {
        for (const auto& left : std::filesystem::directory_iterator(folders_.work + "/work"))
            expect("left in the work folder: " + left.path().filename().string());
        test::DirectoryUnion again(folders_);
        expect(test::difference(numbers_, test::union_manifest(again, {.has_times = true, .has_numbers = true})));
    }
    /// The kernel goes on with the upper, and leaves what only it makes: files whose data is still below.
    void session_by_kernel(int steps) {
        const test::KernelMount kernel(folders_, kWithMetacopy);
        test::FolderTarget target(kernel.path());
        has_handles_ = false;
        script_ += "-- by the kernel\n";
        for (int step = 0; step < steps; ++step) one_step(target);
        script_ += "--\n";
        has_handles_ = true;
    }
    void check_by_kernel(bool has_metacopy) {
        const test::KernelMount kernel(folders_, has_metacopy ? kWithMetacopy : "redirect_dir=on,index=on");
        expect(test::difference(test::folder_manifest(plain_folder_, {.has_times = false}),
                                test::folder_manifest(kernel.path(), {.has_times = false})));
    }

private:
    using Words = test::UnionTarget::Words;

    std::uint32_t pick(std::uint32_t count) { return static_cast<std::uint32_t>(random_() % count); }
    std::string one_of(const std::vector<std::string>& all) {
        return all[pick(static_cast<std::uint32_t>(all.size()))];
    }
    /// A path whose last name is of a kind: files and folders, symlinks, or fifos. Mostly in a folder that is there.
    std::string path(const std::string& letters = "abcd") {
        std::string text;
        for (std::uint32_t depth = pick(4); depth > 0; --depth) {
            const std::string next = text + "/" + "abcd"[pick(4)];
            if (pick(20) == 0 || plain_->run({"type", next}) == "dir") text = next;
        }
        return text + "/" + letters[pick(static_cast<std::uint32_t>(letters.size()))];
    }
    std::string text() { return std::string(1 + pick(20), static_cast<char>('A' + pick(26))); }
    Words make_words() {
        switch (pick(8)) {
            case 0:
            case 1:
            case 2:
                return {"mkdir", path()};
            case 3:
                return {"symlink", path("st"), "target"};
            case 4:
                return {"mkfifo", path("pq")};
            case 5:
                return {"link", path(), path()};
            default:
                return {"create", path(), text()};
        }
    }
    Words name_words() {
        const std::string kind = one_of({"abcd", "abcd", "abcd", "st", "pq"});
        const std::vector<std::string> flags = {"", "", "", "exchange", "noreplace"};
        switch (pick(6)) {
            case 0:
                return {"unlink", path(kind)};
            case 1:
                return {"rmdir", path()};
            case 2:
                return {"link", path(kind), path(kind)};
            default:
                Words words = {"rename", path(kind), path(kind)};
                if (const std::string flag = one_of(flags); !flag.empty()) words.push_back(flag);
                return words;
        }
    }
    Words data_words(const std::string& file) {
        const std::string offset = std::to_string(pick(40));
        switch (pick(6)) {
            case 0:
                return {"write", file, offset, text()};
            case 1:
                return {"append", file, text()};
            case 2:
                return {"truncate", file, offset};
            case 3:
            case 4:
                return {"punch", file, offset, std::to_string(1 + pick(20))};
            default:
                return {"grow", file, std::to_string(1 + pick(60))};
        }
    }
    Words attribute_words(const std::string& file) {
        const std::string name = one_of({"user.a", "user.b"});
        switch (pick(4)) {
            case 0:
                return {"chmod", file, one_of({"600", "755", "4711", "2750", "0"})};
            case 1:
                return {"removexattr", file, name};
            default:
                return {"setxattr", file, name, text()};
        }
    }
    void one_step(test::UnionTarget& target) {
        const std::string at = path();
        const std::string type = plain_->run({"type", at});
        switch (pick(10)) {
            case 0:
            case 1:
                return both(target, make_words());
            case 2:
            case 3:
            case 4:
                return both(target, name_words());
            case 5:
            case 6:
                if (type == "file") both(target, data_words(at));
                return;
            case 7:
                if (type == "file" || type == "dir") both(target, attribute_words(at));
                return;
            case 8:
                if (type == "dir") both(target, {"list", at});
                if (type == "file") both(target, {one_of({"read", "nlink", "mode", "size"}), at});
                return;
            default:
                if (has_handles_) use_handle(target, type == "file" ? at : "");
        }
    }
    void use_handle(test::UnionTarget& target, const std::string& file) {
        const std::string handle = one_of({"h0", "h1", "h2"});
        if (!open_.contains(handle)) {
            if (file.empty()) return;
            both(target, {"open", file, handle});
            open_.insert(handle);
            return;
        }
        switch (pick(4)) {
            case 0:
                open_.erase(handle);
                return both(target, {"close", handle});
            case 1:
                return both(target, {"hread", handle});
            case 2:
                return both(target, {"hnlink", handle});
            default:
                return both(target, {"hwrite", handle, std::to_string(pick(30)), text()});
        }
    }
    void both(test::UnionTarget& target, const Words& words) {
        std::string line;
        for (const std::string& word : words) line += word + " ";
        script_ += line + "\n";
        const std::string expected = plain_->run(words);
        const std::string answer = target.run(words);
        const auto is_missing = [](const std::string& said) { return said == "ENOENT" || said == "ENOTDIR"; };
        if (is_missing(answer) && is_missing(expected)) return;  // Path resolution is not the union's.
        // Of two paths the kernel resolves both before it looks at either; the target here does not.
        const bool has_two_paths = words[0] == "link" || words[0] == "rename";
        if (has_two_paths && answer != "ok" && expected != "ok") return;
        expect(answer == expected ? "" : line + ": " + answer + ", not " + expected);
    }
    void expect(const std::string& problem) {
        if (problem.empty()) return;
        INFO(script_);
        INFO(problem);
        REQUIRE(false);
    }

    std::mt19937 random_;
    test::DirectoryFolders folders_;
    std::string plain_folder_;
    std::unique_ptr<test::FolderTarget> plain_;
    std::set<std::string> open_;
    bool has_handles_ = true;
    std::string script_;
    std::vector<std::string> numbers_;
};

}  // namespace

TEST_CASE("random programs do to a union over an upper directory what they do to a plain folder, mount after mount",
          "[fuse][upper][random][upper.unseen-copies][inodes.stay]") {
    if (!test::is_root()) return;
    ::umask(022);
    const bool has_kernel = test::KernelOverlay::is_possible();
    if (!has_kernel) WARN("SKIPPED: comparing with the kernel's overlayfs, which cannot be mounted here");
    const char* const wanted = std::getenv("LAMINA_RANDOM_PROGRAMS");
    const unsigned programs = wanted ? static_cast<unsigned>(std::atoi(wanted)) : 100;
    const char* const first = std::getenv("LAMINA_RANDOM_SEED");
    const unsigned base = first ? static_cast<unsigned>(std::atoi(first)) : 1;
    for (unsigned seed = base; seed < base + programs; ++seed) {
        INFO("LAMINA_RANDOM_SEED=" << seed);
        const test::TempDir folder("/dev/shm");
        UpperProgram program(seed, folder.path());
        for (int round = 0; round < 3; ++round) {
            program.session(60);
            program.check_again();
            if (has_kernel) program.check_by_kernel(seed % 2 == 0);
        }
    }
}

TEST_CASE("the union and the kernel's overlayfs take turns on one upper", "[fuse][upper][random][upper.at-rest]") {
    ::umask(022);
    if (!test::KernelOverlay::is_possible()) {
        WARN("SKIPPED: the kernel's overlayfs cannot be mounted here");
        return;
    }
    const char* const wanted = std::getenv("LAMINA_RANDOM_PROGRAMS");
    const unsigned programs = wanted ? static_cast<unsigned>(std::atoi(wanted)) : 60;
    const char* const first = std::getenv("LAMINA_RANDOM_SEED");
    const unsigned base = first ? static_cast<unsigned>(std::atoi(first)) : 1;
    for (unsigned seed = base; seed < base + programs; ++seed) {
        INFO("LAMINA_RANDOM_SEED=" << seed);
        const test::TempDir folder("/dev/shm");
        UpperProgram program(seed, folder.path());
        for (int round = 0; round < 2; ++round) {
            program.session_by_kernel(60);
            program.session(60);
            program.check_again();
            program.check_by_kernel(true);
        }
    }
}
