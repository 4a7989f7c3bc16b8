// The directory keeper without a mount: what an upper holds after each script of the union table, seen by a fresh union
// and by the kernel's overlayfs, and what a kill at any step leaves.
#include "fuse/directory_keeper.h"

#include "fuse/union_fs_target.h"
#include "support/catch.h"
#include "support/directory_union.h"
#include "support/root.h"
#include "support/temp_dir.h"
#include "support/union_manifest.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

test::DirectoryFolders table_folders(const test::TempDir& folder) {
    const auto folders = test::make_folders(folder.path());
    test::FolderTarget lower(folders.lowers[0]);
    for (const std::string_view command : test::union_lower()) REQUIRE(lower.run(test::words_of(command)) == "ok");
    return folders;
}

/// Names in the folder where things are built.
std::vector<std::string> leftovers(const test::DirectoryFolders& folders) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folders.work + "/work"))
        names.push_back(entry.path().filename());
    return names;
}

std::string run(test::UnionPaths& at, std::string_view command) {
    return test::UnionFsTarget(at).run(test::words_of(command));
}

bool can_mount_overlayfs() {
    static const bool is_possible = test::KernelOverlay::is_possible();
    if (!is_possible) WARN("SKIPPED: the kernel's overlayfs cannot be mounted here");
    return is_possible;
}

long g_steps_left = 0;

/// Runs `work` in a child that is killed at the nth call that changes an upper; false: it ended before.
template <class Work>
bool killed_at_call(long step, Work&& work) {
    const pid_t child = ::fork();
    if (child == 0) {
        g_steps_left = step;
        g_upper_step = [] {
            if (--g_steps_left == 0) ::kill(::getpid(), SIGKILL);
        };
        work();
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

}  // namespace

TEST_CASE("every script of the union table is answered over an upper directory as the table says",
          "[fuse][upper][table]") {
    if (!test::is_root()) return;
    ::umask(022);
    for (const test::UnionScript& script : test::union_table()) {
        const test::TempDir folder;
        const auto folders = table_folders(folder);
        test::DirectoryUnion at(folders);
        test::UnionFsTarget target(at);
        CAPTURE(script.name, script.promises);
        CHECK(test::run_script(script, target) == std::vector<std::string>{});
        CHECK(leftovers(folders) == std::vector<std::string>{});
    }
}

TEST_CASE("after each script the upper shows the same to the next mount and to the kernel's overlayfs",
          "[fuse][upper][table][upper.at-rest][upper.numbers][upper.whiteouts]") {
    if (!test::is_root()) return;
    ::umask(022);
    for (const test::UnionScript& script : test::union_table()) {
        const test::TempDir folder;
        const auto folders = table_folders(folder);
        CAPTURE(script.name, script.promises);
        std::vector<std::string> live;
        std::vector<std::string> live_numbers;
        {
            test::DirectoryUnion at(folders);
            test::UnionFsTarget target(at);
            (void)test::run_script(script, target);
            live = test::union_manifest(at);
            live_numbers = test::union_manifest(at, {.has_times = true, .has_numbers = true});
        }
        {
            test::DirectoryUnion again(folders);
            CHECK(test::difference(live_numbers,
                                   test::union_manifest(again, {.has_times = true, .has_numbers = true})) == "");
        }
        if (!can_mount_overlayfs()) continue;
        const test::KernelMount kernel(folders);
        CHECK(test::difference(live, test::folder_manifest(kernel.path())) == "");
    }
}

namespace {

/// Changes to be killed in; what comes before the last is done whole.
const std::vector<std::vector<std::string_view>> kKilled = {
    {"create /etc/new"},
    {"mkdir /deep/er/new"},
    {"symlink /deep/er/s target"},
    {"mkfifo /deep/er/p"},
    {"unlink /etc/motd"},
    {"unlink /etc/hosts"},
    {"write /etc/hosts 0 X", "unlink /etc/hosts.old"},
    {"write /etc/hosts.old 0 X", "unlink /etc/hosts.old"},
    {"link /etc/hosts /third"},
    {"link /etc/motd /deep/er/motd"},
    {"unlink /etc/motd", "link /run.sh /etc/motd"},
    {"chmod /deep/er/est/file 600"},
    {"chmod /etc/hosts 600"},
    {"write /deep/er/est/file 0 B"},
    {"write /etc/hosts 0 L"},
    {"truncate /deep/er/est/file 3"},
    {"setxattr /deep/er/est user.x 1"},
    {"unlink /etc/motd", "create /etc/motd"},
    {"unlink /etc/motd", "mkdir /etc/motd"},
    {"unlink /etc/conf.d/a", "unlink /etc/conf.d/b", "rmdir /etc/conf.d"},
    {"unlink /etc/conf.d/a", "unlink /etc/conf.d/b", "rmdir /etc/conf.d", "mkdir /etc/conf.d"},
    {"create /etc/conf.d/c 3", "unlink /etc/conf.d/a", "unlink /etc/conf.d/b", "unlink /etc/conf.d/c",
     "rmdir /etc/conf.d"},
    {"rename /etc/motd /deep/er/est/motd"},
    {"rename /etc/hosts /deep/er/est/hosts"},
    {"rename /etc/hosts /etc/motd"},
    {"rename /etc/motd /etc/hosts"},
    {"create /new x", "rename /new /etc/motd"},
    {"create /new x", "unlink /etc/motd", "rename /new /etc/motd"},
    {"rename /deep /etc/deep"},
    {"rename /deep/er /etc/er"},
    {"rename /deep /etc/deep", "rename /etc/deep/er /back"},
    {"rename /deep /empty"},
    {"mkdir /empty/x", "rmdir /empty/x", "rename /deep /empty"},
    {"unlink /etc/conf.d/a", "unlink /etc/conf.d/b", "rename /deep /etc/conf.d"},
    {"unlink /etc/motd", "rename /deep /etc/motd"},
    {"mkdir /new", "create /new/x y", "unlink /etc/motd", "rename /new /etc/motd"},
    {"mkdir /new", "create /new/x y", "rename /new /empty"},
    {"rename /deep /etc/conf.d exchange"},
    {"rename /deep /etc/motd exchange"},
    {"rename /etc/hosts /etc/motd exchange"},
    {"mkdir /new", "rename /new /etc exchange"},
    {"append /etc/hosts.old X"},
    {"punch /deep/er/est/file 1 3"},
    {"zero /etc/motd 2 4"},
    {"grow /etc/motd 40"},
    {"truncate /etc/hosts 2"},
    {"write /run.sh 0 X"},
    {"chmod /run.sh 755"},
    {"setxattr /etc/hosts user.x 1"},
    {"setxattr /etc/motd user.x 1", "removexattr /etc/motd user.x"},
    {"setxattr /etc/motd user.x 1", "setxattr /etc/motd user.x 2"},
    {"unlink /link"},
    {"rename /link /link2"},
    {"link /link /link2"},
    {"rename /pipe /etc/pipe"},
    {"create /.wh.x"},
    {"create /x y", "rename /x /.wh.x"},
};

}  // namespace

TEST_CASE("killed at any call the keeper leaves an upper that shows the state before or after the change",
          "[fuse][upper][kill][upper.one-step]") {
    if (!can_mount_overlayfs()) return;
    ::umask(022);
    const auto shown = [](const test::DirectoryFolders& folders) {
        const test::KernelMount kernel(folders);
        return test::folder_manifest(kernel.path(), {.has_times = false});
    };
    for (const auto& commands : kKilled) {
        const auto prepare = [&](const test::DirectoryFolders& folders) {
            test::DirectoryUnion at(folders);
            for (std::size_t number = 0; number + 1 < commands.size(); ++number) (void)run(at, commands[number]);
        };
        CAPTURE(commands);
        const test::TempDir whole("/dev/shm");  // Where a mount that ends writes nothing back.
        const auto whole_folders = table_folders(whole);
        prepare(whole_folders);
        const auto before = shown(whole_folders);
        {
            test::DirectoryUnion at(whole_folders);
            const std::string answer = run(at, commands.back());
            CHECK((answer == "ok" || answer == "1"));
        }
        const auto after = shown(whole_folders);
        CHECK(test::difference(before, after) != "");
        for (long step = 1;; ++step) {
            CAPTURE(step);
            const test::TempDir folder("/dev/shm");
            const auto folders = table_folders(folder);
            prepare(folders);
            const bool was_killed = killed_at_call(step, [&] {
                test::DirectoryUnion at(folders);
                (void)run(at, commands.back());
            });
            if (!was_killed) break;
            REQUIRE(step < 100);
            const auto left = shown(folders);
            const bool is_before_or_after = left == before || left == after;
            CHECK(is_before_or_after);
            if (!is_before_or_after) {
                UNSCOPED_INFO("from before:\n" << test::difference(before, left));
                UNSCOPED_INFO("from after:\n" << test::difference(after, left));
                CHECK(false);
            }
        }
    }
}
