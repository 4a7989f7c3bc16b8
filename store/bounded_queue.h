#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace lamina::store {

/// Hands values from one thread to another, at most `capacity` ahead. Thread-safe. close() wakes both sides: push()
/// then returns false, and pop() gives what is left, then nullopt.
template <class T>
class BoundedQueue {
public:
    explicit BoundedQueue(std::size_t capacity) : capacity_(capacity) {}

    bool push(T value) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return values_.size() < capacity_ || is_closed_; });
        if (is_closed_) return false;
        values_.push_back(std::move(value));
        changed_.notify_all();
        return true;
    }
    std::optional<T> pop() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return !values_.empty() || is_closed_; });
        if (values_.empty()) return std::nullopt;
        std::optional<T> value(std::move(values_.front()));
        values_.pop_front();
        changed_.notify_all();
        return value;
    }
    void close() {
        {
            const std::lock_guard lock(mutex_);
            is_closed_ = true;
        }
        changed_.notify_all();
    }

private:
    const std::size_t capacity_;
    std::mutex mutex_;  // A leaf: nothing else is locked below it.
    std::condition_variable changed_;
    std::deque<T> values_;
    bool is_closed_ = false;
};

}  // namespace lamina::store
