#pragma once

#include "fuse/transport.h"

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>

namespace lamina::unionfs {

/// Tells from the process numbers of requests whether one client is at work or several take turns. One thread.
class ClientWatch {
public:
    static constexpr unsigned kWindow = 32;      ///< Requests that are judged together.
    static constexpr unsigned kSwitchbacks = 3;  ///< Turns "A, B, A" in a window that make it several clients.
    enum class Verdict { unknown, one, several };
    /// Counts a request; a verdict at the end of each window. Process 0 (the kernel, another namespace) is not counted.
    Verdict saw(std::uint32_t process);
    void reset() { *this = ClientWatch(); }

private:
    std::uint32_t last_ = 0;
    std::uint32_t before_last_ = 0;
    unsigned seen_ = 0;
    unsigned switchbacks_ = 0;
};

/// The CPU that a task last ran on, from the text of /proc/PID/stat (field 39); -1 when it cannot be told.
int cpu_from_stat(std::string_view stat_line);
/// The tasks that run or want to, from the text of /proc/loadavg ("0.1 0.2 0.3 RUNNING/ALL LAST"); 0 when unreadable.
unsigned running_from_loadavg(std::string_view loadavg);

/// When the quiet thread reads.
enum class QuietReader {
    never,
    when_it_pays,
    eagerly,  ///< At every chance, whoever else wants the cores: for tests of the switching.
};

/// The threads that take requests from the transport: one or two, of which one reads.
///
/// The plain one has normal policy and is there from the start; it alone meets every promise. When one client sends
/// many requests on a machine that is otherwise idle, a quiet one takes over: it has the policy SCHED_IDLE and
/// follows the client's CPU, so that neither wake-up of a request has to rouse another core (design.md section 6, "The
/// same core"). The plain one watches it meanwhile, and takes back what waits for 2 ms. When nothing was asked for 50
/// ms the plain one is back: an idle mount costs no CPU time, and no quiet thread is there to be waited for.
class ReadingThreads {
public:
    struct Stats {
        bool is_quiet = false;     ///< The quiet thread reads now.
        bool may_be_quiet = true;  ///< False: not permitted here, or switched off.
        std::uint64_t to_quiet = 0;
        std::uint64_t to_plain_idle = 0;     ///< Nothing was asked for.
        std::uint64_t to_plain_clients = 0;  ///< Several clients take turns.
        std::uint64_t to_plain_busy = 0;     ///< Other work wants all cores.
        std::uint64_t to_plain_late = 0;     ///< A request waited for 2 ms.
        std::uint64_t moves = 0;             ///< To another CPU, behind the client.
    };
    ReadingThreads(Transport& transport, QuietReader quiet);
    ~ReadingThreads();
    ReadingThreads(const ReadingThreads&) = delete;
    ReadingThreads& operator=(const ReadingThreads&) = delete;

    /// Starts the threads. Signals other than its own should be blocked in the caller.
    void start();
    /// Returns when the mount has ended and the threads with it.
    void join();
    /// Makes the threads end after the request in hand, though the mount goes on.
    void stop();
    Stats stats() const;

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::unionfs
