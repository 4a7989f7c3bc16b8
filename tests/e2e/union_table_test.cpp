// The union's rules through real mounts: each script of the table as system calls on paths, over an image, over one
// folder and over four. Mounted again, each shows what it showed before.
#include "fuse/union_table.h"

#include "store/file.h"
#include "support/catch.h"
#include "support/folder_mount.h"
#include "support/real_mount.h"
#include "support/tar_builder.h"
#include "support/union_manifest.h"

#include <sys/stat.h>
#include <unistd.h>

#include <map>
#include <string>
#include <vector>

using namespace lamina;

namespace {

/// The mode that a later chmod of the table gives to a file.
std::uint32_t mode_of(const std::string& path) {
    for (const std::string_view command : test::union_lower()) {
        const auto words = test::words_of(command);
        if (words[0] == "chmod" && words[1] == path)
            return static_cast<std::uint32_t>(std::stoul(words[2], nullptr, 8));
    }
    return 0644;
}

/// The folder of one script.
std::string folder_of(std::size_t script) {
    return "s" + std::to_string(script);
}

/// The table's lower commands, as entries in a folder of a layer ("": the layer itself).
void add_lower(test::TarBuilder& layer, const std::string& folder = "") {
    for (const std::string_view command : test::union_lower()) {
        const auto words = test::words_of(command);
        const std::string path = folder + words[1].substr(1);
        if (words[0] == "mkdir") layer.folder(path);
        if (words[0] == "create") layer.file(path, words[2], {.mode = mode_of(words[1])});
        if (words[0] == "symlink") layer.symlink(path, words[2]);
        if (words[0] == "link") layer.hardlink(folder + words[2].substr(1), path);
        if (words[0] == "mkfifo") layer.fifo(path);
    }
}

std::string lower_layer() {
    test::TarBuilder layer;
    add_lower(layer);
    return layer.tar();
}

/// For each script a folder with the same in it.
std::string lower_layer_for_all() {
    test::TarBuilder layer;
    for (std::size_t script = 0; script < test::union_table().size(); ++script) {
        layer.folder(folder_of(script));
        add_lower(layer, folder_of(script) + "/");
    }
    return layer.tar();
}

/// The table's lower commands spread over several layers: all have the folders; each other thing is in one, with its
/// links, and hides something else of its name in the layer below.
void spread_lower(const std::vector<std::string>& layers) {
    std::map<std::string, std::size_t> homes;
    std::vector<test::FolderTarget> targets(layers.begin(), layers.end());
    for (const std::string_view command : test::union_lower()) {
        const auto words = test::words_of(command);
        const bool is_folder = words[0] == "mkdir";
        const bool is_of_another = words[0] == "link" || words[0] == "chmod";
        const std::size_t home = is_of_another ? homes[words[1]] : homes.size() % layers.size();
        if (!is_of_another && !is_folder) homes[words[1]] = home;
        for (std::size_t layer = is_folder ? 0 : home; layer < (is_folder ? layers.size() : home + 1); ++layer)
            REQUIRE(targets[layer].run(words) == "ok");
        if (is_folder || is_of_another || home + 1 == layers.size()) continue;
        REQUIRE(targets[home + 1].run({"create", words[1], "hidden"}) == "ok");
    }
    if (layers.size() == 1) return;
    REQUIRE(targets.back().run({"create", "/etc/gone", "hidden"}) == "ok");
    REQUIRE(::mknod((layers.front() + "/etc/gone").c_str(), S_IFCHR, 0) == 0);
}

/// Runs all scripts on a mount, each in a folder of its own; what they leave is there after `remount`, too.
template <class Remount>
void run_table(const std::string& mountpoint, const Remount& remount) {
    ::umask(022);
    const auto& table = test::union_table();
    for (std::size_t script = 0; script < table.size(); ++script) {
        test::FolderTarget target(mountpoint + "/" + folder_of(script));
        CAPTURE(table[script].name, table[script].promises);
        CHECK(test::run_script(table[script], target) == std::vector<std::string>{});
    }
    const test::UnionManifestOptions all{.has_times = true, .has_numbers = true};
    const auto live = test::folder_manifest(mountpoint, all);
    CHECK(live.size() > table.size());
    remount();
    CHECK(test::difference(live, test::folder_manifest(mountpoint, all)) == "");
}

void run_table_over_folders(unsigned count) {
    if (!test::can_mount()) return;
    if (::geteuid() != 0) {
        WARN("SKIPPED: needs root for whiteouts and numbers of copies");
        return;
    }
    test::FolderMount mount(count);
    for (std::size_t script = 0; script < test::union_table().size(); ++script) {
        std::vector<std::string> layers;
        for (unsigned layer = 0; layer < count; ++layer) {
            layers.push_back(mount.layer(layer) + "/" + folder_of(script));
            store::make_folder(layers.back());
        }
        spread_lower(layers);
    }
    mount.start();
    run_table(mount.mountpoint(), [&] {
        mount.stop();
        mount.start();
    });
}

}  // namespace

TEST_CASE("every script of the union table is answered by a mount as the table says", "[e2e][table]") {
    if (!test::can_mount()) return;
    ::umask(022);
    for (const test::UnionScript& script : test::union_table()) {
        const test::RealMount mount(lower_layer());
        test::FolderTarget target(mount.mountpoint());
        CAPTURE(script.name, script.promises);
        CHECK(test::run_script(script, target) == std::vector<std::string>{});
    }
}

TEST_CASE("what the scripts of the union table leave on an image is there in the next mount", "[e2e][table]") {
    if (!test::can_mount()) return;
    test::RealMount mount(lower_layer_for_all());
    run_table(mount.mountpoint(), [&] {
        mount.unmount();
        mount.start();
    });
}

TEST_CASE("every script of the union table is answered over one folder as the table says, and stays", "[e2e][table]") {
    run_table_over_folders(1);
}

TEST_CASE("every script of the union table is answered over four folders as the table says, and stays",
          "[e2e][table]") {
    run_table_over_folders(4);
}
