#include "fuse/union_table.h"

#include "fuse/union_fs_target.h"
#include "support/catch.h"
#include "support/temp_dir.h"
#include "support/union_fixture.h"

#include <sys/stat.h>

#include <map>

using namespace lamina;
using namespace lamina::unionfs;

namespace {

/// The table's lower commands on a FakeView.
void build_lower(test::FakeView& view) {
    std::map<std::string, NodeId> nodes = {{"", kRootNode}};
    for (const std::string_view command : test::union_lower()) {
        const auto words = test::words_of(command);
        const std::string parent = words[1].substr(0, words[1].rfind('/'));
        const std::string name = words[1].substr(words[1].rfind('/') + 1);
        if (words[0] == "mkdir") nodes[words[1]] = view.directory(nodes[parent], name);
        if (words[0] == "create") nodes[words[1]] = view.file(nodes[parent], name, words[2]);
        if (words[0] == "symlink") view.symlink(nodes[parent], name, words[2]);
        if (words[0] == "mkfifo") view.special(nodes[parent], name, S_IFIFO | 0644);
        if (words[0] == "link")
            view.link(nodes[words[1]], nodes[words[2].substr(0, words[2].rfind('/'))],
                      words[2].substr(words[2].rfind('/') + 1));
        if (words[0] == "chmod") {
            auto& mode = view.node(nodes[words[1]]).attributes.mode;
            mode = (mode & S_IFMT) | static_cast<std::uint32_t>(std::stoul(words[2], nullptr, 8));
        }
    }
}

}  // namespace

TEST_CASE("every script of the union table is answered without a mount as the table says", "[fuse][union][table]") {
    for (const test::UnionScript& script : test::union_table()) {
        test::UnionFixture fixture(build_lower);
        test::UnionFsTarget target(fixture);
        CAPTURE(script.name, script.promises);
        CHECK(test::run_script(script, target) == std::vector<std::string>{});
    }
}

TEST_CASE("every script of the union table is what a local file system answers", "[fuse][union][table]") {
    ::umask(022);
    for (const test::UnionScript& script : test::union_table()) {
        const test::TempDir folder;
        test::FolderTarget target(folder.path());
        for (const std::string_view command : test::union_lower()) REQUIRE(target.run(test::words_of(command)) == "ok");
        CAPTURE(script.name, script.promises);
        CHECK(test::run_script(script, target) == std::vector<std::string>{});
    }
}
