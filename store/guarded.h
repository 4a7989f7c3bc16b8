#pragma once

#include <mutex>
#include <utility>

namespace lamina::store {

/// A value and the mutex that guards it; the value is reached only through with_lock().
template <class T>
class Guarded {
public:
    template <class... Args>
    explicit Guarded(Args&&... args) : value_(std::forward<Args>(args)...) {}

    template <class Function>
    decltype(auto) with_lock(Function&& function) {
        const std::lock_guard lock(mutex_);
        return std::forward<Function>(function)(value_);
    }
    template <class Function>
    decltype(auto) with_lock(Function&& function) const {
        const std::lock_guard lock(mutex_);
        return std::forward<Function>(function)(value_);
    }

private:
    mutable std::mutex mutex_;
    T value_;
};

}  // namespace lamina::store
