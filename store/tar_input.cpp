#include "store/tar_input.h"

#include "store/error.h"

#include <array>
#include <cassert>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

// Four buffers in a ring. The parsing thread fills one, hands it to the hashing thread and then parses it itself: both
// only read it. A buffer is filled again when the parser has moved on to the next one and the hasher has passed it.
// What the parser has not used when it needs more than is left is copied in front of the next buffer's bytes, where
// each buffer has room for it.

namespace lamina::store {

namespace {
constexpr std::size_t kBufferCount = 4;
constexpr std::size_t kFillBytes = 1024 * 1024;
constexpr std::size_t kCarryBytes = TarInput::kMaxPeekBytes;
}  // namespace

class HashedTar::Hashing {
public:
    Hashing() : thread_([this] { run(); }) {}
    ~Hashing() {
        {
            const std::lock_guard lock(mutex_);
            is_ended_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    Hashing(const Hashing&) = delete;
    Hashing& operator=(const Hashing&) = delete;

    /// The buffer to fill next, when the hasher is done with it. Its first kCarryBytes are for what is carried over.
    std::span<std::byte> acquire() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return handed_over_ - hashed_ < kBufferCount; });
        std::vector<std::byte>& buffer = buffers_[handed_over_ % kBufferCount];
        if (buffer.empty()) buffer.resize(kCarryBytes + kFillBytes);
        return buffer;
    }
    void hand_over(std::span<const std::byte> data) {
        {
            const std::lock_guard lock(mutex_);
            queue_[handed_over_ % kBufferCount] = data;
            ++handed_over_;
        }
        changed_.notify_all();
    }
    Digest finish() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return hashed_ == handed_over_; });
        return hasher_.finish();  // The thread is waiting and does not touch the hasher.
    }

private:
    void run() {
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [&] { return hashed_ < handed_over_ || is_ended_; });
            if (is_ended_) return;
            const auto data = queue_[hashed_ % kBufferCount];
            lock.unlock();
            hasher_.update(data);
            lock.lock();
            ++hashed_;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;  // Guards the numbers and the queue; the buffers' bytes change hands with the numbers.
    std::condition_variable changed_;
    std::array<std::vector<std::byte>, kBufferCount> buffers_;
    std::array<std::span<const std::byte>, kBufferCount> queue_;
    std::uint64_t handed_over_ = 0;
    std::uint64_t hashed_ = 0;
    bool is_ended_ = false;
    Hasher hasher_;
    std::thread thread_;  // Last: starts when the rest is there.
};

HashedTar::HashedTar(ByteSource& tar, std::stop_token stop)
    : tar_(tar), stop_(std::move(stop)), hashing_(std::make_unique<Hashing>()) {}

HashedTar::~HashedTar() = default;

void HashedTar::next_buffer() {
    if (stop_.stop_requested()) throw Error(Errc::cancelled, "reading a layer: stopped");
    const auto buffer = hashing_->acquire();
    const auto fill = buffer.subspan(kCarryBytes);
    std::size_t filled = 0;
    while (filled < fill.size() && !is_at_end_) {
        const std::size_t got = tar_.read(fill.subspan(filled));
        if (got == 0) is_at_end_ = true;
        filled += got;
    }
    assert(window_.size() <= kCarryBytes);
    std::byte* const begin = fill.data() - window_.size();
    if (!window_.empty()) std::memcpy(begin, window_.data(), window_.size());
    window_ = {begin, window_.size() + filled};
    bytes_read_ += filled;
    if (filled > 0) hashing_->hand_over(fill.first(filled));
}

std::span<const std::byte> HashedTar::peek(std::size_t want_bytes) {
    assert(want_bytes > 0 && want_bytes <= kMaxPeekBytes);
    while (window_.size() < want_bytes && !is_at_end_) next_buffer();
    return window_;
}

void HashedTar::consume(std::size_t bytes) {
    assert(bytes <= window_.size());
    window_ = window_.subspan(bytes);
}

std::uint64_t HashedTar::bytes_read() const noexcept {
    return bytes_read_;
}

DiffId HashedTar::finish() {
    assert(window_.empty() && is_at_end_);
    return DiffId{hashing_->finish()};
}

}  // namespace lamina::store
