#pragma once

#include "store/read_view.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

namespace lamina::unionfs {

/// Which chunks of an image have been read, each once, in order; of very many the first ones. For lamina explain, and
/// for the image's next start, here or where it is pushed to. Thread-safe.
class ReadChunks {
public:
    enum class Until : std::uint8_t { end, start_is_over };
    explicit ReadChunks(Until until) : until_(until) {}

    static constexpr std::size_t kMostChunks = 16'384;
    static constexpr std::size_t kPrefixBytes = 8;
    static constexpr auto kStart = std::chrono::seconds(60);  ///< From the first one.

    void add(const store::ChunkId& chunk) noexcept;
    struct Seen {
        std::string text;             ///< Of each the first bytes, in hex digits, without anything between them.
        std::size_t start_count = 0;  ///< So many, from the first on, were read in the first minute.
    };
    Seen seen() const;

private:
    const Until until_;
    std::atomic<bool> is_over_ = false;
    mutable std::mutex mutex_;                    // Guards the next; a leaf.
    std::unordered_set<std::uint64_t> prefixes_;  ///< Big-endian.
    std::vector<std::uint64_t> in_order_;
    std::chrono::steady_clock::time_point begun_at_;
    std::size_t start_count_ = 0;
};

/// Asks the daemon of a mount's store for chunks that are not there (client/API.md, /v1/fetch). When no daemon answers,
/// or the registry does not answer it, asks again until `limit` has passed. Thread-safe; each request has a connection
/// of its own, to where <store root>/socket says, so that a new daemon is found.
class DaemonLink : public store::ChunkFetcher {
public:
    /// `reads` may be null: then nothing is noted.
    DaemonLink(std::string store_root, std::string mount_id, std::chrono::milliseconds limit,
               std::shared_ptr<ReadChunks> reads = nullptr)
        : store_root_(std::move(store_root)), mount_id_(std::move(mount_id)), limit_(limit), reads_(std::move(reads)) {}
    std::vector<std::byte> fetch(const store::ChunkId& chunk) override;
    void has_read(const store::ChunkId& chunk) noexcept override {
        if (reads_) reads_->add(chunk);
    }

private:
    struct Reply {
        int status = 0;  ///< Of HTTP; 0: it broke off.
        std::string body;
    };
    Reply ask(const std::string& request, std::chrono::milliseconds limit) const;

    const std::string store_root_;
    const std::string mount_id_;
    const std::chrono::milliseconds limit_;
    const std::shared_ptr<ReadChunks> reads_;
};

/// How long a read waits for a chunk that is not there.
inline constexpr std::chrono::milliseconds kFetchLimit{30'000};

}  // namespace lamina::unionfs
