#include "store/frame_cache.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <unordered_map>

namespace lamina::store {

std::span<const std::byte> Frame::bytes_at(const ChunkId& id, std::uint32_t offset_bytes) const {
    const auto found = std::lower_bound(chunks.begin(), chunks.end(), offset_bytes,
                                        [](const Chunk& chunk, auto offset) { return chunk.offset_bytes < offset; });
    if (found == chunks.end() || found->offset_bytes != offset_bytes || found->id != id) return {};
    return {data.get() + offset_bytes, found->size_bytes};
}

std::uint64_t Frame::memory_bytes() const noexcept {
    return sizeof(Frame) + size_bytes + chunks.capacity() * sizeof(Chunk);
}

/// Kept frames stand in a list, the last used one first, and a map from key to place in it. A frame that is being
/// loaded stands in `loads_` instead, where others find it to wait for.
class FrameCache::Impl {
public:
    explicit Impl(std::uint64_t limit_bytes) : limit_bytes_(limit_bytes) {}

    std::shared_ptr<const Frame> get(const FrameKey& key, const Load& load) {
        std::unique_lock lock(mutex_);
        if (const auto found = places_.find(key); found != places_.end()) {
            kept_.splice(kept_.begin(), kept_, found->second);
            return found->second->frame;
        }
        if (const auto found = loads_.find(key); found != loads_.end()) return wait_for(found->second, lock);
        const auto loading = std::make_shared<Loading>();
        loads_.emplace(key, loading);
        lock.unlock();
        run(*loading, load);
        lock.lock();
        loads_.erase(key);
        try {
            if (loading->frame) keep(key, loading->frame);
        } catch (const std::bad_alloc&) {
            // Not kept, then; those who wait must hear of the frame all the same.
        }
        loading->is_done = true;
        lock.unlock();
        done_.notify_all();
        if (loading->failure) std::rethrow_exception(loading->failure);
        return loading->frame;
    }

    bool contains(const FrameKey& key) const {
        const std::lock_guard lock(mutex_);
        return places_.contains(key);
    }

    std::uint64_t held_bytes() const {
        const std::lock_guard lock(mutex_);
        return held_bytes_;
    }

private:
    struct Loading {
        std::shared_ptr<const Frame> frame;
        std::exception_ptr failure;
        bool is_done = false;
    };
    struct Kept {
        FrameKey key;
        std::shared_ptr<const Frame> frame;
    };
    struct KeyHash {
        std::size_t operator()(const FrameKey& key) const noexcept {
            return (key.offset_bytes ^ std::uint64_t{key.pack} << 40) * 0x9E3779B97F4A7C15;
        }
    };

    static void run(Loading& loading, const Load& load) {
        try {
            loading.frame = load();
        } catch (...) {  // Belongs to every caller who waits, so it is handed on as a value.
            loading.failure = std::current_exception();
        }
    }

    std::shared_ptr<const Frame> wait_for(const std::shared_ptr<Loading>& found, std::unique_lock<std::mutex>& lock) {
        const std::shared_ptr<Loading> loading = found;  // The map's copy goes when it is done.
        done_.wait(lock, [&] { return loading->is_done; });
        if (loading->failure) std::rethrow_exception(loading->failure);
        return loading->frame;
    }

    void keep(const FrameKey& key, const std::shared_ptr<const Frame>& frame) {
        const std::uint64_t size_bytes = frame->memory_bytes();
        if (size_bytes > limit_bytes_) return;
        while (held_bytes_ + size_bytes > limit_bytes_) {
            held_bytes_ -= kept_.back().frame->memory_bytes();
            places_.erase(kept_.back().key);
            kept_.pop_back();
        }
        std::list<Kept> node;
        node.push_front({key, frame});
        places_.insert_or_assign(key, node.begin());
        kept_.splice(kept_.begin(), node);
        held_bytes_ += size_bytes;
    }

    const std::uint64_t limit_bytes_;
    mutable std::mutex mutex_;  // Guards all below; never held while a frame is loaded.
    std::condition_variable done_;
    std::uint64_t held_bytes_ = 0;
    std::list<Kept> kept_;
    std::unordered_map<FrameKey, std::list<Kept>::iterator, KeyHash> places_;
    std::unordered_map<FrameKey, std::shared_ptr<Loading>, KeyHash> loads_;
};

FrameCache::FrameCache(std::uint64_t limit_bytes) : impl_(std::make_unique<Impl>(limit_bytes)) {}
FrameCache::~FrameCache() = default;

std::shared_ptr<const Frame> FrameCache::get(const FrameKey& key, const Load& load) {
    return impl_->get(key, load);
}

bool FrameCache::contains(const FrameKey& key) const {
    return impl_->contains(key);
}

std::uint64_t FrameCache::held_bytes() const {
    return impl_->held_bytes();
}

}  // namespace lamina::store
