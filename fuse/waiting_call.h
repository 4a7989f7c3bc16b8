// The system call in which a thread waits for our answer. /proc/TID/syscall, proc(5).
#pragma once

#include <cstdint>

namespace lamina::unionfs {

/// Whether the thread waits in a call that changes a file's bytes or size through a descriptor. False also where that
/// cannot be told: no such thread (0 is one of another PID namespace), no right to look, a call of another word size.
/// Looks for at most some milliseconds, for a thread that is only about to wait.
bool waits_in_write(std::uint32_t thread);

}  // namespace lamina::unionfs
