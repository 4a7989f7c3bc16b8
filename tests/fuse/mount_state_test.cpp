#include "fuse/mount_state.h"

#include "store/error.h"
#include "support/catch.h"
#include "support/kept_mount.h"
#include "support/temp_dir.h"

using namespace lamina;
using namespace lamina::unionfs;
using lamina::test::KeptMount;

namespace {

void fill(KeptMount& mount) {
    const NodeId folder = mount.make(kRootNode, "folder", S_IFDIR | 0755).value();
    const NodeId file = mount.make(folder, "file", S_IFREG | 0644).value();
    REQUIRE(mount.write(file, 0, "hello"));
    REQUIRE(mount.write(file, 5, " world"));
    REQUIRE(mount.make(kRootNode, "link", S_IFLNK | 0777, "folder/file"));
    REQUIRE(mount.change(change::SetXattr{.node = file, .name = "user.x", .value = "y"}));
    REQUIRE(mount.rename(folder, "file", kRootNode, "moved"));
}

}  // namespace

TEST_CASE("a mount that ended cleanly is the same when it is opened again", "[mount_state]") {
    const test::TempDir folder;
    const test::MemoryView view;
    std::string before;
    {
        KeptMount mount(folder.path(), view);
        fill(mount);
        before = test::text_of(mount.state());
        mount.state().close();
    }
    const auto boot = GENERATE(std::uint8_t{1}, std::uint8_t{2});
    KeptMount again(folder.path(), view, {.boot = boot});
    CHECK(test::text_of(again.state()) == before);
    CHECK(again.own_bytes(again.node_of(kRootNode, "moved")) == "hello world");
}
