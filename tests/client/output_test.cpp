#include "client/output.h"

#include "support/catch.h"

#include <ctime>

using namespace lamina;

TEST_CASE("sizes are short and never show 1000 of a unit", "[client][output]") {
    CHECK(client::human_bytes(0) == "0 B");
    CHECK(client::human_bytes(999) == "999 B");
    CHECK(client::human_bytes(1000) == "1.00 kB");
    CHECK(client::human_bytes(15'300) == "15.3 kB");
    CHECK(client::human_bytes(999'400'000) == "999 MB");
    CHECK(client::human_bytes(999'999'999) == "1.00 GB");
    CHECK(client::human_bytes(~0ull) == "18.4 EB");
}

TEST_CASE("ages use the largest unit that fits", "[client][output]") {
    const std::int64_t now = std::time(nullptr);
    CHECK(client::human_age(now + 100) == "0 seconds ago");
    CHECK(client::human_age(now - 60) == "1 minute ago");
    CHECK(client::human_age(now - 3 * 86400) == "3 days ago");
}

TEST_CASE("names from images cannot steer the terminal", "[client][output]") {
    CHECK(client::printable("plain ü") == "plain ü");
    CHECK(client::printable("\x1b[2J\n") == "\\x1b[2J\\x0a");
    CHECK(client::printable("bad \xff\xc3") == "bad \\xff\\xc3");
}

TEST_CASE("a short digest has twelve digits, with and without its algorithm", "[client][output]") {
    CHECK(client::short_digest("sha256:0123456789abcdef") == "0123456789ab");
    CHECK(client::short_digest("0123456789abcdef") == "0123456789ab");
    CHECK(client::short_digest("") == "");
}

TEST_CASE("the rate is that of the last ten seconds", "[client][output]") {
    client::RateWindow rate;
    CHECK(rate.bytes_per_second() == 0);
    rate.add(0, 500'000'000);  // What was there already is no work of this job.
    rate.add(0.9, 500'000'900);
    CHECK(rate.bytes_per_second() == 0);
    rate.add(2, 500'002'000);
    CHECK(rate.bytes_per_second() == 1000);
    for (unsigned second = 3; second <= 30; ++second) rate.add(second, 500'002'000 + 10 * second);
    CHECK(rate.bytes_per_second() == 10);
    rate.add(31, 50);
    rate.add(33, 90);
    CHECK(rate.bytes_per_second() == 20);
}
