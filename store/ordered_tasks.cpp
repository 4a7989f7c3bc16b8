#include "store/ordered_tasks.h"

#include "store/error.h"

#include <system_error>

#include <algorithm>
#include <string>
#include <utility>

namespace lamina::store {

OrderedTasks::OrderedTasks(std::size_t count, unsigned thread_count, Task task, const std::stop_token& stop)
    : task_(std::move(task)), has_ended_(count), failed_(count) {
    try {
        const std::size_t wanted = std::min<std::size_t>(thread_count, count);
        while (threads_.size() < wanted) threads_.emplace_back([this] { work(); });
    } catch (const std::system_error& error) {  // Out of threads: fewer do it too, none do not.
        if (threads_.empty()) throw Error(Errc::unavailable, std::string("start a thread: ") + error.what());
    }
    on_stop_.emplace(stop, [this] { stop_all(); });
}

OrderedTasks::~OrderedTasks() {
    on_stop_.reset();
    stop_all();
    for (std::thread& thread : threads_) thread.join();
}

void OrderedTasks::stop_all() {
    const std::lock_guard lock(mutex_);
    is_stopped_ = true;
    for (auto& [number, source] : running_) source.request_stop();
}

void OrderedTasks::wait(std::size_t number) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return failed_ <= number || has_ended_[number]; });
    if (failed_ <= number) std::rethrow_exception(failure_);
}

void OrderedTasks::work() noexcept {
    std::unique_lock lock(mutex_);
    while (next_ < failed_) run(next_++, lock);
}

void OrderedTasks::run(std::size_t number, std::unique_lock<std::mutex>& lock) {
    std::stop_source source;
    if (is_stopped_) source.request_stop();
    running_.emplace(number, source);
    lock.unlock();
    std::exception_ptr failure;
    try {
        if (source.stop_requested()) throw Error(Errc::cancelled, "stopped");
        task_(number, source.get_token());
    } catch (...) {  // A thread's entry: wait() throws it.
        failure = std::current_exception();
    }
    lock.lock();
    running_.erase(number);
    has_ended_[number] = true;
    if (failure && number < failed_) {
        failed_ = number;
        failure_ = failure;
        for (auto& [other, stop] : running_) {
            if (other > number) stop.request_stop();
        }
    }
    changed_.notify_all();
}

}  // namespace lamina::store
