#pragma once

#include "store/frame_cache.h"

#include <array>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>

namespace lamina::store {

/// Unpacks the frames behind the one that is read, for whoever reads one after the other, in a thread of its own that
/// starts when there is a first one to follow. Files lie in packs in the order of their paths, so that this serves
/// large files and walks through many small ones. Thread-safe.
class FrameAhead {
public:
    static constexpr std::uint64_t kWindowBytes = 512 << 10;  ///< How far, of packed bytes.

    /// Makes the frame be cached, and returns where the next one begins. 0: there is none, or it cannot be read: who
    /// wants it will hear why.
    using Load = std::function<std::uint64_t(const FrameKey&)>;

    explicit FrameAhead(Load load) : load_(std::move(load)) {}
    ~FrameAhead();
    FrameAhead(const FrameAhead&) = delete;
    FrameAhead& operator=(const FrameAhead&) = delete;

    /// A frame is read, and ends before `end_bytes` of its pack.
    void touched(const FrameKey& frame, std::uint64_t end_bytes) noexcept;

private:
    struct Reader {
        FrameKey frame;                 ///< That it was at last.
        std::uint64_t end_bytes = 0;    ///< Of that.
        std::uint64_t ahead_bytes = 0;  ///< So far the frames are unpacked.
        bool is_followed = false;       ///< It has read two frames in a row, and the pack goes on.
        bool wants_more() const { return is_followed && ahead_bytes < end_bytes + kWindowBytes; }
    };

    void work(const std::stop_token& stop);
    Reader* wanting();

    const Load load_;
    std::mutex mutex_;  // Guards what follows; not held while a frame is loaded.
    std::condition_variable_any wake_;
    std::array<Reader, 4> readers_;  ///< Who read last is the first one.
    std::jthread thread_;
};

}  // namespace lamina::store
