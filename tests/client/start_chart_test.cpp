// The picture of a start: every request and wait is in it, and text is safe.
#include "client/start_chart.h"

#include "support/catch.h"

#include <string>
#include <string_view>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;

namespace {

constexpr std::int64_t kBegun = 1'700'000'000'000'000;

api::Explanation some_start() {
    api::Explanation explanation{.image = "host/app:1", .id = "sha256:aa"};
    api::ExplainedStart& start = explanation.start;
    start = {.mount = "0123456789abcdef",
             .begun_us = kBegun,
             .end_us = kBegun + 2'000'000,
             .last_wait_us = kBegun + 300'000,
             .wait_us = 250'000,
             .wait_count = 1,
             .fetched_bytes = 3'000'000,
             .request_count = 3};
    for (const char* const kind : {"waited", "ahead", "rest"}) {
        start.requests.push_back({.layer = "sha256:bb",
                                  .kind = kind,
                                  .source = "host/app",
                                  .blob_first = 0,
                                  .blob_end = 1'000'000,
                                  .sent_us = kBegun + 50'000,
                                  .first_byte_us = kBegun + 100'000,
                                  .end_us = kBegun + 300'000,
                                  .bytes = 1'000'000});
    }
    start.waits.push_back({.layer = "sha256:bb",
                           .chunk = "sha256:cc",
                           .size_bytes = 50'000,
                           .paths = {"/usr/bin/<app>"},
                           .begin_us = kBegun + 50'000,
                           .end_us = kBegun + 300'000,
                           .kind = "waited"});
    return explanation;
}

std::size_t count_of(std::string_view text, std::string_view part) {
    std::size_t count = 0;
    for (auto at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++count;
    return count;
}

}  // namespace

TEST_CASE("a start's picture has a bar for each request and wait, and says what they are", "[client][chart]") {
    const std::string chart = client::start_chart(some_start());
    CHECK(count_of(chart, "<rect class=\"request\"") == 3);
    CHECK(count_of(chart, "data-kind=\"ahead\" data-bytes=\"1000000\"") == 1);
    CHECK(count_of(chart, "<rect class=\"wait\" x") == 1);
    CHECK_THAT(chart, ContainsSubstring("250 ms for 50.0 kB of /usr/bin/&lt;app&gt;"));
    CHECK_THAT(chart, ContainsSubstring("Programs waited 1 times, 250 ms in all."));
    CHECK_THAT(chart, ContainsSubstring("prefers-color-scheme: dark"));
}

TEST_CASE("names and errors cannot break out of a start's picture", "[client][chart]") {
    api::Explanation explanation = some_start();
    explanation.image = "\"/><script>alert(1)</script>\x1b";
    explanation.start.requests[0].error = "</title></rect><script>";
    explanation.start.requests[0].kind = "<script>";
    const std::string chart = client::start_chart(explanation);
    CHECK(chart.find("<script") == std::string::npos);
    CHECK(chart.find('\x1b') == std::string::npos);
    CHECK(count_of(chart, "<rect class=\"request failed\"") == 1);
}

TEST_CASE("a start with nothing in it, and one with very much, are pictures too", "[client][chart]") {
    api::Explanation explanation = some_start();
    explanation.start.requests.clear();
    explanation.start.waits.clear();
    explanation.start.end_us = kBegun;
    explanation.start.wait_count = 0;
    CHECK_THAT(client::start_chart(explanation), ContainsSubstring("Nobody waited."));
    explanation = some_start();
    explanation.start.requests.resize(2'000, explanation.start.requests[0]);
    const std::string chart = client::start_chart(explanation);
    CHECK(count_of(chart, "<rect class=\"request\"") == 2'000);
    CHECK(chart.size() < 2'000'000);
    explanation.start.mount.clear();
    CHECK_THROWS_AS(client::start_chart(explanation), api::FailureError);
}

TEST_CASE("times are told in the unit that suits them", "[client][chart]") {
    CHECK(client::human_time(-5) == "0 µs");
    CHECK(client::human_time(999) == "999 µs");
    CHECK(client::human_time(12'340) == "12.3 ms");
    CHECK(client::human_time(250'000) == "250 ms");
    CHECK(client::human_time(1'500'000) == "1.50 s");
    CHECK(client::human_time(60'000'000) == "60.0 s");
    CHECK(client::human_time(600'000'000) == "10 min");
}
