#pragma once

#include "store/chunk_store.h"
#include "store/digest.h"

#include <condition_variable>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <utility>
#include <vector>

namespace lamina::store {

/// What running jobs keep from gc, and what gc keeps from running jobs. Why this is enough stands at the top of gc.cpp.
///
/// In memory only: a process that dies ends its jobs, and no other process writes the store. Thread-safe.
class Leases {
public:
    struct Held {
        std::set<DiffId> layers;
        std::set<TreeDigest> trees;
        std::set<std::uint32_t> packs;
    };

    /// One job's lease; ends with it. Every keep_ call comes before the job first asks the index, or the folder, for
    /// the thing. Thread-safe.
    class Lease {
    public:
        Lease(Lease&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)), held_(other.held_) {}
        Lease& operator=(Lease&&) = delete;
        ~Lease();
        void keep_layer(const DiffId& layer);
        void keep_tree(const TreeDigest& tree);
        void keep_pack(std::uint32_t pack);
        /// `chunks.find(chunk)` and keep_pack() of its pack in one step; nullopt too when gc is taking that pack away.
        std::optional<ChunkPlace> find(ChunkStore& chunks, const ChunkId& chunk);

    private:
        friend class Leases;
        Lease(Leases& owner, std::list<Held>::iterator held) : owner_(&owner), held_(held) {}
        Leases* owner_;
        std::list<Held>::iterator held_;
    };
    Lease take();

    /// The right to make one layer; given back when it ends.
    class Claim {
    public:
        Claim(Claim&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)), layer_(other.layer_) {}
        Claim& operator=(Claim&&) = delete;
        ~Claim();

    private:
        friend class Leases;
        Claim(Leases& owner, const DiffId& layer) : owner_(&owner), layer_(layer) {}
        Leases* owner_;
        DiffId layer_;
    };
    /// Waits until no other job makes this layer, so that two imports of one image do the work once. cancelled on stop.
    /// A thread has one claim at a time.
    Claim claim_layer(const DiffId& layer, std::stop_token stop);

    /// For gc: runs `function(const Held& all, auto&& hide)` while no lease can change. hide(packs) makes find() miss
    /// them from then on.
    template <class Function>
    decltype(auto) with_all(Function&& function) {
        const std::lock_guard lock(mutex_);
        const auto hide = [this](const std::vector<std::uint32_t>& packs) {
            hidden_.insert(packs.begin(), packs.end());
        };
        return function(all_held(), hide);
    }
    void hide(const std::vector<std::uint32_t>& packs);  ///< find() misses them from now on.
    /// For gc, when `successor` has got what is needed of `packs`: calls `commit` with those of them that no lease
    /// keeps, hidden from now on unless it returns false, while no lease can change. The leases that keep one of the
    /// others keep the successor too, for the chunks that are found there from now on.
    template <class Commit>
    void retire(const std::vector<std::uint32_t>& packs, std::optional<std::uint32_t> successor, Commit&& commit) {
        const std::lock_guard lock(mutex_);
        const Held held = all_held();
        std::vector<std::uint32_t> free;
        for (const std::uint32_t pack : packs) {
            if (!held.packs.contains(pack)) free.push_back(pack);
        }
        hidden_.insert(free.begin(), free.end());  // Stays so when `commit` throws: it may have happened.
        if (successor) follow(packs, *successor);
        if (commit(held, std::as_const(free))) return;
        for (const std::uint32_t pack : free) hidden_.erase(pack);
    }
    void show(const std::vector<std::uint32_t>& packs);  ///< Ends hiding.

private:
    Held all_held() const;
    void follow(const std::vector<std::uint32_t>& packs, std::uint32_t successor);

    std::mutex mutex_;  // Guards all below. Taken before the index's lock, never the other way.
    std::condition_variable_any claim_ended_;
    std::list<Held> held_;
    std::set<DiffId> claimed_;
    std::set<std::uint32_t> hidden_;
};

/// What a PackWriter of a job drops known chunks by: the store's chunks, seen through the job's lease. Borrows both.
class LeasedChunks : public ChunkStore {
public:
    LeasedChunks(ChunkStore& chunks, Leases::Lease& lease) : chunks_(chunks), lease_(lease) {}
    std::optional<ChunkPlace> find(const ChunkId& chunk) override { return lease_.find(chunks_, chunk); }
    void add_segment(const FinishedPack& pack) override { chunks_.add_segment(pack); }
    void replace_packs(const FinishedPack* added, const std::vector<std::uint32_t>& removed) override {
        chunks_.replace_packs(added, removed);
    }
    void compact() override { chunks_.compact(); }
    void rebuild(const std::vector<std::uint32_t>& packs) override { chunks_.rebuild(packs); }
    std::vector<std::uint32_t> indexed_packs() override { return chunks_.indexed_packs(); }
    std::uint64_t chunk_count() override { return chunks_.chunk_count(); }
    void read(const ChunkId& chunk, std::uint32_t offset_bytes, std::span<std::byte> out) override {
        chunks_.read(chunk, offset_bytes, out);
    }
    bool is_warm(const ChunkId& chunk) override { return chunks_.is_warm(chunk); }

private:
    ChunkStore& chunks_;
    Leases::Lease& lease_;
};

}  // namespace lamina::store
