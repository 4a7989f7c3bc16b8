#include "fuse/worker_pool.h"

#include <system_error>

#include <utility>

namespace lamina::unionfs {

// True when a worker will take the task.
bool WorkerPool::enqueue(Task& task) {
    const std::lock_guard lock(mutex_);
    ++task_count_;
    if (is_finished_) return false;
    if (idle_count_ <= queue_.size() && threads_.size() < thread_limit_) {
        try {
            threads_.emplace_back([this] { work(); });
        } catch (const std::system_error&) {  // No more threads allowed here; with none at all the caller must do it.
            if (threads_.empty()) return false;
        }
    }
    queue_.push_back(std::move(task));
    return true;
}

void WorkerPool::run(Task task) {
    if (enqueue(task)) {
        wake_.notify_one();
    } else {
        task();
    }
}

void WorkerPool::work() {
    std::unique_lock lock(mutex_);
    while (true) {
        ++idle_count_;
        wake_.wait(lock, [this] { return is_finished_ || !queue_.empty(); });
        --idle_count_;
        if (queue_.empty()) return;
        {
            const Task task = std::move(queue_.front());
            queue_.pop_front();
            lock.unlock();
            task();
        }
        lock.lock();
    }
}

void WorkerPool::finish() {
    std::vector<std::jthread> threads;
    {
        const std::lock_guard lock(mutex_);
        is_finished_ = true;
        threads.swap(threads_);
    }
    wake_.notify_all();
    threads.clear();  // Joins.
}

std::uint64_t WorkerPool::task_count() const {
    const std::lock_guard lock(mutex_);
    return task_count_;
}

}  // namespace lamina::unionfs
