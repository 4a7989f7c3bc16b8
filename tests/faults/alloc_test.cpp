#include "faults/failing_memory.h"
#include "faults/scene.h"
#include "store/error.h"
#include "support/catch.h"

#include <sys/wait.h>
#include <system_error>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <set>
#include <string>

// Each allocation fails once, in whatever library and thread: the operation then fails, or does without; nothing ends
// the process, and the store is sound. With LAMINA_EVERY the nth for every n; without it a few of the first that each
// way through the code makes.

using namespace lamina;
using store::Store;
using test::Operation;
using test::Scene;

namespace {

/// Of an operation.
constexpr std::size_t kQuickWays = 10;

bool does_every() {
    return std::getenv("LAMINA_EVERY") != nullptr;
}

/// In a child, so that an end of the process is seen. What is wrong.
std::string in_child(const std::function<std::string()>& work) {
    std::array<int, 2> ends{};
    REQUIRE(::pipe(ends.data()) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        std::string text;
        try {
            text = work();
        } catch (const std::exception& error) {  // No destructor of the test may run here.
            text = std::string("threw ") + error.what();
        }
        if (::write(ends[1], text.data(), text.size()) != ssize_t(text.size())) ::_exit(3);
        ::_exit(0);
    }
    ::close(ends[1]);
    std::string text;
    std::array<char, 4096> piece;
    ssize_t got = 0;
    while ((got = ::read(ends[0], piece.data(), piece.size())) > 0) text.append(piece.data(), std::size_t(got));
    ::close(ends[0]);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) text += "ended with status " + std::to_string(status) + "\n";
    return text;
}

std::string run_and_look(const Scene& scene, const Operation& operation, const std::string& root,
                         const test::WhichAllocation& which) {
    auto opened = Store::open(root);
    std::string found;
    bool is_done = false;
    {
        const test::FailingMemory failing(which);
        try {
            operation.run(*opened);
            is_done = true;
        } catch (const std::bad_alloc&) {
        } catch (const std::system_error&) {  // A thread that could not be made.
        } catch (const store::Error& error) {
            failing.stop();
            const std::string text = error.what();
            if (text.find("memory") == text.npos) found += "another error: " + text + "\n";
        }
    }
    found += scene.problems(*opened, operation);
    if (is_done) found += operation.why_not_done(*opened);
    return found + scene.problems_of_next_try(*opened, operation);
}

}  // namespace

TEST_CASE("an operation in which any allocation fails leaves a sound store and can be done again", "[memory]") {
    if (!test::can_fail_memory()) {
        WARN("skipped: a sanitizer has its own memory");
        return;
    }
    const Scene scene;
    for (const char* const name :
         {"import oci", "import docker-archive", "import dir", "commit", "gc", "save oci", "tag"}) {
        const Operation& operation = scene.operation(name);
        const std::string root = scene.fresh(operation);
        const std::vector<std::uint64_t> stacks = test::allocations_of([&] {
            const auto opened = Store::open(root);
            test::begin_recording();
            operation.run(*opened);
        });
        std::vector<test::WhichAllocation> chosen;
        if (does_every()) {
            for (std::uint64_t n = 1; n <= stacks.size(); ++n) chosen.push_back({.number = n});
        } else {
            const std::set<std::uint64_t> ways(stacks.begin(), stacks.end());
            const std::vector<std::uint64_t> all(ways.begin(), ways.end());
            for (const std::uint64_t stack : test::some_of(all, kQuickWays)) chosen.push_back({.stack = stack});
        }
        for (const test::WhichAllocation& which : chosen) {
            const std::string fresh = scene.fresh(operation);
            CAPTURE(name, which.number, which.stack ? test::describe_stack(which.stack) : "");
            CHECK(in_child([&] { return run_and_look(scene, operation, fresh, which); }) == "");
        }
        std::printf("%s: %zu allocations, %zu failed\n", name, stacks.size(), chosen.size());
        CHECK(chosen.size() >= kQuickWays);
    }
}
