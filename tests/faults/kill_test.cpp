#include "faults/scene.h"
#include "support/catch.h"
#include "support/disk_gate.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

// Every operation is killed before each of its system calls that change the disk, and in the middle of each write;
// which calls these are is seen, not known: those of SQLite as well as ours. What was hit is listed. With LAMINA_EVERY
// at every call; without it at a few kinds of call to kinds of file.

using namespace lamina;
using test::DiskCall;
using test::Operation;
using test::Scene;
using test::Verdict;

namespace {

bool does_every() {
    return std::getenv("LAMINA_EVERY") != nullptr;
}

void check_after_kill(const Scene& scene, const Operation& operation, const std::string& root) {
    const auto opened = store::Store::open(root);
    REQUIRE(scene.problems_at_rest(*opened, operation) == "");
    REQUIRE(scene.problems_of_next_try(*opened, operation) == "");
}

/// False: the call did not come, or (tear) writes nothing.
bool kill_at(const Scene& scene, const Operation& operation, const test::CallPoint& point, Verdict::Kind how) {
    unsigned number = 0;
    const std::string root = scene.fresh(operation);
    const auto result = test::run_gated(
        scene.work_folder(),
        [&](const DiskCall& call) -> Verdict {
            if (call.label() != point.label || ++number != point.number) return {};
            if (how == Verdict::Kind::tear && !call.writes_bytes()) return {};
            return {how};
        },
        [&] { return test::open_and_run(root, operation); });
    CHECK((result.was_killed || result.text == ""));
    if (result.was_killed) check_after_kill(scene, operation, root);
    return result.was_killed;
}

}  // namespace

TEST_CASE("an operation that is killed at any call leaves a sound store and can be done again", "[kill]") {
    if (const std::string why = test::why_no_gate(); !why.empty()) {
        WARN("skipped: " + why);
        return;
    }
    const Scene scene;
    for (const Operation& operation : scene.operations()) {
        std::map<std::string, unsigned> hit;
        for (const test::CallPoint& point : test::call_points(scene, operation, does_every())) {
            CAPTURE(operation.name, point.label, point.number);
            CHECK(!point.label.starts_with("mmap"));  // Bytes would reach the disk that no call was seen to write.
            CHECK(!point.label.starts_with("io_uring"));
            CHECK(kill_at(scene, operation, point, Verdict::Kind::kill));
            ++hit[point.label];
            if (kill_at(scene, operation, point, Verdict::Kind::tear)) ++hit[point.label + ", half of it"];
        }
        std::printf("%s: killed at\n", operation.name.c_str());
        for (const auto& [label, count] : hit) std::printf("  %4u %s\n", count, label.c_str());
        CAPTURE(operation.name);
        CHECK(hit.size() >= (does_every() ? 10 : 5));
    }
}
