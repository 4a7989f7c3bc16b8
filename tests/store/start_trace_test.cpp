#include "store/start_trace.h"

#include "store/error.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/temp_dir.h"

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

using namespace lamina;
using store::StartTrace;
using store::StartTraces;

namespace {

store::ChunkId chunk(std::string_view text) {
    return {store::Digest::of(store::as_bytes(text))};
}

StartTraces::Image image(std::string_view text, std::string repository = "app") {
    return {.config = {store::Digest::of(store::as_bytes(text))}, .repository = std::move(repository)};
}

std::vector<store::ChunkId> chunks_of(const std::optional<StartTrace>& trace) {
    return trace ? trace->chunks : std::vector<store::ChunkId>();
}

const StartTraces::Clock::time_point kBegin{};

}  // namespace

TEST_CASE("a trace is read as it was written, and refused in every other form") {
    const StartTrace trace{.repository = "host/app", .chunks = {chunk("a"), chunk("b")}};
    const std::string text = trace.write();
    const StartTrace read = StartTrace::parse(store::as_bytes(text));
    CHECK(read.repository == "host/app");
    CHECK(read.chunks == trace.chunks);
    const std::vector<std::string> broken{"",           text.substr(0, 5),    text.substr(0, text.size() - 1),
                                          text + "x\n", text + "sha256:00\n", "lamina start trace 2\n\n"};
    for (const std::string& bad : broken) {
        CAPTURE(bad);
        CHECK_THROWS_AS(StartTrace::parse(store::as_bytes(bad)), store::Error);
    }
}

TEST_CASE("runs of an image become one trace, each chunk where it was wanted first") {
    const test::TempDir folder;
    StartTraces traces(folder / "traces");
    traces.note("m1", image("i"), {chunk("a"), chunk("b")}, kBegin);
    traces.note("m1", image("i"), {chunk("a"), chunk("c")}, kBegin + std::chrono::seconds(59));
    traces.note("m2", image("i"), {chunk("d"), chunk("b")}, kBegin);
    traces.flush();
    CHECK(chunks_of(traces.find(image("i").config)) == std::vector{chunk("a"), chunk("b"), chunk("c"), chunk("d")});
    CHECK(chunks_of(StartTraces(folder / "traces").find(image("i").config)).size() == 4);
    CHECK_FALSE(traces.find(image("j").config));
}

TEST_CASE("what a mount wants after its first minute is not its start, until it begins again") {
    const test::TempDir folder;
    StartTraces traces(folder / "traces");
    traces.note("m", image("i"), {chunk("a")}, kBegin);
    traces.note("m", image("i"), {chunk("late")}, kBegin + std::chrono::seconds(61));
    traces.flush();
    CHECK(chunks_of(traces.find(image("i").config)) == std::vector{chunk("a")});
    traces.begin("m");
    traces.note("m", image("i"), {chunk("again")}, kBegin + std::chrono::seconds(100));
    traces.flush();
    CHECK(chunks_of(traces.find(image("i").config)) == std::vector{chunk("a"), chunk("again")});
}

TEST_CASE("another version of an image gets of a trace what it has too, and another image nothing") {
    const test::TempDir folder;
    StartTraces traces(folder / "traces");
    traces.add(image("1"), {chunk("a"), chunk("b"), chunk("c")});
    const auto has_two = [](const store::ChunkId& id) { return id == chunk("c") || id == chunk("a"); };
    CHECK(chunks_of(traces.find_for(image("2"), has_two)) == std::vector{chunk("a"), chunk("c")});
    CHECK(chunks_of(traces.find_for(image("1"), has_two)).size() == 3);
    CHECK_FALSE(traces.find_for(image("2", "other"), has_two));
    CHECK_FALSE(traces.find_for(image("2", ""), has_two));
    CHECK_FALSE(traces.find_for(image("2"), [](const store::ChunkId&) { return false; }));
}

TEST_CASE("a damaged trace is none") {
    const test::TempDir folder;
    StartTraces traces(folder / "traces");
    traces.add(image("1"), {chunk("a")});
    store::write_file_atomically(folder / "traces/" + image("1").config.digest.hex() + ".trace",
                                 store::as_bytes("nonsense"));
    CHECK_FALSE(traces.find(image("1").config));
    CHECK_FALSE(traces.find_for(image("2"), [](const store::ChunkId&) { return true; }));
    traces.add(image("1"), {chunk("b")});
    CHECK(chunks_of(traces.find(image("1").config)) == std::vector{chunk("b")});
}

TEST_CASE("of too many traces the oldest goes") {
    const test::TempDir folder;
    StartTraces traces(folder / "traces");
    traces.add(image("oldest"), {chunk("a")});
    const std::string oldest = folder / "traces/" + image("oldest").config.digest.hex() + ".trace";
    std::filesystem::last_write_time(oldest, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
    for (std::size_t i = 1; i < StartTraces::kMaxTraces; ++i) traces.add(image(std::to_string(i)), {chunk("a")});
    CHECK(traces.find(image("oldest").config));
    traces.add(image("new"), {chunk("a")});
    CHECK_FALSE(traces.find(image("oldest").config));
    CHECK(store::list_folder(folder / "traces").size() == StartTraces::kMaxTraces);
}
