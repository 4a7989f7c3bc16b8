#include "fuse/checkpoint.h"

#include "store/error.h"
#include "support/catch.h"
#include "support/kept_mount.h"
#include "support/random_user.h"
#include "support/temp_dir.h"

using namespace lamina;
using namespace lamina::unionfs;
using lamina::test::KeptMount;

TEST_CASE("a checkpoint after any change holds the state of then", "[checkpoint][random]") {
    const auto seed = GENERATE(range(1U, 30U));
    CAPTURE(seed);
    const test::TempDir folder;
    const auto view = test::small_view();
    KeptMount mount(folder.path(), view);
    test::RandomUser user(seed);
    for (int step = 0; step < 150; ++step) {
        REQUIRE(user.step(mount));
        if (step % 5 != 0) continue;
        CAPTURE(step);
        REQUIRE(mount.keeper().write_checkpoint());
        const auto cut = mount.keeper().begin_cut().value();
        const auto seen = MountState::open_cut(folder.path(), KeptMount::tree(), view, cut);
        REQUIRE(test::text_of(*seen) == test::text_of(mount.state()));
        mount.keeper().end_cut();
    }
}
