#include "store/layer_stream.h"

#include "store/bounded_queue.h"
#include "store/decompressor.h"
#include "store/error.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

// A thread reads the blob, hashes it and decompresses it into buffers of half a MiB, of which there are four: full ones
// travel to the reader, empty ones back. Whatever fails travels in their place and is thrown by read(). Closing both
// queues ends the thread at its next hand-over; only a read() of the blob that blocks can hold it longer.

namespace lamina::store {

namespace {

constexpr std::size_t kBufferCount = 4;
constexpr std::size_t kBufferBytes = 512 * 1024;
constexpr std::size_t kBlobBufferBytes = 128 * 1024;
constexpr std::size_t kMagicBytes = 4;
/// Bytes that the descriptor promises count for the ratio before they are read, up to this many: so a run of zeros at
/// the front of a large layer passes, and a false promise gains little.
constexpr std::uint64_t kMaxCreditBytes = 16 * 1024 * 1024;

/// A decompressor may use one step to see where it is; a library that stands still must not keep us in a loop.
constexpr unsigned kMaxIdleSteps = 3;

struct Filled {
    std::vector<std::byte> data;
    std::size_t size_bytes = 0;
    std::exception_ptr failure;
    bool is_end = false;
};

class ThreadedLayerStream : public LayerStream {
public:
    ThreadedLayerStream(std::unique_ptr<ByteSource> blob, std::unique_ptr<Decompressor> decompressor,
                        const Expected& expected, const StreamLimits& limits)
        : blob_(std::move(blob)),
          decompressor_(std::move(decompressor)),
          expected_(expected),
          limits_(limits),
          input_(kBlobBufferBytes) {
        for (std::size_t i = 0; i < kBufferCount; ++i) empty_.push(std::vector<std::byte>());
        thread_ = std::thread([this] { run(); });
    }
    ~ThreadedLayerStream() override {
        empty_.close();
        full_.close();
        thread_.join();
    }
    std::size_t read(std::span<std::byte> out) override;
    std::uint64_t blob_bytes_read() const override { return blob_bytes_.load(std::memory_order_relaxed); }

private:
    void run() noexcept;
    void inflate();
    std::size_t fill(std::span<std::byte> out);
    void read_blob();
    void choose_decompressor();
    std::size_t take_blob(std::span<std::byte> out);
    void check_ratio() const;
    void check_blob();

    const std::unique_ptr<ByteSource> blob_;
    std::unique_ptr<Decompressor> decompressor_;  ///< The thread's own; null until the first bytes are there.
    const Expected expected_;
    const StreamLimits limits_;
    std::atomic<std::uint64_t> blob_bytes_{0};

    // The thread's own.
    std::vector<std::byte> input_;
    std::span<const std::byte> unused_;
    bool is_blob_at_end_ = false;
    Hasher hasher_;
    std::uint64_t tar_bytes_ = 0;

    // The reader's own.
    Filled current_;
    std::size_t read_bytes_ = 0;  ///< Of current_.

    BoundedQueue<std::vector<std::byte>> empty_{kBufferCount};
    BoundedQueue<Filled> full_{kBufferCount + 1};
    std::thread thread_;
};

std::size_t ThreadedLayerStream::read(std::span<std::byte> out) {
    std::size_t done = 0;
    while (done < out.size()) {
        if (read_bytes_ == current_.size_bytes) {
            if (current_.is_end || (current_.failure && done > 0)) break;
            if (current_.failure) std::rethrow_exception(current_.failure);
            if (!current_.data.empty()) empty_.push(std::move(current_.data));
            current_ = full_.pop().value();
            read_bytes_ = 0;
            continue;
        }
        const std::size_t count = std::min(out.size() - done, current_.size_bytes - read_bytes_);
        std::memcpy(out.data() + done, current_.data.data() + read_bytes_, count);
        read_bytes_ += count;
        done += count;
    }
    return done;
}

void ThreadedLayerStream::run() noexcept {
    try {
        inflate();
    } catch (...) {  // A thread's entry: read() throws it.
        full_.push({.data = {}, .size_bytes = 0, .failure = std::current_exception(), .is_end = false});
    }
}

void ThreadedLayerStream::inflate() {
    if (!decompressor_) choose_decompressor();
    bool is_end = false;
    while (!is_end) {
        std::optional<std::vector<std::byte>> buffer = empty_.pop();
        if (!buffer) return;
        if (buffer->empty()) buffer->resize(kBufferBytes);
        const std::size_t size = fill(*buffer);
        is_end = size < buffer->size();
        if (!full_.push({.data = std::move(*buffer), .size_bytes = size, .failure = nullptr, .is_end = false})) return;
    }
    check_blob();
    full_.push({.data = {}, .size_bytes = 0, .failure = nullptr, .is_end = true});
}

std::size_t ThreadedLayerStream::fill(std::span<std::byte> out) {
    std::size_t filled = 0;
    unsigned idle_steps = 0;
    while (filled < out.size()) {
        if (unused_.empty() && !is_blob_at_end_) read_blob();
        const Decompressor::Step step = decompressor_->step(unused_, out.subspan(filled));
        unused_ = unused_.subspan(step.used_bytes);
        filled += step.made_bytes;
        tar_bytes_ += step.made_bytes;
        check_ratio();
        idle_steps = step.used_bytes == 0 && step.made_bytes == 0 ? idle_steps + 1 : 0;
        if (idle_steps > 0 && unused_.empty() && is_blob_at_end_) {
            decompressor_->end();
            break;
        }
        if (idle_steps > kMaxIdleSteps) throw Error(Errc::malformed, "layer blob: does not decompress");
    }
    return filled;
}

void ThreadedLayerStream::read_blob() {
    unused_ = std::span(input_).first(take_blob(input_));
}

void ThreadedLayerStream::choose_decompressor() {
    std::size_t size = 0;
    while (size < kMagicBytes && !is_blob_at_end_) size += take_blob(std::span(input_).subspan(size));
    unused_ = std::span(input_).first(size);
    decompressor_ = Decompressor::make(compression_of(unused_), limits_);
}

std::size_t ThreadedLayerStream::take_blob(std::span<std::byte> out) {
    const std::size_t size = blob_->read(out);
    if (size == 0) is_blob_at_end_ = true;
    hasher_.update(out.first(size));
    if (blob_bytes_.fetch_add(size, std::memory_order_relaxed) + size > expected_.size_bytes) {
        throw Error(Errc::corrupt, fmt::format("layer blob {}: more than the {} bytes that were promised",
                                               expected_.digest.digest.text(), expected_.size_bytes));
    }
    return size;
}

void ThreadedLayerStream::check_ratio() const {
    const std::uint64_t read = blob_bytes_.load(std::memory_order_relaxed);
    const std::uint64_t counted = std::min(expected_.size_bytes, read + kMaxCreditBytes);
    if (tar_bytes_ < limits_.slack_bytes || (tar_bytes_ - limits_.slack_bytes) / limits_.ratio <= counted) return;
    throw Error(Errc::malformed, fmt::format("layer blob {}: expands to more than {} times its size",
                                             expected_.digest.digest.text(), limits_.ratio));
}

void ThreadedLayerStream::check_blob() {
    const std::string name = expected_.digest.digest.text();
    const std::uint64_t size = blob_bytes_.load(std::memory_order_relaxed);
    if (size != expected_.size_bytes) {
        throw Error(Errc::corrupt,
                    fmt::format("layer blob {}: has {} bytes instead of {}", name, size, expected_.size_bytes));
    }
    const Digest digest = hasher_.finish();
    if (digest != expected_.digest.digest) {
        throw Error(Errc::corrupt, fmt::format("layer blob {}: its bytes are those of {}", name, digest.text()));
    }
}

}  // namespace

std::unique_ptr<LayerStream> LayerStream::open(std::unique_ptr<ByteSource> blob, std::optional<Compression> compression,
                                               const Expected& expected, const StreamLimits& limits) {
    auto decompressor = compression ? Decompressor::make(*compression, limits) : nullptr;
    return std::make_unique<ThreadedLayerStream>(std::move(blob), std::move(decompressor), expected, limits);
}

}  // namespace lamina::store
