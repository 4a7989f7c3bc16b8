#pragma once

#include "fuse/holder.h"
#include "fuse/json_text.h"
#include "fuse/mount_context.h"
#include "fuse/ops.h"
#include "fuse/reading_threads.h"
#include "fuse/server_log.h"
#include "fuse/transport.h"
#include "fuse/union_fs.h"
#include "fuse/worker_pool.h"
#include "store/file.h"

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace lamina::unionfs {

/// Signals that end the server, as a descriptor. Blocked for this thread and those that it starts: make it before any.
class EndSignals {
public:
    EndSignals();
    int fd() const { return fd_.get(); }
    void take();

private:
    store::UniqueFd fd_;
};

/// Serves a union to the kernel until it is unmounted, told to stop, or a signal comes. What the union is made of, and
/// what is left to do when it ends, is the owner's affair.
class UnionServer {
public:
    struct Parts {
        UnionFs& fs;
        ServerLog& log;
        Arena& arena;
        HolderLink& holder;
        OwnerMap owners;
        bool has_no_xattrs = false;
        QuietReader quiet_reader = QuietReader::when_it_pays;
    };
    /// What it is given must outlive it. `on_ready` is called when requests are served.
    UnionServer(EndSignals& signals, const Parts& parts, std::function<void()> on_ready);
    UnionServer(const UnionServer&) = delete;
    UnionServer& operator=(const UnionServer&) = delete;

    /// Mounts, or goes on with the mount of a server that has died; serves, and returns when the kernel sends nothing
    /// any more and all answers are out. Throws store::Error when it cannot be mounted. `handed`: descriptors that a
    /// next server needs, from HolderLink::kLog on.
    void run(const MountSpec& spec, std::vector<int> handed);
    /// All that was changed is kept: the holder need not start another server.
    void ended() noexcept;
    /// Unmounts; busy when files are open and it is not forced. Any thread but a reading one.
    void stop(bool is_forced);

    bool is_mounted() const noexcept { return transport_.is_connected(); }
    SessionPage& page() noexcept { return transport_.page(); }
    JsonObject requests_as_json();
    JsonObject reader_as_json();

private:
    void begin_first();
    void begin_next(const MountSpec& spec);
    void wait_until_ended();
    void end_by_signal();

    EndSignals& signals_;
    const Parts parts_;
    std::vector<int> handed_;
    ServerLog& log_;
    const std::function<void()> on_ready_;
    store::UniqueFd ended_;
    WorkerPool workers_;
    MountContext context_;
    Transport transport_;
    ReadingThreads readers_;
    std::jthread joiner_;
    std::atomic<bool> is_detached_{false};
};

/// The mount point as an absolute path without links; a dead mount of ours on it is taken away first. Throws not_found;
/// malformed: no folder.
std::string real_mountpoint(const std::string& mountpoint);

/// Who may see a mount: the options that root, and a user whom /etc/fuse.conf lets, has.
MountSpec mount_spec_for_caller(const std::string& mountpoint, const std::string& source);

}  // namespace lamina::unionfs
