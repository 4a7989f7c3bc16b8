#include "store/error.h"

#include "faults/scene.h"
#include "support/catch.h"
#include "support/disk_gate.h"

#include <cerrno>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

// Every call that changes the disk fails once, or it and all after it do, with each of the errors that a disk has; and
// every write writes less than it was asked to. What was answered is there, what failed can be done again, and the
// store is sound, at once and when it is opened again. With LAMINA_EVERY every call fails in every way; without it a
// few kinds of call to kinds of file, and the ways take turns.

using namespace lamina;
using store::Errc;
using store::Store;
using test::DiskCall;
using test::Operation;
using test::Scene;
using test::Verdict;

namespace {

struct Way {
    std::string_view name;
    Verdict verdict;
    bool goes_on;  ///< All later calls fail too.
};

const std::vector<Way> kWays = {
    {"ENOSPC once", {Verdict::Kind::fail, ENOSPC}, false},
    {"ENOSPC from then on", {Verdict::Kind::fail, ENOSPC}, true},
    {"EIO once", {Verdict::Kind::fail, EIO}, false},
    {"EDQUOT once", {Verdict::Kind::fail, EDQUOT}, false},
    {"EIO from then on", {Verdict::Kind::fail, EIO}, true},
    {"EDQUOT from then on", {Verdict::Kind::fail, EDQUOT}, true},
    {"half a write", {Verdict::Kind::write_less, 0}, false},
};

bool does_every() {
    return std::getenv("LAMINA_EVERY") != nullptr;
}

bool is_expected(const store::Error& error, int error_number) {
    switch (error_number) {
        // SQLite has one word for all but a write to a full disk, and the number behind it may be of a later call.
        case ENOSPC:
            return error.code() == Errc::no_space || error.code() == Errc::unavailable;
        case EDQUOT:
            return error.code() == Errc::quota || error.code() == Errc::unavailable;
        case EIO:
            return error.code() == Errc::corrupt || error.code() == Errc::unavailable;
        default:
            return false;
    }
}

/// In the child: does it, and looks at what it has left when it failed. The problems.
std::string run_and_look(const Scene& scene, const Operation& operation, const std::string& root, const Way& way) {
    std::unique_ptr<Store> opened;
    bool is_done = false;
    std::string found;
    try {
        opened = Store::open(root);
        if (operation.run) operation.run(*opened);
        is_done = true;
        opened.reset();
    } catch (const store::Error& error) {
        const std::string text = error.what();
        if (!is_expected(error, way.verdict.error_number)) {
            found += "odd error " + std::string(store::errc_name(error.code())) + ": " + text + "\n";
        }
        if (text.empty() || text.find('\n') != text.npos) found += "not one line: " + text + "\n";
    }
    test::open_gate();
    if (opened) found += scene.problems(*opened, operation);  // In the same process: nothing is half known.
    if (opened && !is_done) found += scene.problems_of_next_try(*opened, operation, Scene::Staging::may_hold_files);
    opened.reset();
    opened = Store::open(root);
    found += scene.problems_at_rest(*opened, operation);
    if (is_done) found += operation.why_not_done(*opened);
    return found + scene.problems_of_next_try(*opened, operation);
}

void fail_at(const Scene& scene, const Operation& operation, const test::CallPoint& point, const Way& way) {
    unsigned number = 0;
    bool has_failed = false;
    const std::string root = scene.fresh(operation);
    const auto result = test::run_gated(
        scene.work_folder(),
        [&](const DiskCall& call) -> Verdict {
            const bool is_it = call.label() == point.label && ++number == point.number;
            if (!is_it && !(has_failed && way.goes_on)) return {};
            has_failed = true;
            return way.verdict;
        },
        [&] { return run_and_look(scene, operation, root, way); });
    CAPTURE(operation.name, point.label, point.number, way.name);
    CHECK(has_failed);
    CHECK(result.text == "");
}

}  // namespace

TEST_CASE("an operation that any call fails leaves a sound store and can be done again", "[errors]") {
    if (const std::string why = test::why_no_gate(); !why.empty()) {
        WARN("skipped: " + why);
        return;
    }
    const Scene scene;
    std::size_t turn = 0;
    for (const Operation& operation : scene.operations()) {
        const auto points = test::call_points(scene, operation, does_every());
        for (const test::CallPoint& point : points) {
            for (std::size_t way = 0; way < kWays.size(); ++way) {
                if (does_every() || turn % kWays.size() == way) fail_at(scene, operation, point, kWays[way]);
            }
            ++turn;
        }
        CAPTURE(operation.name);
        CHECK(points.size() >= (does_every() ? 10 : 5));
    }
}
