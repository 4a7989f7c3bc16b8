#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace lamina::unionfs {

/// Page-aligned memory for requests and replies, present and locked: a page fault while the kernel copies a request
/// out or a reply in would lose the request if the server were killed at that moment. Where the limit on locked memory
/// does not allow it, the pages are touched once and left to luck.
class LockedBuffer {
public:
    explicit LockedBuffer(std::size_t size_bytes);  ///< Throws std::bad_alloc.
    LockedBuffer(const LockedBuffer&) = delete;
    LockedBuffer& operator=(const LockedBuffer&) = delete;
    ~LockedBuffer();
    std::span<std::byte> bytes() noexcept { return {data_, size_bytes_}; }
    bool is_locked() const noexcept { return is_locked_; }

private:
    std::byte* data_ = nullptr;
    std::size_t size_bytes_ = 0;
    bool is_locked_ = false;
};

/// A bounded stock of equal buffers. Thread-safe; must outlive what it lent.
class BufferPool {
public:
    BufferPool(std::size_t buffer_bytes, std::size_t limit) : buffer_bytes_(buffer_bytes), limit_(limit) {}
    std::unique_ptr<LockedBuffer> take();  ///< Null when all are lent out.
    void give_back(std::unique_ptr<LockedBuffer> buffer);

private:
    const std::size_t buffer_bytes_;
    const std::size_t limit_;
    std::mutex mutex_;  ///< A leaf: nothing is locked under it.
    std::vector<std::unique_ptr<LockedBuffer>> free_;
    std::size_t made_ = 0;
};

}  // namespace lamina::unionfs
