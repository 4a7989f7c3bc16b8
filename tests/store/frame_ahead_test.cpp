// What is unpacked ahead of a reader: the frames behind the one that he is at, once he has read two in a row.
#include "store/frame_ahead.h"

#include "store/error.h"
#include "support/catch.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <vector>

using namespace lamina;
using store::FrameKey;

namespace {

constexpr std::uint64_t kFrameBytes = 100'000;

/// A pack of frames that are all of one size.
class Pack {
public:
    explicit Pack(std::uint64_t frames) : end_bytes_(frames * kFrameBytes) {}

    std::uint64_t load(const FrameKey& frame) {
        const std::lock_guard lock(mutex_);
        loaded_.push_back(frame.offset_bytes / kFrameBytes);
        changed_.notify_all();
        if (frame.pack != 1) throw store::Error(store::Errc::corrupt, "bad checksum");
        return frame.offset_bytes < end_bytes_ ? frame.offset_bytes + kFrameBytes : 0;
    }
    /// The numbers of what was loaded, when there are so many.
    std::vector<std::uint64_t> loaded(std::size_t count) {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, std::chrono::seconds(30), [&] { return loaded_.size() >= count; });
        return loaded_;
    }

private:
    const std::uint64_t end_bytes_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::uint64_t> loaded_;
};

void touch(store::FrameAhead& ahead, std::uint64_t number, std::uint32_t pack = 1) {
    ahead.touched({pack, number * kFrameBytes}, (number + 1) * kFrameBytes);
}

constexpr std::size_t kWindowFrames = (store::FrameAhead::kWindowBytes + kFrameBytes - 1) / kFrameBytes;

std::vector<std::uint64_t> from(std::uint64_t first, std::size_t count) {
    std::vector<std::uint64_t> numbers(count);
    std::ranges::generate(numbers, [&] { return first++; });
    return numbers;
}

}  // namespace

TEST_CASE("whoever reads two frames in a row finds the next ones unpacked, each once", "[store][frame_ahead]") {
    Pack pack(100);
    store::FrameAhead ahead([&](const FrameKey& frame) { return pack.load(frame); });
    touch(ahead, 7);
    touch(ahead, 7);
    touch(ahead, 8);
    CHECK(pack.loaded(kWindowFrames) == from(9, kWindowFrames));
    touch(ahead, 8);
    touch(ahead, 9);
    CHECK(pack.loaded(kWindowFrames + 1) == from(9, kWindowFrames + 1));
}

TEST_CASE("nothing is unpacked for who jumps", "[store][frame_ahead]") {
    Pack pack(100);
    {
        store::FrameAhead ahead([&](const FrameKey& frame) { return pack.load(frame); });
        for (const std::uint64_t number : {3, 50, 7, 90, 1, 60, 30, 3, 8}) touch(ahead, number);
        touch(ahead, 9, 2);  // Not behind 8: in another pack.
    }
    CHECK(pack.loaded(0).empty());
}

TEST_CASE("readers of several places at once are all followed", "[store][frame_ahead]") {
    Pack pack(1'000);
    store::FrameAhead ahead([&](const FrameKey& frame) { return pack.load(frame); });
    for (const std::uint64_t step : {0, 1}) {
        for (const std::uint64_t place : {100, 300, 500}) touch(ahead, place + step);
    }
    std::vector<std::uint64_t> loaded = pack.loaded(3 * kWindowFrames);
    std::ranges::sort(loaded);
    std::vector<std::uint64_t> expected;
    for (const std::uint64_t place : {102, 302, 502}) {
        const auto part = from(place, kWindowFrames);
        expected.insert(expected.end(), part.begin(), part.end());
    }
    CHECK(loaded == expected);
}

TEST_CASE("the end of a pack, or a frame that cannot be read, ends it", "[store][frame_ahead]") {
    Pack pack(4);
    {
        store::FrameAhead ahead([&](const FrameKey& frame) { return pack.load(frame); });
        touch(ahead, 1);
        touch(ahead, 2);
        CHECK(pack.loaded(2) == from(3, 2));  // 4 is none.
        touch(ahead, 3);
    }
    CHECK(pack.loaded(2) == from(3, 2));
    Pack damaged(100);
    {
        store::FrameAhead ahead([&](const FrameKey& frame) { return damaged.load(frame); });
        touch(ahead, 1, 2);
        touch(ahead, 2, 2);
        CHECK(damaged.loaded(1) == from(3, 1));
    }
    CHECK(damaged.loaded(1) == from(3, 1));
}
