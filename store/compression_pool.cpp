#include "store/compression_pool.h"

#include "store/error.h"

#include <sys/resource.h>

#include <system_error>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace lamina::store {

namespace {

constexpr int kLowestPriority = 19;

}  // namespace

class CompressionPool::Impl {
public:
    Impl(unsigned thread_count, int level, Priority priority)
        : thread_count_(thread_count), level_(level), priority_(priority) {
        running_.reserve(thread_count);  // A worker must not fail to say what it does.
    }
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
        if (priority_ == Priority::background) {  // Of this thread alone, on Linux. Refused, it does not matter.
            static_cast<void>(::setpriority(PRIO_PROCESS, 0, kLowestPriority));
        }
        std::optional<FrameCompressor> compressor;
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
                if (!compressor) compressor.emplace(level_);
                compressor->pack(*work.job);
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
    const Priority priority_;
    std::mutex mutex_;  // Guards all below but threads' own; never held while packing, nor while an owner is called.
    std::condition_variable changed_;
    std::deque<Work> waiting_;
    std::vector<const FrameOwner*> running_;  ///< One for each job in work.
    bool is_stopping_ = false;
    std::vector<std::thread> threads_;
};

CompressionPool::CompressionPool(unsigned thread_count, int level, Priority priority)
    : impl_(std::make_unique<Impl>(std::max(1U, thread_count), level, priority)) {}
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
