#include "store/chunk_arrivals.h"

#include "support/catch.h"
#include "support/open_core.h"
#include "support/random_bytes.h"

#include <algorithm>
#include <filesystem>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <vector>

using namespace lamina;
using store::ChunkArrivals;
using test::Bytes;
using test::id_of;

namespace {

/// Some chunks, and what was said of them at the end.
class Coming {
public:
    explicit Coming(std::vector<Bytes> chunks) : chunks_(std::move(chunks)) {}
    std::shared_ptr<const ChunkArrivals::Arrival> arrival() const {
        ChunkArrivals::Arrival arrival{
            .bytes = {}, .pieces = {}, .on_end = [end = end_](const auto& error) { end->set_value(error); }};
        for (const Bytes& chunk : chunks_) {
            arrival.pieces.push_back({id_of(chunk), arrival.bytes.size(), chunk.size()});
            arrival.bytes.insert(arrival.bytes.end(), chunk.begin(), chunk.end());
        }
        return std::make_shared<const ChunkArrivals::Arrival>(std::move(arrival));
    }
    std::optional<store::Error> wait() const { return end_->get_future().get(); }

private:
    const std::vector<Bytes> chunks_;
    const std::shared_ptr<std::promise<std::optional<store::Error>>> end_ =
        std::make_shared<std::promise<std::optional<store::Error>>>();
};

}  // namespace

TEST_CASE("chunks can be read as soon as they have come, and are stored then", "[store][lazy]") {
    test::OpenCore store;
    const Bytes first = test::random_bytes(70'000, 1);
    const Bytes second = test::random_bytes(500, 2);
    const Coming coming({first, second});
    std::unique_lock publishing(store.core.publishing);  // Nothing is stored before it is given up.
    ChunkArrivals arrivals(store.core);
    CHECK(arrivals.find(id_of(first)).empty());
    arrivals.add(coming.arrival(), {});
    CHECK(arrivals.find(id_of(first)) == first);
    CHECK(arrivals.find(id_of(second)) == second);
    CHECK(arrivals.find(id_of(test::random_bytes(500, 3))).empty());
    CHECK_FALSE(store.has(second));
    publishing.unlock();
    CHECK_FALSE(coming.wait());
    CHECK(store.has(first));
    CHECK(store.has(second));
    CHECK(arrivals.find(id_of(first)).empty());
}

TEST_CASE("what comes while others are stored shares one pack", "[store][lazy]") {
    test::OpenCore store;
    std::vector<Coming> coming;
    for (std::uint64_t number = 0; number < 6; ++number)
        coming.emplace_back(std::vector<Bytes>{test::random_bytes(900, number)});
    ChunkArrivals arrivals(store.core);
    std::unique_lock publishing(store.core.publishing);
    arrivals.add(coming.front().arrival(), {});
    while (std::filesystem::is_empty(store.core.paths.staging()) &&
           std::filesystem::is_empty(store.core.paths.packs())) {
        std::this_thread::yield();  // Until its commit has begun.
    }
    for (std::size_t number = 1; number < coming.size(); ++number) arrivals.add(coming[number].arrival(), {});
    publishing.unlock();
    for (const Coming& one : coming) CHECK_FALSE(one.wait());
    CHECK(store.core.index->packs().size() == 2);
    CHECK(store.stored_chunks() == coming.size());
}

TEST_CASE("chunks that cannot be stored are told, and come again", "[store][lazy]") {
    test::OpenCore store;
    const Bytes data = test::random_bytes(900, 1);
    ChunkArrivals arrivals(store.core);
    std::filesystem::remove(store.core.paths.staging());
    const Coming lost({data});
    arrivals.add(lost.arrival(), {});
    CHECK(lost.wait());
    CHECK(arrivals.find(id_of(data)).empty());
    store::make_folders(store.core.paths.staging());
    const Coming again({data});
    arrivals.add(again.arrival(), {});
    CHECK_FALSE(again.wait());
    CHECK(store.has(data));
}

TEST_CASE("memory for what is not stored yet is bounded, and waiting for it can be stopped", "[store][lazy]") {
    test::OpenCore store;
    std::vector<Coming> coming;
    std::optional<ChunkArrivals> arrivals(std::in_place, store.core);
    std::unique_lock publishing(store.core.publishing);
    for (std::uint64_t bytes = 0, seed = 0; bytes < ChunkArrivals::kMostBytes; bytes += 4 << 20) {
        std::vector<Bytes> chunks;
        for (int chunk = 0; chunk < 16; ++chunk) chunks.push_back(test::random_bytes(256 << 10, ++seed));
        coming.emplace_back(std::move(chunks));
        arrivals->add(coming.back().arrival(), {});
    }
    const Coming late({test::random_bytes(10, 0)});
    std::stop_source stop;
    auto waiting = std::async(std::launch::async, [&] { arrivals->add(late.arrival(), stop.get_token()); });
    CHECK(waiting.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout);
    stop.request_stop();
    CHECK_THROWS_AS(waiting.get(), store::Error);
    publishing.unlock();
    arrivals.reset();  // Each is told its end, stored or not.
    for (const Coming& one : coming) {
        const auto error = one.wait();
        CHECK((!error || error->code() == store::Errc::cancelled));
    }
}
