#pragma once

#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <vector>

namespace lamina::store {

/// Runs numbered tasks on several threads, begun in order, with the outcome of running them one after the other: when
/// one fails, those behind it are stopped and count for nothing, and those before it come to their end. wait() is for
/// one thread, and asks for the tasks in order.
class OrderedTasks {
public:
    using Task = std::function<void(std::size_t number, const std::stop_token& stop)>;

    /// Begins. `stop` stops them all. Throws unavailable when no thread can be started.
    OrderedTasks(std::size_t count, unsigned thread_count, Task task, const std::stop_token& stop);
    ~OrderedTasks();  ///< Stops what runs, and waits for it.
    OrderedTasks(const OrderedTasks&) = delete;
    OrderedTasks& operator=(const OrderedTasks&) = delete;

    /// Until the task has ended. Throws what it, or one before it, threw.
    void wait(std::size_t number);

private:
    void work() noexcept;
    void run(std::size_t number, std::unique_lock<std::mutex>& lock);
    void stop_all();

    const Task task_;
    std::mutex mutex_;  // Guards all below but the threads; not held while a task runs.
    std::condition_variable changed_;
    std::map<std::size_t, std::stop_source> running_;
    std::vector<bool> has_ended_;
    std::size_t next_ = 0;
    std::size_t failed_;  ///< The first that failed, or their count.
    std::exception_ptr failure_;
    bool is_stopped_ = false;
    std::vector<std::thread> threads_;
    std::optional<std::stop_callback<std::function<void()>>> on_stop_;
};

}  // namespace lamina::store
