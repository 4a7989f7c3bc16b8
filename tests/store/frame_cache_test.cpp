#include "store/frame_cache.h"

#include "store/error.h"
#include "support/catch.h"

#include <algorithm>
#include <atomic>
#include <latch>
#include <memory>
#include <thread>
#include <vector>

using namespace lamina;

namespace {

std::shared_ptr<const store::Frame> made_frame(std::uint32_t size_bytes, std::byte fill = std::byte{0}) {
    auto frame = std::make_shared<store::Frame>();
    frame->data = std::make_unique<std::byte[]>(size_bytes);
    frame->size_bytes = size_bytes;
    std::fill_n(frame->data.get(), size_bytes, fill);
    return frame;
}

std::shared_ptr<const store::Frame> not_asked() {
    throw store::Error(store::Errc::internal, "loaded, though it is there");
}

}  // namespace

TEST_CASE("however many threads ask for a missing frame, it is loaded once", "[store][frame_cache]") {
    constexpr int kThreads = 8;
    store::FrameCache cache(1 << 20);
    std::atomic<int> load_count{0};
    std::atomic<int> waiting_count{0};
    std::vector<std::thread> threads;
    std::vector<std::shared_ptr<const store::Frame>> got(kThreads);
    for (int i = 0; i < kThreads; ++i) {
        threads.emplace_back([&, i] {
            ++waiting_count;
            got[static_cast<std::size_t>(i)] = cache.get({1, 24}, [&] {
                ++load_count;
                while (waiting_count < kThreads) std::this_thread::yield();  // The others are on their way by then.
                return made_frame(100);
            });
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(load_count == 1);
    for (const auto& frame : got) CHECK(frame == got[0]);
}

TEST_CASE("threads that want other frames do not wait for a slow load", "[store][frame_cache]") {
    store::FrameCache cache(1 << 20);
    std::latch is_loading(1);
    std::latch may_end(1);
    std::thread slow([&] {
        cache.get({1, 1}, [&] {
            is_loading.count_down();
            may_end.wait();
            return made_frame(1);
        });
    });
    is_loading.wait();
    CHECK_FALSE(cache.contains({1, 1}));
    CHECK(cache.get({1, 2}, [] { return made_frame(2); })->size_bytes == 2);
    CHECK(cache.get({1, 2}, not_asked)->size_bytes == 2);
    may_end.count_down();
    slow.join();
    CHECK(cache.contains({1, 1}));
}

TEST_CASE("a failed load fails for all who wait, and the next one tries again", "[store][frame_cache]") {
    constexpr int kThreads = 4;
    store::FrameCache cache(1 << 20);
    std::atomic<int> failure_count{0};
    std::atomic<int> waiting_count{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
        threads.emplace_back([&] {
            ++waiting_count;
            try {
                cache.get({1, 1}, [&]() -> std::shared_ptr<const store::Frame> {
                    while (waiting_count < kThreads) std::this_thread::yield();
                    throw store::Error(store::Errc::corrupt, "bad checksum");
                });
            } catch (const store::Error& error) {
                failure_count += error.code() == store::Errc::corrupt;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(failure_count == kThreads);
    CHECK_FALSE(cache.contains({1, 1}));
    CHECK(cache.held_bytes() == 0);
    CHECK(cache.get({1, 1}, [] { return made_frame(5); })->size_bytes == 5);
}

TEST_CASE("the cache holds no more bytes than its limit and drops what was unused for longest",
          "[store][frame_cache]") {
    const std::uint64_t frame_bytes = made_frame(1000)->memory_bytes();
    store::FrameCache cache(3 * frame_bytes);
    for (std::uint64_t i = 0; i < 3; ++i) cache.get({1, i}, [] { return made_frame(1000); });
    cache.get({1, 0}, not_asked);
    cache.get({1, 3}, [] { return made_frame(1000); });
    CHECK(cache.held_bytes() == 3 * frame_bytes);
    CHECK(cache.contains({1, 0}));
    CHECK_FALSE(cache.contains({1, 1}));
    CHECK(cache.contains({1, 2}));
    CHECK(cache.contains({1, 3}));
    cache.get({1, 4}, [] { return made_frame(2500); });
    CHECK(cache.held_bytes() <= 3 * frame_bytes);
    CHECK(cache.contains({1, 4}));
}

TEST_CASE("a frame larger than the cache is served but not kept", "[store][frame_cache]") {
    store::FrameCache cache(500);
    CHECK(cache.get({1, 1}, [] { return made_frame(1000); })->size_bytes == 1000);
    CHECK_FALSE(cache.contains({1, 1}));
    CHECK(cache.held_bytes() == 0);
}

TEST_CASE("a frame in use stays whole when the cache drops it", "[store][frame_cache]") {
    store::FrameCache cache(2000);
    const auto held = cache.get({1, 1}, [] { return made_frame(1000, std::byte{7}); });
    for (std::uint64_t i = 2; i < 10; ++i) cache.get({1, i}, [] { return made_frame(1000); });
    CHECK_FALSE(cache.contains({1, 1}));
    CHECK(std::all_of(held->data.get(), held->data.get() + 1000, [](std::byte byte) { return byte == std::byte{7}; }));
}

TEST_CASE("frames of different packs at one offset are different", "[store][frame_cache]") {
    store::FrameCache cache(1 << 20);
    for (std::uint32_t pack = 0; pack < 1000; ++pack) {
        cache.get({pack, 24}, [&] { return made_frame(pack + 1); });
    }
    for (std::uint32_t pack = 0; pack < 1000; ++pack) CHECK(cache.get({pack, 24}, not_asked)->size_bytes == pack + 1);
}

TEST_CASE("many threads over many frames in a small cache each get the frame they asked for", "[store][frame_cache]") {
    store::FrameCache cache(40 * made_frame(1000)->memory_bytes());
    std::atomic<int> wrong_count{0};
    std::vector<std::thread> threads;
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
        threads.emplace_back([&, seed] {
            std::uint64_t state = seed + 1;
            for (int i = 0; i < 20'000; ++i) {
                state = state * 6364136223846793005 + 1442695040888963407;
                const std::uint64_t offset = (state >> 33) % 100;
                const auto fill = static_cast<std::byte>(offset);
                const auto frame = cache.get({1, offset}, [&] { return made_frame(1000, fill); });
                wrong_count += frame->data[999] != fill;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong_count == 0);
    CHECK(cache.held_bytes() <= 40 * made_frame(1000)->memory_bytes());
}
