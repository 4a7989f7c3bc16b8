#pragma once

#include <atomic>
#include <string_view>

namespace lamina::store {

/// The seam below file.cpp: each system call there that changes the disk announces itself first.
///
/// A test installs a hook that throws (disk full, I/O error), kills the process, or cuts the power at the nth step.
/// Without a hook the cost is one load. The hook must be thread-safe and outlive all file work.
class FaultHook {
public:
    virtual ~FaultHook() = default;
    /// `step` is the system call ("write", "fsync", "rename" ...), `path` the file it is about. May throw Error.
    virtual void before(std::string_view step, std::string_view path) = 0;
};

inline std::atomic<FaultHook*> g_fault_hook{nullptr};

inline void fault_point(std::string_view step, std::string_view path) {
    if (FaultHook* const hook = g_fault_hook.load(std::memory_order_acquire)) hook->before(step, path);
}

/// Installs a hook that ends the process with SIGKILL before the nth step, when the environment has
/// LAMINA_KILL_AT=n. For crash tests of the real programs; call once from main().
void install_fault_hook_from_environment();

}  // namespace lamina::store
