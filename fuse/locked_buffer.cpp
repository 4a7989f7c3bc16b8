#include "fuse/locked_buffer.h"

#include "fuse/kill_points.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

namespace lamina::unionfs {

LockedBuffer::LockedBuffer(std::size_t size_bytes) : size_bytes_(size_bytes) {
    void* const memory = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<std::byte*>(memory);
    is_locked_ = !g_left_out.locks && ::mlock(memory, size_bytes) == 0;
    if (!is_locked_) std::memset(memory, 0, size_bytes);
}

LockedBuffer::~LockedBuffer() {
    ::munmap(data_, size_bytes_);
}

std::unique_ptr<LockedBuffer> BufferPool::take() {
    {
        const std::lock_guard lock(mutex_);
        if (!free_.empty()) {
            auto buffer = std::move(free_.back());
            free_.pop_back();
            return buffer;
        }
        if (made_ == limit_) return nullptr;
        ++made_;
    }
    try {
        return std::make_unique<LockedBuffer>(buffer_bytes_);
    } catch (const std::bad_alloc&) {  // As if all were lent: the caller has a way without.
        const std::lock_guard lock(mutex_);
        --made_;
        return nullptr;
    }
}

void BufferPool::give_back(std::unique_ptr<LockedBuffer> buffer) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(buffer));
}

}  // namespace lamina::unionfs
