#pragma once

#include "store/content.h"
#include "store/error.h"

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <unordered_map>
#include <vector>

namespace lamina::store {

struct StoreCore;

/// Chunks that have come and are not stored yet. They can be read at once: making them durable takes longer than a
/// registry's reply. What comes while one commit is on its way shares the next one. Thread-safe; has a thread of its
/// own as soon as something has come.
class ChunkArrivals {
public:
    static constexpr std::uint64_t kMostBytes = 32 << 20;  ///< May be passed by one arrival.

    struct Piece {
        ChunkId chunk;
        std::size_t offset_bytes = 0;
        std::size_t size_bytes = 0;
    };
    /// Some chunks, whose digests have been compared.
    struct Arrival {
        std::vector<std::byte> bytes;
        std::vector<Piece> pieces;  ///< Of `bytes`.
        /// Called once, by another thread, when they are stored, or will not be. Must not throw.
        std::function<void(const std::optional<Error>&)> on_end;

        std::vector<std::byte> find(const ChunkId& chunk) const;  ///< Empty: it is another's.
    };

    /// Borrows the core.
    explicit ChunkArrivals(StoreCore& core) : core_(core) {}
    ~ChunkArrivals();  ///< What is not being stored is given up: cancelled.
    ChunkArrivals(const ChunkArrivals&) = delete;
    ChunkArrivals& operator=(const ChunkArrivals&) = delete;

    /// Its chunks can be read when this returns, and until they are stored; waits while kMostBytes are here. cancelled:
    /// stopped, and nothing was added.
    void add(std::shared_ptr<const Arrival> arrival, const std::stop_token& stop);
    /// Empty: it is not here. One that was is stored, or its `on_end` is told an error.
    std::vector<std::byte> find(const ChunkId& chunk) const;

private:
    using Shared = std::shared_ptr<const Arrival>;

    void work(const std::stop_token& stop);
    void store(const std::vector<Shared>& arrivals);
    void end(const std::vector<Shared>& arrivals, const std::optional<Error>& error);

    StoreCore& core_;
    mutable std::mutex mutex_;  // Guards the next; a leaf.
    std::condition_variable_any changed_;
    std::vector<Shared> waiting_;
    std::uint64_t bytes_ = 0;  ///< Of those that wait, and of those that are being stored.
    std::unordered_map<ChunkId, Shared> chunks_;
    std::jthread worker_;  ///< Started under the lock.
};

}  // namespace lamina::store
