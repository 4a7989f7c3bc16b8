#pragma once

#include "client/api.h"
#include "store/guarded.h"
#include "store/store.h"

#include <functional>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::daemon {

/// The mounts of a store, running or kept: folders <root>/mounts/<id>, each with its base, a file `name`, and what its
/// server wrote. There is no other list, so that a daemon that starts anew finds them all. Thread-safe.
class Mounts {
public:
    Mounts(store::Store& store, std::string mount_program, bool requires_verified);

    api::Mount create(const api::MountRequest& request);
    std::vector<api::Mount> list() const;  ///< With what the running servers say of themselves.
    /// By name, id or mount point. not_found.
    api::Mount find(const std::string& reference) const;
    std::optional<api::Mount> find_if(const std::string& reference) const;
    /// Ends the mount's server, which unmounts and syncs; its changes stay unless `is_discarded` or it was read-only.
    void unmount(const std::string& reference, bool is_discarded);
    /// Has the servers of all running mounts, or of one, replaced by ones of the mount program as it is now. What goes
    /// wrong with one is said of that one: its old server goes on.
    std::vector<api::MountUpgrade> upgrade(const std::string& reference, std::stop_token stop) const;
    /// Lines of JSON, as `lamina-fuse --diff` prints them.
    void changes(const std::string& reference, const std::function<void(std::string_view line)>& emit,
                 std::stop_token stop) const;
    store::ImageSummary commit(const api::CommitRequest& request, const store::ProgressFunction& progress,
                               std::stop_token stop);
    /// Of a mount that runs; `set`: new limits first, which it keeps. unavailable: it does not run.
    api::Quota quota(const std::string& reference, const std::optional<api::QuotaRequest>& set) const;
    /// First hex digits of the chunks that were read through a mount, in order: of one of a lazy image, else only those
    /// of its first minute. nullopt: not known now.
    struct Reads {
        std::vector<std::string> chunks;
        std::size_t start_count = 0;  ///< So many of them in the first minute.
    };
    std::optional<Reads> reads(const api::Mount& mount) const;
    /// Keeps what running mounts have read so far for the next starts of their images.
    void note_reads() const;
    /// Ids of read-only mounts that no longer run: they keep nothing, so their folders may go, at start and with gc.
    std::vector<std::string> idle() const;
    std::vector<std::string> running_images() const;  ///< IDs, each once.
    void prune();                                     ///< Discards these.

private:
    std::string folder(const std::string& id) const;
    api::Mount describe(const std::string& id) const;
    std::vector<api::Mount> described() const;
    std::string take_new(const api::MountRequest& request);
    api::Mount mount_again(const api::Mount& existing, const api::MountRequest& request);
    void start(const api::Mount& mount, const std::string& options) const;
    void note_reads_of(const api::Mount& mount) const;
    api::MountUpgrade upgrade_one(const api::Mount& mount, std::stop_token stop) const;

    store::Store& store_;
    std::string mount_program_;
    const bool requires_verified_;
    store::Guarded<std::set<std::string>> starting_;  ///< Names and mount points that a create() works on.
};

}  // namespace lamina::daemon
