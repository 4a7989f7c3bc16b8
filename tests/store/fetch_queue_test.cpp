#include "store/fetch_queue.h"

#include "store/digest.h"
#include "store/link_meter.h"
#include "support/catch.h"

#include <optional>
#include <string_view>
#include <utility>
#include <vector>

using namespace lamina;
using store::FetchQueue;
using Kind = store::FetchQueue::Kind;

namespace {

constexpr std::uint64_t kMiB = 1 << 20;

store::DiffId layer_of(std::string_view name) {
    return {store::Digest::of(store::as_bytes(name))};
}

const store::DiffId kLayer = layer_of("a");

FetchQueue queue_of(std::size_t parts) {
    FetchQueue queue;
    queue.add_layer(kLayer, std::vector<std::uint64_t>(parts, kMiB));
    return queue;
}

FetchQueue::Run run_of(std::size_t first, std::size_t end, Kind kind = Kind::wanted) {
    return {.layer = kLayer, .first = first, .end = end, .kind = kind};
}

void finish(FetchQueue& queue, const FetchQueue::Run& run) {
    for (std::size_t part = run.first; part < run.end; ++part) queue.part_done(run, part, true);
    queue.run_done(run);
}

}  // namespace

TEST_CASE("neighbours that are wanted become one run, whatever the order in which they were asked for") {
    FetchQueue queue = queue_of(20);
    for (const std::size_t part : {7, 3, 8, 6, 12}) queue.ask(kLayer, part, Kind::wanted);
    CHECK(queue.next() == run_of(6, 9));
    CHECK(queue.next() == run_of(3, 4));
    CHECK(queue.next() == run_of(12, 13));
    CHECK(queue.next() == std::nullopt);
}

TEST_CASE("a part that is on its way, or has come, is fetched once however many ask") {
    FetchQueue queue = queue_of(4);
    for (int reader = 0; reader < 50; ++reader) CHECK(queue.ask(kLayer, 1, Kind::wanted));
    const auto run = queue.next();
    REQUIRE(run == run_of(1, 2));
    CHECK(queue.ask(kLayer, 1, Kind::wanted));
    CHECK(queue.next() == std::nullopt);
    finish(queue, *run);
    CHECK_FALSE(queue.ask(kLayer, 1, Kind::wanted));
    CHECK(queue.next() == std::nullopt);
    CHECK(queue.ask(kLayer, 1, Kind::wanted, true));
    CHECK(queue.next() == run_of(1, 2));
}

TEST_CASE("what did not come may be asked for again") {
    FetchQueue queue = queue_of(4);
    queue.ask(kLayer, 1, Kind::wanted);
    const auto run = queue.next();
    queue.part_done(*run, 1, false);
    queue.run_done(*run);
    CHECK(queue.ask(kLayer, 1, Kind::wanted));
    CHECK(queue.next() == run_of(1, 2));
}

TEST_CASE("what a reader waits for goes before all that is read ahead, and that before the rest") {
    FetchQueue queue = queue_of(40);
    queue.ask(kLayer, 0, Kind::rest);
    queue.ask(kLayer, 10, Kind::ahead);
    queue.ask(kLayer, 20, Kind::wanted);
    const auto wanted = queue.next();
    const auto ahead = queue.next();
    CHECK(wanted == run_of(20, 21));
    CHECK(ahead == run_of(10, 11, Kind::ahead));
    CHECK(queue.next() == std::nullopt);
    finish(queue, *wanted);
    CHECK(queue.next() == std::nullopt);
    finish(queue, *ahead);
    CHECK(queue.next() == run_of(0, 1, Kind::rest));
}

TEST_CASE("a reader who waits for what is to be read ahead gets it at once") {
    FetchQueue queue = queue_of(40);
    for (const std::size_t part : {1, 10, 20}) queue.ask(kLayer, part, Kind::ahead);
    queue.ask(kLayer, 20, Kind::wanted);
    CHECK(queue.next() == run_of(20, 21));
}

TEST_CASE("reading ahead leaves connections to readers") {
    FetchQueue queue = queue_of(40);
    for (const std::size_t part : {1, 10, 20}) queue.ask(kLayer, part, Kind::ahead);
    CHECK(queue.next());
    CHECK(queue.next());
    CHECK(queue.next() == std::nullopt);
    queue.ask(kLayer, 30, Kind::wanted);
    CHECK(queue.next() == run_of(30, 31));
}

TEST_CASE("what is read ahead joins the run before it when no other reader waits") {
    FetchQueue queue = queue_of(40);
    queue.ask(kLayer, 5, Kind::wanted);
    for (const std::size_t part : {6, 7}) queue.ask(kLayer, part, Kind::ahead);
    CHECK(queue.next() == run_of(5, 8));
    queue.ask(kLayer, 20, Kind::wanted);
    queue.ask(kLayer, 21, Kind::ahead);
    queue.ask(kLayer, 30, Kind::wanted);
    CHECK(queue.next() == run_of(20, 21));
    CHECK(queue.next() == run_of(30, 31));
    CHECK(queue.next() == run_of(21, 22, Kind::ahead));
}

TEST_CASE("a run has at most 16 MiB") {
    FetchQueue queue = queue_of(40);
    for (std::size_t part = 0; part < 40; ++part) queue.ask(kLayer, part, Kind::wanted);
    CHECK(queue.next() == run_of(0, 16));
    CHECK(queue.next() == run_of(16, 32));
}

TEST_CASE("a part of more than 16 MiB is a run of its own") {
    FetchQueue queue;
    queue.add_layer(kLayer, {kMiB, 20 * kMiB, kMiB});
    for (const std::size_t part : {1, 0, 2}) queue.ask(kLayer, part, Kind::wanted);
    CHECK(queue.next() == run_of(1, 2));
}

TEST_CASE("the further a reader reads on, the more is read ahead, up to the limit") {
    FetchQueue queue = queue_of(100);
    const auto count_after = [&](std::size_t part) {
        return queue.follow(kLayer, part, part + 1, 4 * kMiB).ahead_end - part - 1;
    };
    CHECK(count_after(0) == 0);
    std::size_t part = 1;
    std::vector<std::size_t> counts;
    for (int step = 0; step < 7; ++step) {
        counts.push_back(count_after(part));
        part += 1 + counts.back();
    }
    CHECK(counts == std::vector<std::size_t>{1, 1, 1, 2, 4, 4, 4});
    CHECK(count_after(90) == 0);
    CHECK(count_after(part) == 4);  // The first one reads on, whoever else has jumped about.
    CHECK(count_after(99) == 0);
}

TEST_CASE("who asks again, or catches up with what is read ahead for him, is no other reader and does not jump") {
    FetchQueue queue = queue_of(100);
    for (const std::size_t part : {0, 1, 3, 5, 7}) queue.follow(kLayer, part, part + 1, 4 * kMiB);
    for (const std::size_t part : {7, 8, 9, 8}) {
        const auto followed = queue.follow(kLayer, part, part + 1, 4 * kMiB);
        CHECK(followed.near_first == part);
        CHECK(followed.passed_first == part);
        CHECK(followed.ahead_end == part + 1);
    }
    CHECK(queue.follow(kLayer, 10, 11, 4 * kMiB).ahead_end == 15);
}

TEST_CASE("who wants several parts reads on behind the last of them") {
    FetchQueue queue = queue_of(100);
    CHECK(queue.follow(kLayer, 10, 14, kMiB).ahead_end == 14);
    CHECK(queue.follow(kLayer, 12, 13, kMiB).ahead_end == 13);
    const auto followed = queue.follow(kLayer, 13, 16, kMiB);
    CHECK(followed.passed_first == 11);
    CHECK(followed.ahead_end == 17);
}

TEST_CASE("what was read ahead for a reader counts as read once he has passed it") {
    FetchQueue queue = queue_of(100);
    CHECK(queue.follow(kLayer, 4, 5, kMiB).passed_first == 4);
    CHECK(queue.follow(kLayer, 5, 6, kMiB).passed_first == 5);
    CHECK(queue.follow(kLayer, 7, 8, kMiB).passed_first == 6);
    CHECK(queue.follow(kLayer, 50, 51, kMiB).passed_first == 50);
}

TEST_CASE("who jumps about gets what is near, the more the more he does; who jumps away from there gets nothing more") {
    FetchQueue queue;
    queue.add_layer(kLayer, std::vector<std::uint64_t>(100, kMiB / 4));
    const auto near = [&](std::size_t part) {
        const auto followed = queue.follow(kLayer, part, part + 1, kMiB);
        return std::pair(part - followed.near_first, followed.ahead_end - part - 1);
    };
    using Both = std::pair<std::size_t, std::size_t>;
    for (const std::size_t part : {50, 60, 41, 99}) CHECK(near(part) == Both(0, 0));  // 60 is far from 41.
    CHECK(near(54) == Both(2, 2));
    for (const std::size_t part : {47, 56, 45}) near(part);
    CHECK(near(58) == Both(4, 4));
    queue.ask(kLayer, 52, Kind::ahead);
    CHECK(near(52) == Both(0, 0));
    for (const std::size_t part : {2, 2, 1}) CHECK(near(part) == Both(0, 0));
}

TEST_CASE("the rest that was asked for can be taken back, but not what a reader waits for") {
    FetchQueue queue = queue_of(10);
    for (std::size_t part = 0; part < 10; ++part) queue.ask(kLayer, part, Kind::rest);
    queue.ask(kLayer, 4, Kind::wanted);
    queue.take_back(kLayer);
    const auto run = queue.next();
    REQUIRE(run == run_of(4, 5));
    finish(queue, *run);
    CHECK(queue.next() == std::nullopt);
}

TEST_CASE("a layer that is removed leaves nothing to fetch, and what was on its way ends in peace") {
    FetchQueue queue = queue_of(10);
    queue.ask(kLayer, 1, Kind::wanted);
    const auto run = queue.next();
    queue.ask(kLayer, 5, Kind::wanted);
    queue.remove_layer(kLayer);
    CHECK(queue.next() == std::nullopt);
    queue.add_layer(kLayer, {kMiB});
    finish(queue, *run);
    CHECK(queue.ask(kLayer, 0, Kind::wanted));
    CHECK(queue.next() == run_of(0, 1));
}

TEST_CASE("a request asks for about what passes while its reply is awaited, within bounds") {
    store::LinkMeter link;
    CHECK(link.request_bytes() == store::LinkMeter::kLeastBytes);
    link.note(0.1, 1.0, 20'000'000);
    CHECK(link.request_bytes() == 2'000'000);
    for (int i = 0; i < 50; ++i) link.note(1, 1.0, 100'000'000);
    CHECK(link.request_bytes() == store::LinkMeter::kMostBytes);
    for (int i = 0; i < 50; ++i) link.note(0.0001, 0, 100);
    CHECK(link.request_bytes() == store::LinkMeter::kLeastBytes);
}
