#pragma once

#include "store/frame_compressor.h"

#include <exception>
#include <memory>

namespace lamina::store {

/// Who gets frames back from the pool.
class FrameOwner {
public:
    virtual ~FrameOwner() = default;
    /// `job` is packed, or `failure` says why not. Called by a thread of the pool, for several frames at once.
    virtual void frame_done(FrameJob& job, std::exception_ptr failure) noexcept = 0;
};

/// Threads that turn raw frames into packed ones, for any number of owners. They start with the first jobs.
/// Thread-safe.
class CompressionPool {
public:
    enum class Priority { normal, background };  ///< background: what else wants the processor goes first.
    CompressionPool(unsigned thread_count, int level, Priority priority = Priority::normal);
    ~CompressionPool();  ///< No job may be waiting: forget() comes before.
    CompressionPool(const CompressionPool&) = delete;
    CompressionPool& operator=(const CompressionPool&) = delete;

    unsigned thread_count() const noexcept;
    /// The job stays where it is, untouched by its owner, until frame_done() or forget() has returned. Throws
    /// unavailable when no thread can be started.
    void submit(FrameJob& job, FrameOwner& owner);
    void forget(FrameOwner& owner);  ///< Drops what of its jobs has not begun and waits for the rest.

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::store
