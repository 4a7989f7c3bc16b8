#include "fuse/reading_threads.h"

#include "support/catch.h"

using namespace lamina::unionfs;
using Verdict = ClientWatch::Verdict;

namespace {

Verdict verdict_on(const std::vector<std::uint32_t>& processes) {
    ClientWatch watch;
    Verdict verdict = Verdict::unknown;
    for (unsigned i = 0; i < ClientWatch::kWindow; ++i) verdict = watch.saw(processes[i % processes.size()]);
    return verdict;
}

}  // namespace

TEST_CASE("one process, or one after another, is one client; turns make several", "[reading_threads]") {
    CHECK(verdict_on({7}) == Verdict::one);
    std::vector<std::uint32_t> compilers;
    for (std::uint32_t i = 1; i <= ClientWatch::kWindow; ++i) compilers.push_back(i / 4 + 1);
    CHECK(verdict_on(compilers) == Verdict::one);
    CHECK(verdict_on({7, 8}) == Verdict::several);
    CHECK(verdict_on({7, 7, 8, 8}) == Verdict::several);
}

TEST_CASE("requests without a process say nothing about clients", "[reading_threads]") {
    ClientWatch watch;
    for (unsigned i = 0; i < 10 * ClientWatch::kWindow; ++i) REQUIRE(watch.saw(0) == Verdict::unknown);
}

TEST_CASE("a window is judged once, and the next begins anew", "[reading_threads][reading.turns]") {
    ClientWatch watch;
    for (unsigned i = 1; i < ClientWatch::kWindow; ++i) REQUIRE(watch.saw(i % 2 + 1) == Verdict::unknown);
    CHECK(watch.saw(1) == Verdict::several);
    for (unsigned i = 1; i < ClientWatch::kWindow; ++i) REQUIRE(watch.saw(1) == Verdict::unknown);
    CHECK(watch.saw(1) == Verdict::one);
}

TEST_CASE("the CPU is field 39 of a stat line, whatever the program is called", "[reading_threads]") {
    const std::string fields =
        " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 17 5 0 0";
    CHECK(cpu_from_stat("12 (cat)" + fields) == 5);
    CHECK(cpu_from_stat("12 (a) b) 1 2)" + fields) == 5);
    CHECK(cpu_from_stat("") == -1);
    CHECK(cpu_from_stat("12 (cat") == -1);
    CHECK(cpu_from_stat("12 (cat) S 1 2 3") == -1);
    for (std::size_t size = 0; size + 6 < fields.size(); ++size) {
        CHECK(cpu_from_stat("12 (cat)" + fields.substr(0, size)) == -1);
    }
}

TEST_CASE("the running tasks are the fourth field of loadavg", "[reading_threads]") {
    CHECK(running_from_loadavg("0.56 0.45 0.35 3/215 1234\n") == 3);
    CHECK(running_from_loadavg("") == 0);
    CHECK(running_from_loadavg("1 2") == 0);
    CHECK(running_from_loadavg("1 2 3 x/1") == 0);
}
