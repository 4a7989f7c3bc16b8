// The same random commands on a plain folder and on a union over directories that shows the same at the start. Each
// answer agrees; the union, live and mounted anew, and the kernel's overlayfs over the upper show what the folder has.
#include "fuse/union_fs_target.h"
#include "support/catch.h"
#include "support/directory_union.h"
#include "support/random_folder.h"
#include "support/root.h"
#include "support/union_manifest.h"

#include <sys/stat.h>

#include <array>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

constexpr QuotaLimits kPlenty{.bytes = std::uint64_t{1} << 40, .inodes = std::uint64_t{1} << 40};

class RandomCommands {
public:
    explicit RandomCommands(std::uint32_t seed) : random_(seed) {}

    std::string next() {
        const std::string a = path();
        const std::string b = path();
        switch (pick(20)) {
            case 0:
            case 1:
                return "create " + a + " " + text();
            case 2:
                return "mkdir " + a;
            case 3:
                return "symlink " + a + " ../a/b";
            case 4:
            case 5:
                return "unlink " + a;
            case 6:
                return "rmdir " + a;
            case 7:
            case 8:
            case 9:
            case 10:
                return "rename " + a + " " + b;
            case 11:
                return "rename " + a + " " + b + " exchange";
            case 12:
                return "link " + a + " " + b;
            case 13:
                return "write " + a + " " + std::to_string(pick(9000)) + " " + text();
            case 14:
                return "truncate " + a + " " + std::to_string(pick(9000));
            case 15:
                return "chmod " + a + (pick(2) == 0 ? " 4755" : " 700");
            case 16:
                return "setxattr " + a + " user.x " + text();
            case 17:
                return "removexattr " + a + " user.one";
            case 18:
                return "list " + a;
            default:
                return "nlink " + a;
        }
    }

private:
    std::uint32_t pick(std::uint32_t below) { return random_() % below; }
    std::string text() { return std::string(1 + pick(40), static_cast<char>('a' + pick(26))); }
    std::string path() {
        constexpr std::array<const char*, 5> kNames{"a", "b", "c", "d", "e"};
        std::string made;
        for (std::uint32_t depth = 1 + pick(3); depth > 0; --depth) made += std::string("/") + kNames[pick(5)];
        return made;
    }
    std::mt19937 random_;
};

bool is_compared(test::UnionPaths& at, const std::string& command, const std::string& root) {
    const auto words = test::words_of(command);
    struct stat st {};
    const bool is_there = ::lstat((root + words[1]).c_str(), &st) == 0;
    const bool is_file = is_there && S_ISREG(st.st_mode);
    if (words[0] == "write" || words[0] == "truncate") return is_file;  // Paths would follow links here, and not there.
    if (words[0] == "chmod") return is_there && !S_ISLNK(st.st_mode);
    if (words[0] == "setxattr" || words[0] == "removexattr")
        return is_there && (is_file || S_ISDIR(st.st_mode)) && at.find(words[1]) != 0;
    if (words[0] == "nlink") return is_there && !S_ISDIR(st.st_mode);
    if (words[0] == "list") return is_there && S_ISDIR(st.st_mode);
    return true;
}

/// Whether all that the paths go through are folders: other errors, and symlinks, are path resolution's.
bool goes_through_folders(const std::string& root, const std::string& command) {
    for (const std::string& word : test::words_of(command)) {
        if (word[0] != '/') continue;
        for (std::size_t at = word.find('/', 1); at != std::string::npos; at = word.find('/', at + 1)) {
            struct stat st {};
            if (::lstat((root + word.substr(0, at)).c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) return false;
        }
    }
    return true;
}

int setting(const char* name, int otherwise) {
    const char* const text = std::getenv(name);
    return text == nullptr ? otherwise : std::atoi(text);
}

void run_round(const std::string& reference, const test::DirectoryFolders& folders, RandomCommands& commands) {
    const test::UnionManifestOptions untimed{.has_times = false, .has_numbers = false};
    const test::UnionManifestOptions whole{.has_times = true, .has_numbers = true};
    std::vector<std::string> live;
    std::vector<std::string> live_whole;
    std::string script;
    {
        test::DirectoryUnion at(folders);
        test::UnionFsTarget target(at);
        test::FolderTarget folder(reference);
        REQUIRE(at.fs->set_quota(kPlenty));
        for (int count = 0; count < 40; ++count) {
            const std::string command = commands.next();
            if (!goes_through_folders(reference, command) || !is_compared(at, command, reference)) continue;
            const auto words = test::words_of(command);
            script += command + "\n";
            CAPTURE(script);
            REQUIRE(target.run(words) == folder.run(words));
        }
        const QuotaUsage counted = at.fs->quota().used;
        REQUIRE(at.fs->set_quota({}));
        REQUIRE(at.fs->set_quota(kPlenty));  // Looks through all of it again.
        CAPTURE(script, counted.bytes, counted.inodes, at.fs->quota().used.bytes, at.fs->quota().used.inodes);
        REQUIRE(at.fs->quota().used == counted);
        live = test::union_manifest(at, untimed);
        live_whole = test::union_manifest(at, whole);
    }
    CAPTURE(script);
    const auto expected = test::folder_manifest(reference, untimed);
    REQUIRE(test::difference(live, expected) == "");
    {
        test::DirectoryUnion again(folders);
        REQUIRE(test::difference(live_whole, test::union_manifest(again, whole)) == "");
    }
    if (!test::KernelOverlay::is_possible()) return;
    const test::KernelMount kernel(folders, "redirect_dir=on,index=on");
    auto shown = test::folder_manifest(kernel.path(), untimed);
    // Where only one layer has a directory, overlayfs lists its whiteouts.
    std::erase_if(shown, [](const std::string& line) { return line.ends_with(" error " + std::to_string(ENOENT)); });
    REQUIRE(test::difference(shown, expected) == "");
}

/// Lowers, of which reference/ has what they show. With several lowers without hard links: of those, names that are
/// hidden count.
test::DirectoryFolders make_stack(const test::TempDir& folder, std::uint32_t seed) {
    test::DirectoryFolders folders{.lowers = {folder / "lower0"}, .upper = folder / "upper", .work = folder / "work"};
    const bool has_several = seed % 2 == 0 && test::KernelOverlay::is_possible();
    if (has_several) folders.lowers.push_back(folder / "lower1");
    for (const char* const name : {"lower0", "lower1", "upper", "work", "merged"}) store::make_folder(folder / name);
    for (const std::string& lower : folders.lowers) {
        test::RandomFolder random(lower, seed++, !has_several);
        random.change(60);
        if (has_several) random.add_marks(4);
    }
    if (has_several) {
        const test::KernelOverlay mounted({.lowers = folders.lowers, .upper = {}, .work = {}}, "", folder / "merged");
        // It lists whiteouts where only one layer has a directory, and cp complains.
        test::run_script(folder.path(), "cp -a merged reference || true");
    } else {
        test::run_script(folder.path(), "cp -a lower0 reference");
    }
    return folders;
}

}  // namespace

TEST_CASE("a union over random lowers, of several layers with marks too, answers and shows what a plain folder does",
          "[fuse][upper][random]") {
    if (!test::is_root()) return;
    ::umask(022);
    const int begin = setting("LAMINA_UPPER_FIRST_SEED", 1);
    for (int seed = begin; seed < begin + setting("LAMINA_UPPER_SEEDS", 8); ++seed) {
        CAPTURE(seed);
        const test::TempDir folder;
        const auto folders = make_stack(folder, static_cast<std::uint32_t>(seed));
        RandomCommands commands(static_cast<std::uint32_t>(seed));
        for (int round = 0; round < 4; ++round) run_round(folder / "reference", folders, commands);
    }
}
