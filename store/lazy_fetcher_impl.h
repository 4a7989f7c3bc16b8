#pragma once

#include "store/blob_spool.h"
#include "store/chunk_arrivals.h"
#include "store/error.h"
#include "store/fetch_queue.h"
#include "store/lazy_fetcher.h"
#include "store/lazy_layer.h"
#include "store/lazy_parts.h"
#include "store/link_meter.h"
#include "store/registry_blob.h"
#include "store/store_core.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lamina::store {

/// Locks, what is on its way, and who waits for it. Split over lazy_fetcher.cpp (readers and requests), lazy_bundle.cpp
/// (start bundles) and lazy_rest.cpp (what completes a layer).
class LazyFetcher::Impl {
public:
    explicit Impl(StoreCore& core) : core_(core) {}
    ~Impl();
    bool is_lazy(const DiffId& layer) const { return exists(core_.paths.lazy(layer)); }
    void forget(const DiffId& layer);
    bool knows(const ChunkId& chunk, const std::vector<DiffId>& layers);
    Fetched fetch(const Wanted& wanted, const std::stop_token& stop);
    LayerState state(const DiffId& layer);
    std::string why_quarantined(const DiffId& layer) const;
    void check_not_quarantined(const DiffId& layer) const;
    void prefetch(const std::vector<ChunkId>& chunks, const std::vector<DiffId>& layers);
    std::optional<DiffId> bring(const StartBundle& bundle, LazyLayer blob, const std::vector<DiffId>& layers);
    void decide(const DiffId& bundle, bool is_trusted);
    void complete(const DiffId& layer, const Completion& completion, const std::stop_token& stop);

private:
    using Clock = std::chrono::steady_clock;
    using Kind = FetchQueue::Kind;
    struct Open {
        LazyLayer layer;
        ChunkMap chunks;
        LazyParts parts;
        std::optional<BlobSpool> spool;                   ///< None: a start bundle's.
        mutable std::atomic<std::size_t> parts_seen = 0;  ///< Have been seen here, from the first one on.
        Open(LazyLayer lazy, const StorePaths& paths, const DiffId& diff_id)
            : layer(std::move(lazy)),
              chunks(paths.recipe(diff_id)),
              parts(layer.points, chunks),
              spool(paths.blob(diff_id)) {}
        Open(LazyLayer blob, ChunkMap map)
            : layer(std::move(blob)), chunks(std::move(map)), parts(layer.points, chunks) {}
        Open(const Open&) = delete;  // The parts point into it.
        Open& operator=(const Open&) = delete;
    };
    using OpenLayer = std::shared_ptr<const Open>;
    /// What many wait for: a part that is asked for.
    struct Outcome {
        bool is_known = false;
        std::optional<Error> error;
        std::int64_t request_us = 0;  ///< RangeRequest::sent_us, and its kind.
        FetchKind kind = FetchKind::waited;
        std::shared_ptr<const ChunkArrivals::Arrival> arrival = nullptr;  ///< From when it has come.
    };
    using Place = std::pair<DiffId, std::size_t>;  ///< Layer and part.
    /// Somebody needs a part; `outcome` is the last one that he waited for.
    struct Need {
        Place place;
        Kind kind = Kind::wanted;
        bool takes_bytes = false;       ///< He does not wait until they are stored.
        std::vector<Place> ahead = {};  ///< Asked for with it, so that one request can get them.
        std::shared_ptr<Outcome> outcome = nullptr;
    };
    /// A start bundle on its way.
    struct Bundle {
        std::vector<DiffId> layers;
        std::size_t parts_left = 0;  ///< That were asked for.
        bool is_trusted = false;     ///< Until then its bytes come, and nothing is made of them.
    };
    /// What is known of a run when it is over.
    struct Request {
        FetchQueue::Run run;
        FetchKind kind = FetchKind::waited;
        std::int64_t us = 0;  ///< Its name: RangeRequest::sent_us.
    };
    /// A run on its way.
    struct Flight {
        Request request;
        OpenLayer open = nullptr;
        RegistryPlaces places = {};
        std::size_t part = 0;               ///< That is received.
        std::vector<std::byte> bytes = {};  ///< Of the blob, from `first` on.
        std::uint64_t first = 0;
    };

    OpenLayer open(const DiffId& layer);
    bool is_whole(const Open& open) const;
    /// Its chunks are here, and its blob bytes.
    bool has_come(const Open& open, std::size_t part) const;
    void fetch_rest(const DiffId& layer, const Open& open, const Completion& completion, const std::stop_token& stop);
    void fetch_in_background(const DiffId& layer, const Open& open, const Completion& completion,
                             const std::stop_token& stop);
    void ask_for_rest(const DiffId& layer, const Open& open, std::pair<std::size_t, std::size_t> parts);
    void stop_rest(const DiffId& layer);
    void conclude(const DiffId& layer, const Open& open, const std::stop_token& stop);
    [[noreturn]] void put_aside(const DiffId& layer, const std::string& why);
    bool has_all(const LazyParts::Part& part) const;
    static bool is_wrong(const Error& error);  ///< Another place may have it right.
    /// Returns when the part is stored; for who takes bytes, when it has come. `has_it` is asked first, and again.
    template <class HasIt>
    void wait_for(Need& need, const HasIt& has_it, const std::stop_token& stop);
    /// Waits for a chunk, and returns its bytes when it has come and is not stored.
    std::vector<std::byte> wait_for_chunk(Need& need, const Wanted& wanted, const std::stop_token& stop);
    void note_wait(ChunkWait wait, const Need& need, const std::string& error);
    /// Waits for a chunk that comes with a start bundle. False: it does not.
    bool wait_for_bundle(const Wanted& wanted, const ChunkWait& wait, std::vector<std::byte>& bytes,
                         const std::stop_token& stop);
    std::optional<Place> place_in_bundle(const ChunkId& chunk);  ///< In one that is trusted.
    /// The bundle, if it is one, is forgotten. Returns its chunks, and where else they are.
    std::pair<std::vector<ChunkId>, std::vector<DiffId>> give_up_bundle(const DiffId& id);
    bool is_held(const Flight& flight);
    void wait_until_trusted(const Flight& flight, const std::stop_token& stop);
    void forget_bundle(DiffId bundle);  ///< With the lock held, like the next.
    void forget_locked(const DiffId& layer);
    void ask_ahead(const std::vector<Place>& places);
    void note_came(const Flight& flight);
    std::shared_ptr<Outcome> ask(Need& need, bool again);
    void ask_ahead(Need& need);  ///< With the lock held.
    /// What is to be read ahead for who needs a part, is added to his need. Returns the parts that he has passed since
    /// he waited for one.
    std::pair<std::size_t, std::size_t> read_ahead(const Open& open, Need& need, std::size_t wanted_end);
    /// Who reads a part of a file wants most of it, as a rule, in whatever order; and the line is idle while he waits.
    /// Returns the part behind the file.
    std::size_t read_file_ahead(const Open& open, Need& need, const ChunkMap::Part& part);
    void start_workers();

    void work(const std::stop_token& stop);
    void fly(const FetchQueue::Run& run, const std::stop_token& stop);
    void receive(Flight& flight, const std::stop_token& stop);
    void take_part(Flight& flight, std::span<const std::byte> blob_part, const std::stop_token& stop);
    std::vector<std::byte> read_again(Flight& flight, const RegistryPlaces& places, const std::stop_token& stop);
    /// From the part on that is received.
    static RangeRequest request_for(const Flight& flight, const ByteRange& range);
    /// The flight's part, decoded: readers get its chunks from now on, and it is done when they are stored.
    void arrive(const Flight& flight, std::vector<std::byte> tar, const std::stop_token& stop);
    void part_done(const Request& request, std::size_t part, std::optional<Error> error);
    void give_up_bundle_for_layers(const DiffId& id);
    FetchKind kind_of(const FetchQueue::Run& run) const;
    RegistryPlaces places_of(const DiffId& layer, const LazyLayer& lazy);
    static void check_chunks(const Open& open, const LazyParts::Part& part, std::span<const std::byte> tar);

    StoreCore& core_;
    std::mutex mutex_;  // Guards all below but the threads; not held across I/O.
    std::condition_variable_any changed_;
    std::map<DiffId, OpenLayer> open_;
    std::map<DiffId, RegistryPlaces> places_;  ///< While they answer.
    std::map<Place, std::shared_ptr<Outcome>> awaited_;
    FetchQueue queue_;
    std::map<DiffId, Bundle> bundles_;             ///< By the digests of their directories.
    std::unordered_map<ChunkId, DiffId> bundled_;  ///< What comes with them.
    std::set<Place> traced_;  ///< Parts that are read ahead because programs wanted them first before.
    LinkMeter link_;
    std::stop_source ending_;
    std::set<DiffId> concluding_;                              ///< Somebody compares them with their digests.
    std::optional<std::pair<DiffId, std::stop_source>> rest_;  ///< The run of a layer's rest that is on its way.
    ChunkArrivals arrivals_{core_};                            ///< Calls back: after all above.
    std::vector<std::jthread> workers_;
};

template <class HasIt>
void LazyFetcher::Impl::wait_for(Need& need, const HasIt& has_it, const std::stop_token& stop) {
    for (bool again = false; !has_it(); again = true) {
        const std::shared_ptr<Outcome> outcome = ask(need, again);
        if (!outcome) continue;
        need.outcome = outcome;
        std::unique_lock lock(mutex_);
        const auto has_come = [&] { return need.takes_bytes && outcome->arrival; };
        if (!changed_.wait(lock, stop, [&] { return outcome->is_known || has_come(); }))
            throw Error(Errc::cancelled, "fetch: cancelled");
        if (has_come()) return;
        if (!outcome->error) {
            if (again) return;
            continue;
        }
        const bool is_others = outcome->error->code() == Errc::cancelled && !ending_.stop_requested();
        if (!is_others) throw Error(*outcome->error);
    }
    const std::lock_guard lock(mutex_);
    ask_ahead(need);
}

}  // namespace lamina::store
