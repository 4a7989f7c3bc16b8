#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace lamina::unionfs {

/// Threads for work that may block: cold reads, syncs, big writes. A reading thread hands a request over and reads on;
/// the worker replies. Threads are started when there is work for them and then stay. Thread-safe.
///
/// The queue needs no limit of its own: the kernel limits how many requests are under way. A task must not throw.
class WorkerPool {
public:
    using Task = std::function<void()>;
    explicit WorkerPool(unsigned thread_limit) : thread_limit_(thread_limit) {}
    ~WorkerPool() { finish(); }
    WorkerPool(const WorkerPool&) = delete;
    WorkerPool& operator=(const WorkerPool&) = delete;

    /// Runs `task` on a worker; here and now when there is no worker and none can be started, or after finish().
    void run(Task task);
    /// Ends when all tasks are done, and the threads with it.
    void finish();
    std::uint64_t task_count() const;

private:
    void work();
    bool enqueue(Task& task);

    const unsigned thread_limit_;
    mutable std::mutex mutex_;  ///< A leaf; not held while a task runs.
    std::condition_variable wake_;
    std::deque<Task> queue_;
    std::vector<std::jthread> threads_;
    unsigned idle_count_ = 0;
    std::uint64_t task_count_ = 0;
    bool is_finished_ = false;
};

}  // namespace lamina::unionfs
