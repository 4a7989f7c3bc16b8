#pragma once

#include <atomic>

namespace lamina::unionfs {

/// Where a server can be made to die, to show that nobody notices. Beside them are the steps of the arena (arena.h), of
/// an upper directory (upper_calls.h) and of files (store/file_ops.h).
enum class KillPoint { received, accepted, before_reply, after_reply };

inline std::atomic<void (*)(KillPoint)> g_kill_point{nullptr};

/// Without a hook the cost is one load.
inline void kill_point(KillPoint point) {
    if (const auto hook = g_kill_point.load(std::memory_order_relaxed)) hook(point);
}

/// Rules by which a mount survives that are left out, to show that kills find it.
struct LeftOut {
    bool seals = false;  ///< A request that is sent again is carried out again.
    bool undo = false;   ///< A transaction that a kill has cut off stays half done.
    bool locks = false;  ///< The pages for requests are not there when the kernel copies one.
};
inline LeftOut g_left_out;

/// When the environment has LAMINA_KILL_POINTS, a list like "received:100,arena:5000": at each point of that name the
/// process kills itself with one chance in so many. Names: received, accepted (was not carried out before),
/// before_reply, after_reply, arena (between two stores), upper, file. With LAMINA_POISON=TEXT a request that has that
/// text in it crashes it when it is accepted; LAMINA_WITHOUT names a member of LeftOut. For crash tests of the real
/// program. Nothing dies before arm_kill_points().
void read_kill_points_from_environment();
/// A mount outlives its server from when it serves, so the first server arms them then.
void arm_kill_points();

}  // namespace lamina::unionfs
