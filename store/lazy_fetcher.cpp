// Who needs a part asks the queue for it and waits for its outcome; the workers take runs of parts from the queue. A
// run is one request. Each of its parts is decoded, checked, stored and told as soon as its bytes are there, so nobody
// waits for what follows; a part that is wrong is asked of the next place, alone, and fails only those who wait for it.
#include "store/lazy_fetcher.h"

#include "store/blob_spool.h"
#include "store/error.h"
#include "store/fetch_queue.h"
#include "store/job_packs.h"
#include "store/lazy_check.h"
#include "store/lazy_layer.h"
#include "store/lazy_parts.h"
#include "store/link_meter.h"
#include "store/noted_range.h"
#include "store/rate_limit.h"
#include "store/registries_conf.h"
#include "store/registry_blob.h"
#include "store/store_core.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

namespace lamina::store {

namespace {

using Clock = std::chrono::steady_clock;
using Kind = FetchQueue::Kind;
constexpr std::uint64_t kMaxLazyFileBytes = 1ull << 30;
constexpr std::uint64_t kMaxQuarantineBytes = 64 << 10;
constexpr std::uint64_t kLeastRestBytes = 2 << 20;  ///< Of one request for a layer's rest.

double seconds_between(Clock::time_point begin, Clock::time_point end) {
    return std::chrono::duration<double>(end - begin).count();
}

bool is_wrong(const Error& error) {
    return error.code() == Errc::corrupt || error.code() == Errc::malformed;
}

}  // namespace

class LazyFetcher::Impl {
public:
    explicit Impl(StoreCore& core) : core_(core) {}
    ~Impl();
    bool is_lazy(const DiffId& layer) const { return exists(core_.paths.lazy(layer)); }
    void forget(const DiffId& layer);
    bool knows(const ChunkId& chunk, const std::vector<DiffId>& layers);
    std::vector<ChunkId> fetch(const std::string& mount_id, const ChunkId& chunk, const std::vector<DiffId>& layers,
                               const std::stop_token& stop);
    LayerState state(const DiffId& layer);
    std::string why_quarantined(const DiffId& layer) const;
    void check_not_quarantined(const DiffId& layer) const;
    void prefetch(const std::vector<ChunkId>& chunks, const std::vector<DiffId>& layers);
    void complete(const DiffId& layer, const Completion& completion, const std::stop_token& stop);

private:
    struct Open {
        LazyLayer layer;
        ChunkMap chunks;
        LazyParts parts;
        BlobSpool spool;
        mutable std::atomic<std::size_t> parts_seen = 0;  ///< Have been seen here, from the first one on.
        Open(LazyLayer lazy, const StorePaths& paths, const DiffId& diff_id)
            : layer(std::move(lazy)),
              chunks(paths.recipe(diff_id)),
              parts(layer.points, chunks),
              spool(paths.blob(diff_id)) {}
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
    };
    using Place = std::pair<DiffId, std::size_t>;  ///< Layer and part.
    /// Somebody needs a part; `outcome` is the last one that he waited for.
    struct Need {
        Place place;
        Kind kind = Kind::wanted;
        std::shared_ptr<Outcome> outcome = nullptr;
    };
    /// A run on its way.
    struct Flight {
        const FetchQueue::Run& run;
        FetchKind kind = FetchKind::waited;
        std::int64_t request_us = 0;  ///< The name of its request.
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
    /// Returns when the part has come. `has_it` is asked first, and again.
    template <class HasIt>
    void wait_for(Need& need, const HasIt& has_it, const std::stop_token& stop);
    void note_wait(ChunkWait wait, const Need& need, const std::string& error);
    std::shared_ptr<Outcome> ask(const Place& place, Kind kind, bool again);
    /// Returns the parts that the reader has passed since he waited for one.
    std::pair<std::size_t, std::size_t> read_ahead(const Open& open, const Place& place);
    void start_workers();

    void work(const std::stop_token& stop);
    void fly(const FetchQueue::Run& run, const std::stop_token& stop);
    void receive(Flight& flight, const std::stop_token& stop);
    void take_part(Flight& flight, std::span<const std::byte> blob_part, const std::stop_token& stop);
    std::vector<std::byte> read_again(Flight& flight, const RegistryPlaces& places, const std::stop_token& stop);
    /// From the part on that is received.
    static RangeRequest request_for(const Flight& flight, const ByteRange& range);
    void part_done(const Flight& flight, std::size_t part, std::optional<Error> error);
    FetchKind kind_of(const FetchQueue::Run& run) const;
    RegistryPlaces places_of(const DiffId& layer, const LazyLayer& lazy);
    void store_chunks(const Open& open, const LazyParts::Part& part, std::span<const std::byte> tar);

    StoreCore& core_;
    std::mutex mutex_;  // Guards all below but the threads; not held across I/O.
    std::condition_variable_any changed_;
    std::map<DiffId, OpenLayer> open_;
    std::map<DiffId, RegistryPlaces> places_;  ///< While they answer.
    std::map<Place, std::shared_ptr<Outcome>> awaited_;
    FetchQueue queue_;
    std::set<Place> traced_;  ///< Parts that are read ahead because programs wanted them first before.
    LinkMeter link_;
    std::stop_source ending_;
    std::set<DiffId> concluding_;                              ///< Somebody compares them with their digests.
    std::optional<std::pair<DiffId, std::stop_source>> rest_;  ///< The run of a layer's rest that is on its way.
    std::vector<std::jthread> workers_;
};

LazyFetcher::Impl::~Impl() {
    ending_.request_stop();
    for (std::jthread& worker : workers_) worker.request_stop();
}

void LazyFetcher::Impl::forget(const DiffId& layer) {
    const std::lock_guard lock(mutex_);
    open_.erase(layer);
    places_.erase(layer);
    queue_.remove_layer(layer);
    std::erase_if(traced_, [&](const Place& place) { return place.first == layer; });
}

LazyFetcher::Impl::OpenLayer LazyFetcher::Impl::open(const DiffId& layer) {
    if (!is_lazy(layer)) return nullptr;  // Also when it was, and was removed since.
    {
        const std::lock_guard lock(mutex_);
        if (const auto found = open_.find(layer); found != open_.end()) return found->second;
    }
    const std::string path = core_.paths.lazy(layer);
    try {
        auto opened =
            std::make_shared<const Open>(LazyLayer::parse(read_file(path, kMaxLazyFileBytes)), core_.paths, layer);
        const std::lock_guard lock(mutex_);
        const auto [entry, is_new] = open_.emplace(layer, std::move(opened));
        if (is_new) queue_.add_layer(layer, entry->second->parts.sizes());
        return entry->second;
    } catch (const Error& error) {  // Our own file: what is wrong with it is no fault of who wants a chunk.
        if (error.code() == Errc::not_found) return nullptr;  // Completed since the look.
        throw with_context(Error(Errc::corrupt, error.what()), path);
    }
}

bool LazyFetcher::Impl::has_all(const LazyParts::Part& part) const {
    return std::ranges::all_of(part.chunks,
                               [&](const auto& chunk) { return core_.chunks->find(chunk.chunk).has_value(); });
}

bool LazyFetcher::Impl::knows(const ChunkId& chunk, const std::vector<DiffId>& layers) {
    return std::ranges::any_of(layers, [&](const DiffId& layer) {
        const auto opened = open(layer);
        return opened && opened->chunks.find(chunk);
    });
}

std::vector<ChunkId> LazyFetcher::Impl::fetch(const std::string& mount_id, const ChunkId& chunk,
                                              const std::vector<DiffId>& layers, const std::stop_token& stop) {
    for (const DiffId& layer : layers) {
        const auto opened = open(layer);
        const ChunkMap::Part* const part = opened ? opened->chunks.find(chunk) : nullptr;
        if (!part) continue;
        Need need{.place = {layer, opened->parts.number_of(*part)}};
        const ChunkWait wait{
            .mount = mount_id, .layer = layer, .chunk = chunk, .begin_us = core_.fetches.now_us(), .error = {}};
        const auto passed = read_ahead(*opened, need.place);
        try {
            wait_for(
                need, [&] { return core_.chunks->find(chunk).has_value(); }, stop);
        } catch (const Error& error) {
            note_wait(wait, need, error.what());
            throw;
        }
        note_wait(wait, need, "");
        std::vector<ChunkId> wanted;
        for (std::size_t number = passed.first; number < passed.second; ++number) {
            const auto chunks = opened->parts[number].chunks;
            if (!chunks.empty()) wanted.push_back(chunks.front().chunk);
        }
        wanted.push_back(chunk);
        return wanted;
    }
    throw Error(Errc::not_found, "chunk " + chunk.digest.hex() + ": of no layer that can be fetched");
}

std::pair<std::size_t, std::size_t> LazyFetcher::Impl::read_ahead(const Open& open, const Place& place) {
    FetchQueue::Followed followed;
    {
        const std::lock_guard lock(mutex_);
        if (!queue_.knows(place.first, place.second)) return {};
        followed = queue_.follow(place.first, place.second, link_.request_bytes());
    }
    for (std::size_t part = place.second + 1; part < followed.ahead_end; ++part) {
        if (has_all(open.parts[part])) continue;
        const std::lock_guard lock(mutex_);
        if (queue_.knows(place.first, part)) queue_.ask(place.first, part, Kind::ahead);
    }
    return {followed.passed_first, place.second};
}

/// Who found it here has not waited.
void LazyFetcher::Impl::note_wait(ChunkWait wait, const Need& need, const std::string& error) {
    if (!need.outcome) return;
    wait.end_us = core_.fetches.now_us();
    wait.error = error;
    {
        const std::lock_guard lock(mutex_);
        wait.request_us = need.outcome->request_us;
        wait.kind = need.outcome->kind;
    }
    core_.fetches.add(wait);
}

template <class HasIt>
void LazyFetcher::Impl::wait_for(Need& need, const HasIt& has_it, const std::stop_token& stop) {
    for (bool again = false; !has_it(); again = true) {
        const std::shared_ptr<Outcome> outcome = ask(need.place, need.kind, again);
        if (!outcome) continue;
        need.outcome = outcome;
        std::unique_lock lock(mutex_);
        if (!changed_.wait(lock, stop, [&] { return outcome->is_known; }))
            throw Error(Errc::cancelled, "fetch: cancelled");
        if (!outcome->error) {
            if (again) return;
            continue;
        }
        const bool is_others = outcome->error->code() == Errc::cancelled && !ending_.stop_requested();
        if (!is_others) throw Error(*outcome->error);
    }
}

/// Null: the part has come since it was looked for.
std::shared_ptr<LazyFetcher::Impl::Outcome> LazyFetcher::Impl::ask(const Place& place, Kind kind, bool again) {
    const std::lock_guard lock(mutex_);
    if (!queue_.knows(place.first, place.second)) throw Error(Errc::cancelled, "fetch: the layer is another one now");
    if (!queue_.ask(place.first, place.second, kind, again)) return nullptr;
    std::shared_ptr<Outcome>& outcome = awaited_[place];
    if (!outcome) outcome = std::make_shared<Outcome>();
    start_workers();
    changed_.notify_all();
    return outcome;
}

void LazyFetcher::Impl::start_workers() {
    while (workers_.size() < FetchQueue::kRunsAtOnce) {
        workers_.emplace_back([this](const std::stop_token& stop) { work(stop); });
    }
}

void LazyFetcher::Impl::work(const std::stop_token& stop) {
    while (true) {
        std::optional<FetchQueue::Run> run;
        std::stop_source of_run;
        {
            std::unique_lock lock(mutex_);
            if (!changed_.wait(lock, stop, [&] { return (run = queue_.next()).has_value(); })) return;
            if (run->kind == Kind::rest) rest_.emplace(run->layer, of_run);
        }
        {
            const std::stop_callback pass_on(stop, [&] { of_run.request_stop(); });
            fly(*run, of_run.get_token());
        }
        const std::lock_guard lock(mutex_);
        if (run->kind == Kind::rest) rest_.reset();
        queue_.run_done(*run);
        changed_.notify_all();
    }
}

void LazyFetcher::Impl::fly(const FetchQueue::Run& run, const std::stop_token& stop) {
    Flight flight{.run = run, .part = run.first};
    std::optional<Error> failure;
    try {
        {
            const std::lock_guard lock(mutex_);
            flight.kind = kind_of(run);
        }
        flight.open = open(run.layer);
        if (!flight.open || run.end > flight.open->parts.size())
            throw Error(Errc::cancelled, "fetch: the layer is another one now");
        flight.places = places_of(run.layer, flight.open->layer);
        receive(flight, stop);
    } catch (const Error& error) {
        failure = error;
    } catch (const std::exception& error) {  // A thread's entry.
        failure = Error(Errc::internal, std::string("fetch: ") + error.what());
    }
    if (!failure) return;
    {
        const std::lock_guard lock(mutex_);
        places_.erase(run.layer);  // Another configuration, or other credentials, may do better.
    }
    for (; flight.part < run.end; ++flight.part) part_done(flight, flight.part, failure);
}

FetchKind LazyFetcher::Impl::kind_of(const FetchQueue::Run& run) const {
    if (run.kind == Kind::wanted) return FetchKind::waited;
    if (run.kind == Kind::rest) return FetchKind::rest;
    const auto first = traced_.lower_bound({run.layer, run.first});
    const bool is_traced = first != traced_.end() && first->first == run.layer && first->second < run.end;
    return is_traced ? FetchKind::trace : FetchKind::ahead;
}

void LazyFetcher::Impl::receive(Flight& flight, const std::stop_token& stop) {
    const LazyParts& parts = flight.open->parts;
    flight.first = flight.run.first == 0 ? 0 : parts[flight.run.first].span.blob_first;  // A header is before it.
    std::uint64_t end = 0;
    for (std::size_t part = flight.run.first; part < flight.run.end; ++part) {
        end = std::max(end, parts[part].span.blob_end);
    }
    NotedRange source(core_.fetches, request_for(flight, {flight.first, end}),
                      open_registry_range(flight.places, flight.open->layer.blob, {flight.first, end}, stop));
    flight.request_us = source.request_us();
    flight.bytes.resize(end - flight.first);
    std::size_t received = 0;
    const auto sent_at = Clock::now();
    auto begun_at = sent_at;
    for (; flight.part < flight.run.end; ++flight.part) {
        const AccessPoints::Span& span = parts[flight.part].span;
        while (received < span.blob_end - flight.first) {
            received += source.read(std::span(flight.bytes).subspan(received));
            if (begun_at == sent_at) begun_at = Clock::now();
        }
        source.brings(parts[flight.part].chunks_end());
        if (flight.part + 1 == flight.run.end) {
            source.end();
            const std::lock_guard lock(mutex_);
            link_.note(seconds_between(sent_at, begun_at), seconds_between(begun_at, Clock::now()), received);
        }
        const std::size_t at = span.blob_first - flight.first;
        const std::size_t size = span.blob_end - span.blob_first;
        if (flight.part == 0) flight.open->spool.put(0, std::span(flight.bytes).first(at));
        take_part(flight, std::span(flight.bytes).subspan(at, size), stop);
    }
}

/// Bytes that are not what the recipe says: the next place may have them right.
void LazyFetcher::Impl::take_part(Flight& flight, std::span<const std::byte> blob_part, const std::stop_token& stop) {
    const Open& open = *flight.open;
    const LazyParts::Part& part = open.parts[flight.part];
    std::optional<Error> failure;
    RegistryPlaces left = flight.places;
    std::vector<std::byte> bytes;
    while (true) {
        try {
            store_chunks(open, part, open.layer.points.decode(part.span, blob_part));
            open.spool.put(part.span.blob_first, blob_part);
            return part_done(flight, flight.part, std::nullopt);
        } catch (const Error& error) {
            if (!is_wrong(error)) throw;
            if (left.size() == 1) return part_done(flight, flight.part, error);
        }
        left.erase(left.begin());
        bytes = read_again(flight, left, stop);
        blob_part = bytes;
    }
}

std::vector<std::byte> LazyFetcher::Impl::read_again(Flight& flight, const RegistryPlaces& places,
                                                     const std::stop_token& stop) {
    const AccessPoints::Span& span = flight.open->parts[flight.part].span;
    const ByteRange range{span.blob_first, span.blob_end};
    NotedRange source(core_.fetches, request_for(flight, range),
                      open_registry_range(places, flight.open->layer.blob, range, stop));
    flight.request_us = source.request_us();
    std::vector<std::byte> bytes(range.end - range.first);
    std::size_t done = 0;
    while (done < bytes.size()) done += source.read(std::span(bytes).subspan(done));
    source.brings(flight.open->parts[flight.part].chunks_end());
    source.end();
    return bytes;
}

RangeRequest LazyFetcher::Impl::request_for(const Flight& flight, const ByteRange& range) {
    const std::uint64_t tar_first = flight.open->parts[flight.part].span.tar_first;
    return {.layer = flight.run.layer,
            .source = {},
            .kind = flight.kind,
            .blob_first = range.first,
            .blob_end = range.end,
            .tar_first = tar_first,
            .tar_end = tar_first,
            .error = {}};
}

void LazyFetcher::Impl::part_done(const Flight& flight, std::size_t part, std::optional<Error> error) {
    const Place place(flight.run.layer, part);
    const std::lock_guard lock(mutex_);
    queue_.part_done(flight.run, part, !error);
    traced_.erase(place);
    const auto awaited = awaited_.find(place);
    if (awaited == awaited_.end()) return;
    awaited->second->is_known = true;
    awaited->second->error = std::move(error);
    awaited->second->request_us = flight.request_us;
    awaited->second->kind = flight.kind;
    awaited_.erase(awaited);
    changed_.notify_all();
}

RegistryPlaces LazyFetcher::Impl::places_of(const DiffId& layer, const LazyLayer& lazy) {
    {
        const std::lock_guard lock(mutex_);
        if (const auto found = places_.find(layer); found != places_.end()) return found->second;
    }
    const RegistryAccess access{.credentials = std::nullopt,
                                .auth_file = lazy.auth_file,
                                .cert_dir = lazy.cert_dir,
                                .verifies_tls = lazy.verifies_tls,
                                .proxy = ProxySettings::from_environment()};
    RegistryReference reference = RegistryReference::parse(lazy.repository + "@" + lazy.blob.digest.digest.text());
    RegistryPlaces places;
    for (const RegistryPlace& place : RegistriesConf::load().places(reference)) {
        places.push_back(std::make_shared<RegistrySession>(core_.http(), place, access, ending_.get_token()));
    }
    const std::lock_guard lock(mutex_);
    return places_.emplace(layer, std::move(places)).first->second;
}

void LazyFetcher::Impl::store_chunks(const Open& open, const LazyParts::Part& part, std::span<const std::byte> tar) {
    const auto bytes_of = [&](const ChunkMap::Part& chunk) {
        return tar.subspan(chunk.tar_offset - part.span.tar_first, chunk.size_bytes);
    };
    for (const ChunkMap::Part& chunk : part.chunks) {  // All of them before any is stored.
        if (Digest::of(bytes_of(chunk)) == chunk.chunk.digest) continue;
        throw Error(Errc::corrupt, "layer blob " + open.layer.blob.digest.digest.text() + ": at tar offset " +
                                       std::to_string(chunk.tar_offset) + " its bytes are not those of chunk " +
                                       chunk.chunk.digest.hex());
    }
    Leases::Lease lease = core_.leases.take();
    const JobFolder folder(core_);
    JobPacks packs(core_, lease, folder.path(), JobPacks::Limits{});
    const auto lane = packs.lane();
    for (const ChunkMap::Part& chunk : part.chunks) lane->add(bytes_of(chunk));
    packs.commit_chunks();
}

bool LazyFetcher::Impl::has_come(const Open& open, std::size_t part) const {
    const AccessPoints::Span& span = open.parts[part].span;
    return open.spool.has(part == 0 ? 0 : span.blob_first, span.blob_end) && has_all(open.parts[part]);
}

bool LazyFetcher::Impl::is_whole(const Open& open) const {
    std::size_t seen = open.parts_seen;
    while (seen < open.parts.size() && has_all(open.parts[seen])) ++seen;
    open.parts_seen = seen;
    return seen == open.parts.size();
}

LayerState LazyFetcher::Impl::state(const DiffId& layer) {
    if (exists(core_.paths.quarantined(layer))) return LayerState::quarantined;
    try {
        const auto opened = open(layer);
        if (!opened) return LayerState::verified;
        return is_whole(*opened) ? LayerState::complete : LayerState::lazy;
    } catch (const Error&) {  // What is wrong with its file is told to whoever needs it.
        return LayerState::lazy;
    }
}

std::string LazyFetcher::Impl::why_quarantined(const DiffId& layer) const {
    const std::string path = core_.paths.quarantined(layer);
    if (!exists(path)) return {};
    const auto why = read_file(path, kMaxQuarantineBytes);
    return "layer " + layer.digest.text() +
           " is quarantined: " + std::string(reinterpret_cast<const char*>(why.data()), why.size());
}

void LazyFetcher::Impl::check_not_quarantined(const DiffId& layer) const {
    if (const std::string why = why_quarantined(layer); !why.empty()) throw Error(Errc::corrupt, why);
}

void LazyFetcher::Impl::prefetch(const std::vector<ChunkId>& chunks, const std::vector<DiffId>& layers) {
    std::vector<std::pair<DiffId, OpenLayer>> opened;
    for (const DiffId& layer : layers) {
        if (auto one = open(layer)) opened.emplace_back(layer, std::move(one));
    }
    std::vector<Place> places;
    for (const ChunkId& chunk : chunks) {
        if (core_.chunks->find(chunk)) continue;
        for (const auto& [layer, one] : opened) {
            const ChunkMap::Part* const part = one->chunks.find(chunk);
            if (!part) continue;
            places.emplace_back(layer, one->parts.number_of(*part));
            break;
        }
    }
    if (places.empty()) return;
    const std::lock_guard lock(mutex_);  // All of them before any is taken, so that neighbours share a request.
    for (const auto& [layer, part] : places) {
        if (queue_.knows(layer, part) && queue_.ask(layer, part, Kind::ahead)) traced_.emplace(layer, part);
    }
    start_workers();
    changed_.notify_all();
}

void LazyFetcher::Impl::complete(const DiffId& layer, const Completion& completion, const std::stop_token& stop) {
    check_not_quarantined(layer);
    try {
        const auto opened = open(layer);
        if (!opened) return;
        fetch_rest(layer, *opened, completion, stop);
        conclude(layer, *opened, stop);
    } catch (const Error& error) {
        const bool is_done_by_another = error.code() == Errc::cancelled && !stop.stop_requested() && !is_lazy(layer);
        if (!is_done_by_another) throw;
    }
}

void LazyFetcher::Impl::fetch_rest(const DiffId& layer, const Open& open, const Completion& completion,
                                   const std::stop_token& stop) {
    try {
        if (completion.is_background) return fetch_in_background(layer, open, completion, stop);
        for (std::size_t part = 0; part < open.parts.size(); ++part) {
            const auto has_it = [&] { return has_come(open, part); };
            if (!has_it()) read_ahead(open, {layer, part});
            Need need{.place = {layer, part}};
            wait_for(need, has_it, stop);
            if (!completion.progress) continue;
            const AccessPoints::Span& span = open.parts[part].span;
            completion.progress({"completing", layer.digest.text(), span.blob_end, open.layer.blob.size_bytes, 0, 0});
        }
    } catch (const Error& error) {
        if (!is_wrong(error)) throw;
        if (const auto lie = find_lie(core_, {layer, open.layer, places_of(layer, open.layer)}, stop))
            put_aside(layer, *lie);
        throw;
    }
}

void LazyFetcher::Impl::fetch_in_background(const DiffId& layer, const Open& open, const Completion& completion,
                                            const std::stop_token& stop) {
    RateLimit rate(completion.bytes_per_second);
    for (std::size_t first = 0; first < open.parts.size();) {
        std::uint64_t limit_bytes = 0;
        {
            const std::lock_guard lock(mutex_);
            limit_bytes = std::max(kLeastRestBytes, link_.request_bytes());
        }
        if (completion.bytes_per_second > 0) limit_bytes = std::min(limit_bytes, completion.bytes_per_second);
        std::uint64_t bytes = 0;
        std::size_t end = first;
        for (; end < open.parts.size(); ++end) {
            const std::uint64_t more_bytes = has_come(open, end) ? 0 : open.parts[end].blob_bytes;
            if (bytes > 0 && bytes + more_bytes > limit_bytes) break;
            bytes += more_bytes;
        }
        ask_for_rest(layer, open, {first, end});
        try {
            for (; first < end; ++first) {
                Need need{.place = {layer, first}, .kind = Kind::rest};
                wait_for(
                    need, [&] { return has_come(open, first); }, stop);
            }
        } catch (...) {  // Whatever it was: what was asked for is not wanted any more.
            stop_rest(layer);
            throw;
        }
        rate.take(bytes, stop);  // Paid afterwards: so a part that is larger than a second's worth comes at once.
        const std::uint64_t done_bytes = open.parts[end - 1].span.blob_end;
        if (completion.progress)
            completion.progress({"completing", layer.digest.text(), done_bytes, open.layer.blob.size_bytes, 0, 0});
    }
}

void LazyFetcher::Impl::ask_for_rest(const DiffId& layer, const Open& open, std::pair<std::size_t, std::size_t> parts) {
    std::vector<std::size_t> missing;
    for (std::size_t part = parts.first; part < parts.second; ++part) {
        if (!has_come(open, part)) missing.push_back(part);
    }
    const std::lock_guard lock(mutex_);
    for (const std::size_t part : missing) {
        if (queue_.knows(layer, part)) queue_.ask(layer, part, Kind::rest, true);
    }
}

void LazyFetcher::Impl::stop_rest(const DiffId& layer) {
    const std::lock_guard lock(mutex_);
    if (queue_.knows(layer, 0)) queue_.take_back(layer);
    if (rest_ && rest_->first == layer) rest_->second.request_stop();
    for (auto& [place, outcome] : awaited_) {  // Of what is not on its way nobody would tell.
        if (place.first != layer || !queue_.is_idle(place.first, place.second)) continue;
        outcome->is_known = true;
        outcome->error = Error(Errc::cancelled, "fetch: taken back");
    }
    std::erase_if(awaited_, [](const auto& entry) { return entry.second->is_known; });
    changed_.notify_all();
}

void LazyFetcher::Impl::conclude(const DiffId& layer, const Open& open, const std::stop_token& stop) {
    {
        std::unique_lock lock(mutex_);
        if (!changed_.wait(lock, stop, [&] { return !concluding_.contains(layer); }))
            throw Error(Errc::cancelled, "complete: cancelled");
        concluding_.insert(layer);
    }
    const auto give_back = [&](const void*) {
        const std::lock_guard lock(mutex_);
        concluding_.erase(layer);
        changed_.notify_all();
    };
    const std::unique_ptr<const void, decltype(give_back)> claim(&layer, give_back);
    check_not_quarantined(layer);
    if (!is_lazy(layer)) return;  // Another one has done it.
    const LayerToCheck check{layer, open.layer, places_of(layer, open.layer)};
    if (const auto wrong = check_lazy_layer(core_, check, stop)) put_aside(layer, *wrong);
    remove_file(core_.paths.lazy(layer));
    remove_file(core_.paths.blob(layer));
    sync_folder(core_.paths.layers());
    forget(layer);
}

void LazyFetcher::Impl::put_aside(const DiffId& layer, const std::string& why) {
    quarantine(core_, layer, why);
    check_not_quarantined(layer);
    throw Error(Errc::internal, "quarantine: did not last");
}

LazyFetcher::LazyFetcher(StoreCore& core) : impl_(std::make_unique<Impl>(core)) {}
LazyFetcher::~LazyFetcher() = default;

bool LazyFetcher::is_lazy(const DiffId& layer) const {
    return impl_->is_lazy(layer);
}
void LazyFetcher::forget(const DiffId& layer) {
    impl_->forget(layer);
}
bool LazyFetcher::knows(const ChunkId& chunk, const std::vector<DiffId>& layers) {
    return impl_->knows(chunk, layers);
}
std::vector<ChunkId> LazyFetcher::fetch(const std::string& mount_id, const ChunkId& chunk,
                                        const std::vector<DiffId>& layers, const std::stop_token& stop) {
    return impl_->fetch(mount_id, chunk, layers, stop);
}
LayerState LazyFetcher::state(const DiffId& layer) {
    return impl_->state(layer);
}
std::string LazyFetcher::why_quarantined(const DiffId& layer) const {
    return impl_->why_quarantined(layer);
}
void LazyFetcher::check_not_quarantined(const DiffId& layer) const {
    impl_->check_not_quarantined(layer);
}
void LazyFetcher::prefetch(const std::vector<ChunkId>& chunks, const std::vector<DiffId>& layers) {
    impl_->prefetch(chunks, layers);
}
void LazyFetcher::complete(const DiffId& layer, const Completion& completion, const std::stop_token& stop) {
    impl_->complete(layer, completion, stop);
}

}  // namespace lamina::store
