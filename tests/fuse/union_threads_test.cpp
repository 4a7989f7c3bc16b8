#include "support/catch.h"
#include "support/soundness.h"
#include "support/union_fixture.h"

#include <atomic>
#include <random>
#include <thread>

using namespace lamina;
using namespace lamina::unionfs;
using test::UnionFixture;

TEST_CASE("many threads change one union, and no reader sees space that was used again", "[fuse][union][threads]") {
    UnionFixture at([](test::FakeView& view) { view.file(kRootNode, "shared", std::string(64, 'a')); });
    UnionFs fs(at.view, *at.changes, &at.keeper, [] { return Timestamp{}; });
    const NodeId shared = at.find("/shared");
    std::atomic<int> torn{0};
    std::atomic<int> wrong{0};
    const auto work = [&](unsigned seed) {
        std::mt19937 random(seed);
        const std::string mine = "thread" + std::to_string(seed);
        for (int round = 0; round < 400; ++round) {
            const std::string line(64, static_cast<char>('a' + random() % 26));
            if (!fs.write(shared, 0, std::as_bytes(std::span(line)), UnionFs::WriteBy::privileged)) ++wrong;
            if (round % 50 == 0 && !fs.sync()) ++wrong;
            std::string seen(64, '?');
            if (!fs.read(shared, 0, std::as_writable_bytes(std::span(seen)))) ++wrong;
            for (const char byte : seen) torn += byte < 'a' || byte > 'z';
            const auto made = fs.make(kRootNode, mine, {.mode = S_IFREG | 0644}, {});
            if (!made) ++wrong;
            if (!fs.rename({kRootNode, mine}, {kRootNode, mine + "b"}, {})) ++wrong;
            (void)fs.list(kRootNode, 0, [](const ListedEntry&) { return true; });
            if (!fs.unlink(kRootNode, mine + "b")) ++wrong;
            fs.forget(made->attributes.node, 1);
        }
    };
    std::vector<std::jthread> threads;
    for (unsigned seed = 1; seed <= 4; ++seed) threads.emplace_back(work, seed);
    threads.clear();
    CHECK(wrong == 0);
    CHECK(torn == 0);
    CHECK(test::Soundness(*at.changes).problems().empty());
    CHECK(at.names("/") == std::set<std::string>{"shared"});
    CHECK(at.keeper.live_bytes() == 64);
}
