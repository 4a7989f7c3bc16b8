#include "support/catch.h"
#include "support/random_folder.h"
#include "support/stack_folders.h"
#include "support/view_manifest.h"

#include <cstdlib>
#include <random>
#include <string>

using namespace lamina;
using namespace lamina::unionfs;
using test::first_difference;
using test::KernelOverlay;
using test::manifest_of;
using test::RandomFolder;
using test::StackFolders;

namespace {

/// True when the stack shows what the kernel shows of it.
void check_same(const StackFolders& stack, const std::string& options) {
    std::string kernel;
    {
        const KernelOverlay mounted(stack.layers(), options, stack / "merged");
        kernel = manifest_of(mounted.path());
    }
    REQUIRE(first_difference(manifest_of(*stack.view()), kernel) == "");
    // Looked up from the leaves of another walk first, the same comes out.
    const auto view = stack.view();
    const auto count = view->entry_count(kRootNode).value();
    for (std::uint32_t at = count; at-- > 0;)
        static_cast<void>(view->lookup(kRootNode, view->entry(kRootNode, at).value().name));
    REQUIRE(first_difference(manifest_of(*view), kernel) == "");
}

int seed_count() {
    const char* const text = std::getenv("LAMINA_STACK_SEEDS");
    return text == nullptr ? 12 : std::atoi(text);
}

}  // namespace

TEST_CASE("random lowers and uppers, and uppers become lowers, show what overlayfs shows",
          "[fuse][stack][random][stacks.merging][stacks.redirect][stacks.index]") {
    if (!KernelOverlay::is_possible()) {
        WARN("SKIPPED: overlayfs cannot be mounted here");
        return;
    }
    const char* const first = std::getenv("LAMINA_STACK_FIRST_SEED");
    const int begin = first == nullptr ? 1 : std::atoi(first);
    for (int seed = begin; seed < begin + seed_count(); ++seed) {
        CAPTURE(seed);
        std::mt19937 random(static_cast<unsigned>(seed));
        StackFolders stack(2 + static_cast<int>(random() % 2));
        for (const std::string& lower : stack.lowers) {
            RandomFolder folder(stack / lower, random());
            folder.change(40);
            folder.add_marks(4);
        }
        check_same(stack, "");
        stack.use_upper();
        constexpr const char* kOptions = "redirect_dir=on,metacopy=on,index=on";
        for (int stage = 0; stage < 3; ++stage) {
            CAPTURE(stage);
            for (int mount = 0; mount < 2; ++mount) {
                const KernelOverlay mounted(stack.layers(), kOptions, stack / "merged");
                RandomFolder(mounted.path(), random()).change(25);
            }
            check_same(stack, kOptions);
            stack.lower_the_upper();
        }
        check_same(stack, kOptions);
    }
}
