#include "store/frame_ahead.h"

#include <algorithm>
#include <exception>
#include <system_error>

namespace lamina::store {

FrameAhead::~FrameAhead() {
    thread_.request_stop();
}

void FrameAhead::touched(const FrameKey& frame, std::uint64_t end_bytes) noexcept {
    const std::lock_guard lock(mutex_);
    if (std::ranges::find(readers_, frame, &Reader::frame) != readers_.end()) return;
    const auto found = std::ranges::find_if(readers_, [&](const Reader& reader) {
        return reader.frame.pack == frame.pack && reader.end_bytes == frame.offset_bytes;
    });
    if (found == readers_.end()) {
        std::shift_right(readers_.begin(), readers_.end(), 1);
        readers_.front() = {.frame = frame, .end_bytes = end_bytes, .ahead_bytes = end_bytes};
        return;
    }
    found->is_followed = found->is_followed || found->ahead_bytes == found->end_bytes;
    found->frame = frame;
    found->end_bytes = end_bytes;
    found->ahead_bytes = std::max(found->ahead_bytes, end_bytes);
    std::rotate(readers_.begin(), found, found + 1);
    if (!readers_.front().wants_more()) return;
    if (!thread_.joinable()) {
        try {
            thread_ = std::jthread([this](const std::stop_token& stop) { work(stop); });
        } catch (const std::system_error&) {  // No thread to be had: then nothing is read ahead now.
        }
    }
    wake_.notify_one();
}

FrameAhead::Reader* FrameAhead::wanting() {
    const auto found = std::ranges::find_if(readers_, &Reader::wants_more);
    return found == readers_.end() ? nullptr : &*found;
}

void FrameAhead::work(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (wake_.wait(lock, stop, [this] { return wanting() != nullptr; })) {
        const FrameKey next{wanting()->frame.pack, wanting()->ahead_bytes};
        lock.unlock();
        std::uint64_t end_bytes = 0;
        try {
            end_bytes = load_(next);
        } catch (const std::exception&) {  // Whoever reads it gets the error.
        }
        lock.lock();
        for (Reader& reader : readers_) {
            if (reader.frame.pack != next.pack || reader.ahead_bytes != next.offset_bytes) continue;
            if (end_bytes == 0) reader.is_followed = false;
            reader.ahead_bytes = std::max(reader.ahead_bytes, end_bytes);
        }
    }
}

}  // namespace lamina::store
