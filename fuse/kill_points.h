#pragma once

#include <atomic>

namespace lamina::unionfs {

/// Where a server can be made to die, to show that nobody notices. Beside them are the steps of the arena (arena.h), of
/// an upper directory (upper_calls.h) and of files (store/file_ops.h).
enum class KillPoint { received, before_reply, after_reply };

inline std::atomic<void (*)(KillPoint)> g_kill_point{nullptr};

/// Without a hook the cost is one load.
inline void kill_point(KillPoint point) {
    if (const auto hook = g_kill_point.load(std::memory_order_relaxed)) hook(point);
}

/// When the environment has LAMINA_KILL_POINTS, a list like "received:100,arena:5000": at each point of that name the
/// process kills itself with one chance in so many. Names: received, before_reply, after_reply, arena (between two
/// stores), upper, file.
/// For crash tests of the real program.
void install_kill_points_from_environment();

}  // namespace lamina::unionfs
