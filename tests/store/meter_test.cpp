#include "store/meter.h"

#include "support/catch.h"

#include <thread>
#include <vector>

using namespace lamina;
using store::Meter;
using store::Progress;

TEST_CASE("parts of a job that run side by side add up, and are told in order", "[store][import]") {
    constexpr std::uint64_t kPartBytes = 5 << 20;
    std::vector<Progress> told;
    const store::ProgressFunction tell = [&](const Progress& progress) { told.push_back(progress); };
    Meter meter(tell);
    meter.expect(3 * kPartBytes);
    {
        std::vector<std::jthread> threads;
        for (int i = 0; i < 3; ++i) {
            threads.emplace_back([&, i] {
                Meter::Part part(meter, {.phase = "reading", .item = std::to_string(i)});
                for (std::uint64_t done = 0; done <= kPartBytes; done += 100'000) part.reach(done);
                part.reach(kPartBytes - 1);
                part.reach(kPartBytes);
                part.reach(7);
            });
        }
    }
    REQUIRE(told.size() >= 15);
    CHECK(told.size() <= 20);
    std::uint64_t last = 0;
    for (const Progress& progress : told) {
        CHECK(progress.done_bytes >= last);
        CHECK(progress.total_bytes == 3 * kPartBytes);
        last = progress.done_bytes;
    }
    CHECK(last == 3 * kPartBytes);
}
