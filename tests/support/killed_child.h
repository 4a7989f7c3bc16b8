#pragma once

#include "fuse/arena.h"

#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

namespace lamina::test {

inline long g_steps_to_live = 0;

/// Runs `work` in a child that is killed (SIGKILL) at the nth step of its arena transactions; false: it ended before.
template <class Work>
bool killed_at_step(long step, Work&& work) {
    const pid_t child = ::fork();
    if (child == 0) {
        g_steps_to_live = step;
        unionfs::g_arena_step = [] {
            if (--g_steps_to_live == 0) ::kill(::getpid(), SIGKILL);
        };
        work();
        ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

}  // namespace lamina::test
