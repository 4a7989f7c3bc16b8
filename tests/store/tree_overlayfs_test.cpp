#include "store/error.h"
#include "support/catch.h"
#include "support/layer_text.h"
#include "support/overlay_stack.h"
#include "support/temp_dir.h"

#include <cstdlib>
#include <random>

using namespace lamina;

namespace {

// Layers at random over few names, so that whiteouts, opaque marks, links and replacements meet.
class RandomLayers {
public:
    explicit RandomLayers(std::uint64_t seed) : random_(seed) {}
    std::size_t up_to(std::size_t count) { return random_() % count; }
    std::string word() {
        static constexpr const char* kContents[] = {"one", "two", "three", "x", "y", "z"};
        const std::string at = path();
        switch (up_to(12)) {
            case 0:
            case 1:
                return at + "/";
            case 2:
                return at + "/:711";
            case 3:
            case 4:
            case 5:
                return at + "=" + kContents[up_to(6)];
            case 6:
                return at + "@t";
            case 7:
            case 8:
                return at + "~" + path();
            case 9:
                return in_folder(".wh..wh..opq");
            default:
                return in_folder(std::string(".wh.") + name());
        }
    }

private:
    char name() { return static_cast<char>('a' + up_to(3)); }
    std::string path() {
        std::string out(1, name());
        while (up_to(2) == 0 && out.size() < 7) out += {'/', name()};
        return out;
    }
    std::string in_folder(const std::string& leaf) { return up_to(4) == 0 ? leaf : path() + "/" + leaf; }

    std::mt19937_64 random_;
};

std::string tree_or_error(const std::vector<std::string>& layers, const std::string& folder) {
    std::vector<test::Layer> parsed;
    for (const std::string& text : layers) parsed.push_back(test::layer_of(text));
    try {
        const auto tree = test::built_tree(parsed, folder);
        return tree->check().empty() ? test::text_of(*tree) : "a problem";
    } catch (const store::Error& error) {
        return std::string(store::errc_name(error.code()));
    }
}

}  // namespace

TEST_CASE("layers at random merge to what the kernel's overlayfs shows of them", "[store][tree][overlayfs]") {
    if (!test::OverlayStack::is_possible()) {
        WARN("not compared: this process may not mount overlayfs");
        return;
    }
    const char* const wish = std::getenv("LAMINA_RANDOM_ROUNDS");  // For a long run by hand.
    const std::uint64_t rounds = wish ? std::stoull(wish) : 40;
    std::uint64_t merged_count = 0;
    for (std::uint64_t seed = 1; seed <= rounds; ++seed) {
        const test::TempDir folder;
        test::OverlayStack kernel(folder.path());
        RandomLayers random(seed);
        std::vector<std::string> layers;
        bool is_good = true;
        for (std::size_t i = 1 + random.up_to(4); i-- > 0 && is_good;) {
            kernel.begin_layer();
            std::string text;
            for (std::size_t n = 1 + random.up_to(10); n-- > 0;) {
                const std::string word = random.word();
                if (kernel.add(word)) text += word + " ";
            }
            layers.push_back(text);
            is_good = kernel.finish_layer();
        }
        CAPTURE(seed, layers);
        const std::string expected = is_good ? kernel.text() : "malformed";
        REQUIRE(tree_or_error(layers, folder.path()) == expected);
        merged_count += is_good ? 1 : 0;
    }
    CHECK(merged_count > rounds / 3);
}
