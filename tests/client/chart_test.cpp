// The picture of what shares what: its areas add up, its text is safe.
#include "client/chart.h"

#include "client/treemap.h"
#include "support/catch.h"

#include <algorithm>
#include <cmath>
#include <regex>
#include <string>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;

namespace {

api::Usage some_usage() {
    api::Usage usage{.logical_bytes = 900'000,
                     .pack_bytes = 100'000,
                     .index_bytes = 4'000,
                     .recipe_bytes = 3'000,
                     .tree_bytes = 2'000,
                     .mount_bytes = 1'000,
                     .other_bytes = 500};
    usage.images = {{"debian:12", "sha256:aa", 300'000, 70'000, 20'000},
                    {"server:1", "sha256:bb", 300'000, 60'000, 10'000},
                    {"web:1", "sha256:cc", 300'000, 40'000, 15'000}};
    usage.shares = {{{0, 1}, 30'000}, {{0, 1, 2}, 20'000}, {{0}, 20'000}, {{2}, 15'000}, {{1}, 10'000}};
    return usage;
}

std::uint64_t sum_of_areas(const std::string& chart) {
    static const std::regex bytes("data-bytes=\"([0-9]+)\"");
    std::uint64_t sum = 0;
    for (std::sregex_iterator at(chart.begin(), chart.end(), bytes), end; at != end; ++at)
        sum += std::stoull((*at)[1].str());
    return sum;
}

std::uint64_t on_disk(const api::Usage& usage) {
    return usage.pack_bytes + usage.index_bytes + usage.recipe_bytes + usage.tree_bytes + usage.mount_bytes +
           usage.other_bytes;
}

}  // namespace

TEST_CASE("the areas of a chart add up to all that is on disk", "[client][chart]") {
    api::Usage usage = some_usage();
    CHECK(sum_of_areas(client::usage_chart(usage)) == on_disk(usage));
    usage.shares.push_back({{}, 4'000});  // Of various images.
    CHECK(sum_of_areas(client::usage_chart(usage)) == on_disk(usage));
    CHECK(sum_of_areas(client::usage_chart({})) == 0);
    usage.images.clear();
    usage.shares.clear();
    CHECK(sum_of_areas(client::usage_chart(usage)) == on_disk(usage));
}

TEST_CASE("a chart names images and who shares what, and how much of one is in another", "[client][chart]") {
    const std::string chart = client::usage_chart(some_usage());
    CHECK_THAT(chart, ContainsSubstring("<title>shared by debian:12, server:1: 30.0 kB (30000 bytes)</title>"));
    CHECK_THAT(chart, ContainsSubstring("<title>web:1 alone: 15.0 kB (15000 bytes)</title>"));
    CHECK_THAT(chart, ContainsSubstring(">71 %</text>"));  // Of debian:12 in server:1: 50,000 of 70,000.
    CHECK_THAT(chart, ContainsSubstring(">50 %</text>"));  // Of web:1 in each other.
    CHECK_THAT(chart, ContainsSubstring("prefers-color-scheme: dark"));
}

TEST_CASE("names of images cannot break out of a chart", "[client][chart]") {
    api::Usage usage = some_usage();
    usage.images[0].name = "\"/><script>alert(1)</script>&\x1b\xff";
    usage.images[1].name.clear();
    const std::string chart = client::usage_chart(usage);
    CHECK(chart.find("<script") == std::string::npos);
    CHECK(chart.find('\x1b') == std::string::npos);
    CHECK_THAT(chart, ContainsSubstring("&lt;script&gt;"));
    usage.images[0].name = std::string(10'000, 'x') + "ü";
    CHECK_THAT(client::usage_chart(usage), ContainsSubstring("x…</text>"));
    usage.shares[0].images = {0, 7};
    CHECK_THROWS_AS(client::usage_chart(usage), api::FailureError);
}

TEST_CASE("a chart of very many images stays a picture", "[client][chart]") {
    api::Usage usage{.pack_bytes = 1'000'000};
    for (std::uint32_t i = 0; i < 500; ++i) {
        usage.images.push_back({"image" + std::to_string(i), "sha256:dd", 5'000, 1'000, 900});
        usage.shares.push_back({{i}, 900});
    }
    const std::string chart = client::usage_chart(usage);
    CHECK(sum_of_areas(chart) == on_disk(usage));
    CHECK_THAT(chart, ContainsSubstring("and 460 more"));
    CHECK(chart.size() < 1'000'000);
}

TEST_CASE("rectangles of a treemap fill it, in their order, with the areas they stand for", "[client][chart]") {
    const client::Rectangle all{10, 20, 600, 400};
    const std::vector<double> sizes{600, 600, 400, 300, 200, 200, 100, 1, 0.001, 0, 0};
    double sum = 0;
    for (const double size : sizes) sum += size;
    const auto placed = client::squarified(all, sizes);
    REQUIRE(placed.size() == sizes.size());
    for (std::size_t i = 0; i < placed.size(); ++i) {
        CAPTURE(i);
        const client::Rectangle& one = placed[i];
        CHECK(std::abs(one.width * one.height - sizes[i] / sum * 240'000) < 0.01);
        CHECK(one.x >= all.x - 0.01);
        CHECK(one.y >= all.y - 0.01);
        CHECK(one.x + one.width <= all.x + all.width + 0.01);
        CHECK(one.y + one.height <= all.y + all.height + 0.01);
        if (i < 7) CHECK(std::max(one.width / one.height, one.height / one.width) < 4);
    }
    CHECK(client::squarified(all, {}).empty());
    CHECK(client::squarified(all, {0, 0}).size() == 2);
}
