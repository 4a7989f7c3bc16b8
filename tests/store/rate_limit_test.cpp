#include "store/rate_limit.h"

#include "store/error.h"
#include "support/catch.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <chrono>
#include <thread>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;

namespace {

std::string error_of_taking(store::RateLimit& limit, std::uint64_t bytes, const std::stop_token& stop) {
    try {
        limit.take(bytes, stop);
        return "";
    } catch (const store::Error& error) {
        return error.what();
    }
}

}  // namespace

TEST_CASE("bytes pass no faster than the limit lets them, but for a second's worth", "[store][rate]") {
    store::RateLimit limit(1'000'000);
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 12; ++i) limit.take(100'000, {});
    CHECK(std::chrono::steady_clock::now() - begin >= std::chrono::milliseconds(190));
}

TEST_CASE("who waits for a limit can be stopped", "[store][rate]") {
    store::RateLimit limit(1);
    std::stop_source stop;
    std::jthread stopper([&] { stop.request_stop(); });
    CHECK_THAT(error_of_taking(limit, 1'000'000, stop.get_token()), ContainsSubstring("stopped"));
}

TEST_CASE("without a limit nothing waits, and a stop is heeded", "[store][rate]") {
    store::RateLimit limit(0);
    limit.take(~std::uint64_t{0}, {});
    std::stop_source stop;
    stop.request_stop();
    CHECK_THAT(error_of_taking(limit, 1, stop.get_token()), ContainsSubstring("stopped"));
}
