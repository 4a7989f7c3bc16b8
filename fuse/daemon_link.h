#pragma once

#include "store/read_view.h"

#include <chrono>
#include <string>

namespace lamina::unionfs {

/// Asks the daemon of a mount's store for chunks that are not there (client/API.md, /v1/fetch). When no daemon answers,
/// or the registry does not answer it, asks again until `limit` has passed. Thread-safe; each request has a connection
/// of its own, to where <store root>/socket says, so that a new daemon is found.
class DaemonLink : public store::ChunkFetcher {
public:
    DaemonLink(std::string store_root, std::string mount_id, std::chrono::milliseconds limit)
        : store_root_(std::move(store_root)), mount_id_(std::move(mount_id)), limit_(limit) {}
    void fetch(const store::ChunkId& chunk) override;

private:
    std::string ask(const std::string& request, std::chrono::milliseconds limit) const;

    const std::string store_root_;
    const std::string mount_id_;
    const std::chrono::milliseconds limit_;
};

/// How long a read waits for a chunk that is not there.
inline constexpr std::chrono::milliseconds kFetchLimit{30'000};

}  // namespace lamina::unionfs
