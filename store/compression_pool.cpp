#include "store/compression_pool.h"

#include "store/error.h"

#include <system_error>

#include <zstd.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace lamina::store {

namespace format = pack_format;

namespace {

struct FreeContext {
    void operator()(ZSTD_CCtx* context) const noexcept { ZSTD_freeCCtx(context); }
};
using Compressor = std::unique_ptr<ZSTD_CCtx, FreeContext>;

/// Level 3 as used at import. zstd's own takes the first match that it finds ("dfast"); to look two steps further
/// ("lazy"), with tables that fit the second-level cache, makes packs of real images 4.9% smaller for 0.9 times more
/// CPU in compression; zstd's level 6 costs 1.6 times more for 4.3%.
constexpr std::pair<ZSTD_cParameter, int> kImportParameters[] = {
    {ZSTD_c_chainLog, 17}, {ZSTD_c_hashLog, 17},     {ZSTD_c_searchLog, 2},
    {ZSTD_c_minMatch, 4},  {ZSTD_c_targetLength, 4}, {ZSTD_c_strategy, ZSTD_lazy},
};

Compressor make_compressor(int level) {
    Compressor compressor(ZSTD_createCCtx());
    if (!compressor) throw std::bad_alloc();
    const auto set = [&](ZSTD_cParameter parameter, int value) {
        const std::size_t result = ZSTD_CCtx_setParameter(compressor.get(), parameter, value);
        if (ZSTD_isError(result)) throw Error(Errc::internal, std::string("zstd: ") + ZSTD_getErrorName(result));
    };
    set(ZSTD_c_compressionLevel, level);
    set(ZSTD_c_windowLog, format::kWindowLog);
    if (level == kImportLevel) {
        for (const auto& [parameter, value] : kImportParameters) set(parameter, value);
    }
    set(ZSTD_c_contentSizeFlag, 1);
    set(ZSTD_c_checksumFlag, 0);  // The frame's own checksum covers header, table and payload.
    set(ZSTD_c_dictIDFlag, 0);
    return compressor;
}

/// Writes all of a frame's bytes into job.packed; stored as it is when zstd does not make it smaller.
void pack(FrameJob& job, ZSTD_CCtx* compressor) {
    const std::size_t payload_from = sizeof(format::FrameHeader) + job.rows.size() * sizeof(format::ChunkRow);
    job.packed.resize(payload_from + ZSTD_compressBound(job.raw.size()));
    std::byte* const payload = job.packed.data() + payload_from;
    std::size_t size_bytes =
        ZSTD_compress2(compressor, payload, job.packed.size() - payload_from, job.raw.data(), job.raw.size());
    if (ZSTD_isError(size_bytes)) throw Error(Errc::internal, std::string("zstd: ") + ZSTD_getErrorName(size_bytes));
    format::Codec codec = format::Codec::zstd;
    if (size_bytes >= job.raw.size()) {
        codec = format::Codec::stored;
        size_bytes = job.raw.size();
        std::copy(job.raw.begin(), job.raw.end(), payload);
    }
    job.packed.resize(payload_from + size_bytes);
    format::FrameHeader header{.magic = format::kFrameMagic,
                               .frame_size_bytes = static_cast<std::uint32_t>(job.packed.size()),
                               .checksum = 0,
                               .raw_size_bytes = static_cast<std::uint32_t>(job.raw.size()),
                               .chunk_count = static_cast<std::uint16_t>(job.rows.size()),
                               .codec = codec,
                               .zero = 0};
    std::memcpy(job.packed.data(), &header, sizeof header);
    std::memcpy(job.packed.data() + sizeof header, job.rows.data(), job.rows.size() * sizeof(format::ChunkRow));
    header.checksum = format::frame_checksum(job.packed);
    std::memcpy(job.packed.data(), &header, sizeof header);
}

}  // namespace

void FrameJob::clear() {
    raw.clear();
    rows.clear();
    packed.clear();
}

class CompressionPool::Impl {
public:
    Impl(unsigned thread_count, int level) : thread_count_(thread_count), level_(level) {}
    ~Impl() {
        {
            const std::lock_guard lock(mutex_);
            is_stopping_ = true;
        }
        changed_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    unsigned thread_count() const noexcept { return thread_count_; }

    void submit(FrameJob& job, FrameOwner& owner) {
        const std::lock_guard lock(mutex_);
        if (threads_.size() < thread_count_ && threads_.size() <= waiting_.size() + running_.size()) start_thread();
        waiting_.push_back({&job, &owner});
        changed_.notify_all();
    }

    void forget(const FrameOwner& owner) {
        std::unique_lock lock(mutex_);
        std::erase_if(waiting_, [&](const Work& work) { return work.owner == &owner; });
        changed_.wait(lock, [&] { return std::ranges::find(running_, &owner) == running_.end(); });
    }

private:
    struct Work {
        FrameJob* job;
        FrameOwner* owner;
    };

    void start_thread() {
        try {
            threads_.emplace_back([this] { work(); });
        } catch (const std::system_error& error) {  // Out of threads: fewer do it too, none do not.
            if (threads_.empty()) throw Error(Errc::unavailable, std::string("start a thread: ") + error.what());
        }
    }

    void work() noexcept {
        Compressor compressor;
        std::unique_lock lock(mutex_);
        while (true) {
            changed_.wait(lock, [&] { return is_stopping_ || !waiting_.empty(); });
            if (is_stopping_) return;
            const Work work = waiting_.front();
            waiting_.pop_front();
            running_.push_back(work.owner);
            lock.unlock();
            std::exception_ptr failure;
            try {
                if (!compressor) compressor = make_compressor(level_);
                pack(*work.job, compressor.get());
            } catch (...) {  // A worker's entry: the owner hands it to whoever waits for the frame.
                failure = std::current_exception();
            }
            work.owner->frame_done(*work.job, std::move(failure));
            lock.lock();
            running_.erase(std::ranges::find(running_, work.owner));
            changed_.notify_all();
        }
    }

    const unsigned thread_count_;
    const int level_;
    std::mutex mutex_;  // Guards all below but threads' own; never held while packing, nor while an owner is called.
    std::condition_variable changed_;
    std::deque<Work> waiting_;
    std::vector<const FrameOwner*> running_;  ///< One for each job in work.
    bool is_stopping_ = false;
    std::vector<std::thread> threads_;
};

CompressionPool::CompressionPool(unsigned thread_count, int level)
    : impl_(std::make_unique<Impl>(std::max(1U, thread_count), level)) {}
CompressionPool::~CompressionPool() = default;

unsigned CompressionPool::thread_count() const noexcept {
    return impl_->thread_count();
}

void CompressionPool::submit(FrameJob& job, FrameOwner& owner) {
    impl_->submit(job, owner);
}

void CompressionPool::forget(FrameOwner& owner) {
    impl_->forget(owner);
}

}  // namespace lamina::store
