// The union's rules through a real mount: each script of the table as system calls on paths, over an image.
#include "fuse/union_table.h"

#include "support/catch.h"
#include "support/real_mount.h"
#include "support/tar_builder.h"

#include <sys/stat.h>

#include <string>

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

/// The table's lower commands as a layer.
std::string lower_layer() {
    test::TarBuilder layer;
    for (const std::string_view command : test::union_lower()) {
        const auto words = test::words_of(command);
        const std::string path = words[1].substr(1);
        if (words[0] == "mkdir") layer.folder(path);
        if (words[0] == "create") layer.file(path, words[2], {.mode = mode_of(words[1])});
        if (words[0] == "symlink") layer.symlink(path, words[2]);
        if (words[0] == "link") layer.hardlink(words[2].substr(1), path);
        if (words[0] == "mkfifo") layer.fifo(path);
    }
    return layer.tar();
}

}  // namespace

TEST_CASE("every script of the union table is answered by a mount as the table says", "[e2e][table]") {
    if (!test::can_mount()) return;
    ::umask(022);
    for (const test::UnionScript& script : test::union_table()) {
        const test::RealMount mount(lower_layer());
        test::FolderTarget target(mount.mountpoint());
        CAPTURE(script.name);
        CHECK(test::run_script(script, target) == std::vector<std::string>{});
    }
}
