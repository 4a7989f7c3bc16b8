#include "store/fetch_log.h"

#include "store/error.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <fstream>
#include <string>
#include <string_view>

using namespace lamina;
using store::ChunkWait;
using store::FetchKind;
using store::FetchLog;
using store::MountBegun;
using store::RangeRequest;

namespace {

store::Digest digest(std::string_view text) {
    return store::Digest::of(store::as_bytes(text));
}

RangeRequest request(std::int64_t sent_us, FetchKind kind = FetchKind::waited) {
    return {.layer = {digest("layer")},
            .source = "host:5000/app",
            .kind = kind,
            .blob_first = 10,
            .blob_end = 1'000,
            .tar_first = 0,
            .tar_end = 4'096,
            .sent_us = sent_us,
            .first_byte_us = sent_us + 5,
            .end_us = sent_us + 9,
            .bytes = 990,
            .failures = 2,
            .error = "broke \"off\"\n"};
}

MountBegun mount(std::int64_t at_us) {
    return {.mount = "0123456789abcdef", .config = {digest("config")}, .at_us = at_us};
}

std::string text_of(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
}

void append(const std::string& path, std::string_view text) {
    std::ofstream(path, std::ios::app) << text;
}

}  // namespace

TEST_CASE("what is noted is read as it was, in the order in which it happened", "[store][explain]") {
    const test::TempDir folder;
    {
        FetchLog log(folder / "fetches");
        CHECK(log.read().requests.empty());
        log.add(mount(100));
        log.add(request(300, FetchKind::trace));
        log.add(request(200));  // Was sent before, and took longer.
        log.add(ChunkWait{.mount = "m",
                          .layer = {digest("layer")},
                          .chunk = {digest("chunk")},
                          .begin_us = 150,
                          .end_us = 250,
                          .request_us = 200,
                          .kind = FetchKind::ahead,
                          .error = {}});
        log.add(store::WholePull{.at_us = 7, .source = "host/b", .lacks_index = true, .layers = {{digest("l")}}});
    }
    const FetchLog::Events events = FetchLog(folder / "fetches").read();
    CHECK(events.unreadable_lines == 0);
    REQUIRE(events.requests.size() == 2);
    const RangeRequest& first = events.requests[0];
    CHECK(first.layer.digest == digest("layer"));
    CHECK(first.source == "host:5000/app");
    CHECK(first.kind == FetchKind::waited);
    CHECK(std::pair(first.blob_first, first.blob_end) == std::pair<std::uint64_t, std::uint64_t>(10, 1'000));
    CHECK(std::pair(first.tar_first, first.tar_end) == std::pair<std::uint64_t, std::uint64_t>(0, 4'096));
    CHECK(std::tuple(first.sent_us, first.first_byte_us, first.end_us) == std::tuple(200, 205, 209));
    CHECK(std::pair(first.bytes, first.failures) == std::pair<std::uint64_t, std::uint64_t>(990, 2));
    CHECK(first.error == "broke \"off\"\n");
    CHECK(events.requests[1].kind == FetchKind::trace);
    REQUIRE(events.waits.size() == 1);
    CHECK(events.waits[0].chunk.digest == digest("chunk"));
    CHECK(std::tuple(events.waits[0].begin_us, events.waits[0].end_us, events.waits[0].request_us) ==
          std::tuple(150, 250, 200));
    CHECK(events.waits[0].kind == FetchKind::ahead);
    REQUIRE(events.mounts.size() == 1);
    CHECK(events.mounts[0].config.digest == digest("config"));
    REQUIRE(events.pulls.size() == 1);
    CHECK(events.pulls[0].lacks_index);
    CHECK(events.pulls[0].layers.size() == 1);
}

TEST_CASE("the fetch log never takes more than two files of its limit, and keeps what came last", "[store][explain]") {
    const test::TempDir folder;
    constexpr std::uint64_t kLimit = 4'000;
    FetchLog log(folder / "fetches", kLimit);
    for (std::int64_t at = 0; at < 200; ++at) log.add(mount(at));
    CHECK(store::file_size(folder / "fetches/log") <= kLimit);
    CHECK(store::file_size(folder / "fetches/log.1") <= kLimit);
    CHECK(store::list_folder(folder / "fetches").size() == 2);
    const auto mounts = log.read().mounts;
    REQUIRE(mounts.size() > 20);
    CHECK(mounts.back().at_us == 199);
    CHECK(mounts.front().at_us == 199 - static_cast<std::int64_t>(mounts.size()) + 1);
    FetchLog next(folder / "fetches", kLimit);  // Goes on where it ended.
    next.add(mount(200));
    CHECK(next.read().mounts.back().at_us == 200);
}

TEST_CASE("damaged lines of the fetch log are left out, and cost no other line", "[store][explain]") {
    const test::TempDir folder;
    const std::string path = folder / "fetches/log";
    FetchLog(folder / "fetches").add(mount(1));
    const std::string good = text_of(path);
    const std::string times = R"("times":[5,4])";
    for (const std::string& bad :
         {std::string("nonsense"), std::string("{}"), std::string(R"({"event":"party"})"), good.substr(0, 40),
          std::string(R"({"event":"mount","mount":"m","config":"12","at":1})"),
          R"({"event":"wait","mount":"m","layer":")" + digest("l").hex() + R"(","chunk":")" + digest("c").hex() +
              "\"," + times + R"(,"request":0,"kind":"waited","error":""})",
          std::string(70'000, '['), std::string("\0\xff\x01", 3)}) {
        append(path, bad + "\n");
    }
    append(path, good.substr(0, 20));  // As a power cut leaves it.
    FetchLog log(folder / "fetches");
    log.add(mount(2));
    const FetchLog::Events events = log.read();
    REQUIRE(events.mounts.size() == 2);
    CHECK(events.mounts[1].at_us == 2);
    CHECK(events.waits.empty());
    CHECK(events.unreadable_lines == 9);
}

TEST_CASE("a line that finds no room is lost, and nobody is told", "[store][explain]") {
    const test::TempDir folder;
    FetchLog log(folder / "fetches");
    log.add(mount(1));
    {
        const test::FaultAtStep full(1, test::FaultAtStep::How::from_then_on);
        log.add(mount(2));
        CHECK(full.has_failed());
    }
    log.add(mount(3));
    const auto mounts = log.read().mounts;
    REQUIRE(mounts.size() == 2);
    CHECK(mounts[1].at_us == 3);
    FetchLog nowhere(folder / "no/folder/at/all");
    nowhere.add(mount(1));
    CHECK(nowhere.read().mounts.empty());
}

TEST_CASE("a stamp of the fetch log is given once", "[store][explain]") {
    const test::TempDir folder;
    FetchLog log(folder / "fetches");
    std::int64_t last = 0;
    for (int i = 0; i < 1'000; ++i) {
        const std::int64_t stamp = log.new_stamp();
        CHECK(stamp > last);
        last = stamp;
    }
    CHECK(last >= log.now_us() - 1'000'000);
}
