// Random programs of system calls, on ext4 and on mounts of ours: the same answers, the same tree, live and after a
// remount. By hand:
//
//     LAMINA_DIFFERENTIAL_PROGRAMS=20000 LAMINA_DIFFERENTIAL_SEED=1 differential_test
//     LAMINA_DIFFERENTIAL_COUNTS=1 ...                      prints how often each call was made with success
//     LAMINA_DIFFERENTIAL_SCRIPT=FILE differential_test     one program, as a failed test has written it, call by call
#include "e2e/differential/batch.h"
#include "support/catch.h"
#include "support/loop_disk.h"
#include "support/real_mount.h"
#include "support/temp_dir.h"

#include <sys/mount.h>
#include <unistd.h>

#include <array>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>

using namespace lamina;
using namespace lamina::test::differential;

namespace {

constexpr unsigned kImagePrograms = 1200;
constexpr unsigned kFolderPrograms = 400;
constexpr unsigned kBatch = 25;
constexpr unsigned kDiskMegabytes = 1024;  // Smaller ones get smaller blocks, and with them less room for xattrs.

unsigned number_from(const char* variable, unsigned otherwise) {
    const char* const text = std::getenv(variable);
    return text ? static_cast<unsigned>(std::strtoul(text, nullptr, 10)) : otherwise;
}

constexpr int kSkipped = 77;  // To meson.

/// No case of this program can run without: then the program says that it was skipped, and ends.
void need_reference() {
    if (test::can_mount() && test::LoopDisk::is_possible()) return;
    std::cerr << "SKIPPED: needs mounts, root and loop devices, for an ext4 of its own and processes of two users\n";
    std::exit(kSkipped);
}

/// An ext4 whose reads move no access time, as in a mount of ours.
class Reference {
public:
    Reference() : disk_(kDiskMegabytes) {
        REQUIRE(::mount(nullptr, disk_.path().c_str(), nullptr, MS_REMOUNT | MS_NOATIME, nullptr) == 0);
    }
    /// An empty folder; what was there goes.
    const std::string& disk() const { return disk_.path(); }
    std::string fresh() {
        const std::string folder = disk_.path() + "/programs";
        std::filesystem::remove_all(folder);
        std::filesystem::create_directory(folder);
        return folder;
    }

private:
    test::LoopDisk disk_;
};

void report(const Program& program, const std::string& difference, Reference& reference, const SideMaker& make_side) {
    const auto shrunk =
        shrink(program, [&](const Program& smaller) { return run_batch({smaller}, reference.fresh(), make_side)[0]; });
    const std::string file = "/var/tmp/lamina-differential-" + std::to_string(program.seed);
    std::ofstream(file) << to_text(shrunk.program);
    INFO("LAMINA_DIFFERENTIAL_SEED=" << program.seed << ": " << difference);
    INFO((shrunk.fails ? "shrunk: " + shrunk.difference : "does not fail alone: run the seeds before it, too"));
    INFO("LAMINA_DIFFERENTIAL_SCRIPT=" << file << "\n" << to_text(shrunk.program));
    CHECK(false);
}

/// The calls of random programs, with what tells some of them apart.
constexpr const char* kEveryCall =
    "open;open trunc;open append;open direct;open excl;open path;tmpfile;linkfd;close;dup;read;pread;write;"
    "pwrite;lseek;ftruncate;truncate;fallocate -;fallocate keep;fallocate punch,keep;fallocate zero;"
    "fallocate zero,keep;seek;fsync;fdatasync;copyrange;sendfile;map;mstore;mload;unmap;flock;setlk;dread;"
    "dwrite;stat;lstat;fstat;access;readlink;cat;list;rename -;rename exchange;rename noreplace;link;symlink;"
    "unlink;rmdir;mkdir;mknod p;mknod c;mknod b;mknod f;bind;umask;chdir;getcwd;chmod;fchmod;chown;lchown;"
    "fchown;utimens;futimens;setxattr user.a;setxattr trusted.t;setxattr security.capability;"
    "setxattr system.posix_acl_access;setxattr system.posix_acl_default;removexattr user.a;"
    "removexattr system.posix_acl_access;lsetxattr;fsetxattr;getxattr;lgetxattr;fgetxattr;listxattr;"
    "llistxattr;flistxattr;lremovexattr;fremovexattr;diropen;dirread;dirend;dirrewind;openat;mkdirat;"
    "unlinkat;renameat -;renameat exchange;linkat;symlinkat;fchdir;the second process";

/// What was done with success, so that a generator that never gets anywhere is noticed.
class Reached {
public:
    void add(const Call& call, const std::string& answer) {
        const bool is_error = !answer.empty() &&
                              answer.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == std::string::npos &&
                              std::isalpha(answer[0]);
        const bool is_left_out = answer.starts_with("no such") || answer == "direct" || answer == "not understood";
        const std::string& name = call.words[0];
        ++made_[name];
        if (is_error || is_left_out) return;
        ++counts_[name];
        if (name == "rename" || name == "renameat") ++counts_[name + " " + call.words.back()];
        if (name == "fallocate") ++counts_[name + " " + call.words[2]];
        if (name == "setxattr" || name == "removexattr") ++counts_[name + " " + call.words[2]];
        if (name == "mknod") ++counts_[name + " " + call.words[2]];
        if (name == "open")
            for (const char* const flag : {"trunc", "append", "direct", "excl", "path"})
                if (call.words[3].find(flag) != std::string::npos) ++counts_[name + " " + flag];
        if (call.actor == 1) ++counts_["the second process"];
    }
    /// What no program of many has done.
    std::string missing() const {
        std::string names;
        std::istringstream all(kEveryCall);
        for (std::string name; std::getline(all, name, ';');)
            if (!counts_.contains(name)) names += name + "; ";
        return names;
    }
    std::string text() const {
        std::string text;
        for (const auto& [name, count] : counts_) {
            text += name + ": " + std::to_string(count);
            if (const auto made = made_.find(name); made != made_.end()) text += " of " + std::to_string(made->second);
            text += "\n";
        }
        return text;
    }

private:
    std::map<std::string, unsigned> counts_;
    std::map<std::string, unsigned> made_;
};

void run_programs(Reference& reference, const SideMaker& make_side, unsigned programs) {
    const unsigned first = number_from("LAMINA_DIFFERENTIAL_SEED", 1);
    constexpr unsigned kReports = 5;
    constexpr unsigned kMany = 300;
    unsigned reports = 0;
    Reached reached;
    const Trace count = [&](const Call& call, const std::string& answer, const std::string&) {
        reached.add(call, answer);
    };
    for (unsigned seed = first; seed < first + programs && reports < kReports; seed += kBatch) {
        std::vector<Program> batch;
        for (unsigned i = seed; i < std::min(seed + kBatch, first + programs); ++i) batch.push_back(random_program(i));
        INFO("LAMINA_DIFFERENTIAL_SEED=" << seed);
        const auto found = run_batch(batch, reference.fresh(), make_side, count);
        for (std::size_t i = 0; i < batch.size() && reports < kReports; ++i) {
            if (found[i].empty()) continue;
            report(batch[i], found[i], reference, make_side);
            ++reports;
        }
    }
    if (std::getenv("LAMINA_DIFFERENTIAL_COUNTS")) std::cout << reached.text();
    if (programs >= kMany) CHECK(reached.missing() == "");
}

void run_script(Reference& reference, const SideMaker& make_side, const std::string& file) {
    std::ostringstream text;
    text << std::ifstream(file).rdbuf();
    const Program program = parse_program(text.str());
    const auto found = run_batch({program}, reference.fresh(), make_side,
                                 [](const Call& call, const std::string& there, const std::string& here) {
                                     std::cout << to_text(call) << "\n    there: " << there << "\n     here: " << here
                                               << "\n";
                                 });
    INFO(found[0]);
    CHECK(found[0].empty());
}

/// Memory, where there is some: programs call fsync and O_SYNC a lot, and nothing here is about power cuts.
void use_fast_folder() {
    if (::access("/dev/shm", W_OK) == 0) ::setenv("TMPDIR", "/dev/shm", 0);
}

/// How a side is made, with a disk of its own to lie on.
using SideKind = std::function<std::unique_ptr<Side>(const std::vector<Program>&, const std::string& disk)>;

void run_all(const SideKind& kind, unsigned usual_programs) {
    use_fast_folder();
    Reference reference;
    const SideMaker make_side = [&](const std::vector<Program>& programs) { return kind(programs, reference.disk()); };
    if (const char* const script = std::getenv("LAMINA_DIFFERENTIAL_SCRIPT"))
        return run_script(reference, make_side, script);
    run_programs(reference, make_side, number_from("LAMINA_DIFFERENTIAL_PROGRAMS", usual_programs));
}

SideKind folders(unsigned count) {
    return [count](const std::vector<Program>& programs, const std::string& disk) {
        return make_folder_side(programs, disk, count);
    };
}

}  // namespace

TEST_CASE("a program as text is the same program", "[differential]") {
    for (unsigned seed = 1; seed < 50; ++seed) {
        const std::string text = to_text(random_program(seed));
        CHECK(to_text(parse_program(text)) == text);
    }
    CHECK_THROWS(parse_program("lower d"));
    CHECK_THROWS(parse_program("2 open"));
}

TEST_CASE("random programs are answered by a mount of an image as by ext4",
          "[e2e][differential][image][attributes.times][attributes.atime]") {
    need_reference();
    run_all([](const std::vector<Program>& programs, const std::string&) { return make_image_side(programs); },
            kImagePrograms);
}

TEST_CASE("random programs are answered by a mount of one folder as by ext4, and its upper shows the same in overlayfs",
          "[e2e][differential][folder]") {
    need_reference();
    run_all(folders(1), kFolderPrograms);
}

TEST_CASE(
    "random programs are answered by a mount of four folders as by ext4, and its upper shows the same in overlayfs",
    "[e2e][differential][folders]") {
    need_reference();
    run_all(folders(4), kFolderPrograms);
}
