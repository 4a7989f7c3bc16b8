// Who needs a part asks the queue for it and waits for its outcome; the workers take runs of parts from the queue. A
// run is one request. Each of its parts is decoded, checked, stored and told as soon as its bytes are there, so nobody
// waits for what follows; a part that is wrong is asked of the next place, alone, and fails only those who wait for it.
#include "store/lazy_fetcher.h"

#include "store/error.h"
#include "store/fetch_queue.h"
#include "store/job_packs.h"
#include "store/lazy_layer.h"
#include "store/lazy_parts.h"
#include "store/link_meter.h"
#include "store/outgoing_image.h"
#include "store/recipe.h"
#include "store/registries_conf.h"
#include "store/registry_blob.h"
#include "store/store_core.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

namespace lamina::store {

namespace {

using Clock = std::chrono::steady_clock;
using Kind = FetchQueue::Kind;
constexpr std::uint64_t kMaxLazyFileBytes = 1ull << 30;

class NoSink : public ByteSink {
public:
    void write(std::span<const std::byte>) override {}
};

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
    void fetch(const ChunkId& chunk, const std::vector<DiffId>& layers, const std::stop_token& stop);
    void complete(const DiffId& layer, const ProgressFunction& progress, const std::stop_token& stop);

private:
    struct Open {
        LazyLayer layer;
        ChunkMap chunks;
        LazyParts parts;
        Open(LazyLayer lazy, const std::string& recipe_path)
            : layer(std::move(lazy)), chunks(recipe_path), parts(layer.points, chunks) {}
        Open(const Open&) = delete;  // The parts point into it.
        Open& operator=(const Open&) = delete;
    };
    using OpenLayer = std::shared_ptr<const Open>;
    /// What many wait for: a part that is asked for.
    struct Outcome {
        bool is_known = false;
        std::optional<Error> error;
    };
    using Place = std::pair<DiffId, std::size_t>;  ///< Layer and part.
    /// A run on its way.
    struct Flight {
        const FetchQueue::Run& run;
        OpenLayer open = nullptr;
        RegistryPlaces places = {};
        std::size_t part = 0;               ///< That is received.
        std::vector<std::byte> bytes = {};  ///< Of the blob, from `first` on.
        std::uint64_t first = 0;
    };

    OpenLayer open(const DiffId& layer);
    bool has_all(const LazyParts::Part& part) const;
    /// Returns when the part has come. `has_it` is asked first, and again.
    template <class HasIt>
    void wait_for(const Place& place, Kind kind, const HasIt& has_it, const std::stop_token& stop);
    std::shared_ptr<Outcome> ask(const Place& place, Kind kind, bool again);
    void read_ahead(const Open& open, const Place& place);
    void start_workers();

    void work(const std::stop_token& stop);
    void fly(const FetchQueue::Run& run, const std::stop_token& stop);
    void receive(Flight& flight, const std::stop_token& stop);
    void take_part(Flight& flight, std::span<const std::byte> blob_part, const std::stop_token& stop);
    void part_done(const FetchQueue::Run& run, std::size_t part, std::optional<Error> error);
    RegistryPlaces places_of(const DiffId& layer, const LazyLayer& lazy);
    void store_chunks(const Open& open, const LazyParts::Part& part, std::span<const std::byte> tar);

    StoreCore& core_;
    std::mutex mutex_;  // Guards all below but the threads; not held across I/O.
    std::condition_variable_any changed_;
    std::map<DiffId, OpenLayer> open_;
    std::map<DiffId, RegistryPlaces> places_;  ///< While they answer.
    std::map<Place, std::shared_ptr<Outcome>> awaited_;
    FetchQueue queue_;
    LinkMeter link_;
    std::stop_source ending_;
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
}

LazyFetcher::Impl::OpenLayer LazyFetcher::Impl::open(const DiffId& layer) {
    {
        const std::lock_guard lock(mutex_);
        if (const auto found = open_.find(layer); found != open_.end()) return found->second;
    }
    if (!is_lazy(layer)) return nullptr;
    const std::string path = core_.paths.lazy(layer);
    try {
        auto opened = std::make_shared<const Open>(LazyLayer::parse(read_file(path, kMaxLazyFileBytes)),
                                                   core_.paths.recipe(layer));
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

void LazyFetcher::Impl::fetch(const ChunkId& chunk, const std::vector<DiffId>& layers, const std::stop_token& stop) {
    for (const DiffId& layer : layers) {
        const auto opened = open(layer);
        const ChunkMap::Part* const part = opened ? opened->chunks.find(chunk) : nullptr;
        if (!part) continue;
        const Place place(layer, opened->parts.number_of(*part));
        read_ahead(*opened, place);
        return wait_for(
            place, Kind::wanted, [&] { return core_.chunks->find(chunk).has_value(); }, stop);
    }
    throw Error(Errc::not_found, "chunk " + chunk.digest.hex() + ": of no layer that can be fetched");
}

void LazyFetcher::Impl::read_ahead(const Open& open, const Place& place) {
    std::pair<std::size_t, std::size_t> ahead;
    {
        const std::lock_guard lock(mutex_);
        if (!queue_.knows(place.first, place.second)) return;
        ahead = queue_.follow(place.first, place.second, link_.request_bytes());
    }
    for (std::size_t part = ahead.first; part < ahead.second; ++part) {
        if (has_all(open.parts[part])) continue;
        const std::lock_guard lock(mutex_);
        if (queue_.knows(place.first, part)) queue_.ask(place.first, part, Kind::ahead);
    }
}

template <class HasIt>
void LazyFetcher::Impl::wait_for(const Place& place, Kind kind, const HasIt& has_it, const std::stop_token& stop) {
    for (bool again = false; !has_it(); again = true) {
        const std::shared_ptr<Outcome> outcome = ask(place, kind, again);
        if (!outcome) continue;
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
        {
            std::unique_lock lock(mutex_);
            if (!changed_.wait(lock, stop, [&] { return (run = queue_.next()).has_value(); })) return;
        }
        fly(*run, stop);
        const std::lock_guard lock(mutex_);
        queue_.run_done(*run);
        changed_.notify_all();
    }
}

void LazyFetcher::Impl::fly(const FetchQueue::Run& run, const std::stop_token& stop) {
    Flight flight{.run = run, .part = run.first};
    std::optional<Error> failure;
    try {
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
    for (; flight.part < run.end; ++flight.part) part_done(run, flight.part, failure);
}

void LazyFetcher::Impl::receive(Flight& flight, const std::stop_token& stop) {
    const LazyParts& parts = flight.open->parts;
    flight.first = parts[flight.run.first].span.blob_first;
    std::uint64_t end = 0;
    for (std::size_t part = flight.run.first; part < flight.run.end; ++part) {
        end = std::max(end, parts[part].span.blob_end);
    }
    const auto source = open_registry_range(flight.places, flight.open->layer.blob, {flight.first, end}, stop);
    flight.bytes.resize(end - flight.first);
    std::size_t received = 0;
    const auto sent_at = Clock::now();
    auto begun_at = sent_at;
    for (; flight.part < flight.run.end; ++flight.part) {
        const AccessPoints::Span& span = parts[flight.part].span;
        while (received < span.blob_end - flight.first) {
            received += source->read(std::span(flight.bytes).subspan(received));
            if (begun_at == sent_at) begun_at = Clock::now();
        }
        if (flight.part + 1 == flight.run.end) {
            read_to_end(*source);
            const std::lock_guard lock(mutex_);
            link_.note(seconds_between(sent_at, begun_at), seconds_between(begun_at, Clock::now()), received);
        }
        const std::size_t at = span.blob_first - flight.first;
        take_part(flight, std::span(flight.bytes).subspan(at, span.blob_end - span.blob_first), stop);
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
            return part_done(flight.run, flight.part, std::nullopt);
        } catch (const Error& error) {
            if (!is_wrong(error)) throw;
            if (left.size() == 1) return part_done(flight.run, flight.part, error);
        }
        left.erase(left.begin());
        const ByteRange range{part.span.blob_first, part.span.blob_end};
        bytes = read_registry_range(left, open.layer.blob, range, stop);
        blob_part = bytes;
    }
}

void LazyFetcher::Impl::part_done(const FetchQueue::Run& run, std::size_t part, std::optional<Error> error) {
    const std::lock_guard lock(mutex_);
    queue_.part_done(run, part, !error);
    const auto awaited = awaited_.find({run.layer, part});
    if (awaited == awaited_.end()) return;
    awaited->second->is_known = true;
    awaited->second->error = std::move(error);
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

void LazyFetcher::Impl::complete(const DiffId& layer, const ProgressFunction& progress, const std::stop_token& stop) {
    const auto opened = open(layer);
    if (!opened) return;
    const std::uint64_t total_bytes = opened->layer.points.tar_bytes;
    for (std::size_t number = 0; number < opened->parts.size(); ++number) {
        const LazyParts::Part& part = opened->parts[number];
        const auto has_it = [&] { return has_all(part); };
        if (!has_it()) read_ahead(*opened, {layer, number});
        wait_for({layer, number}, Kind::wanted, has_it, stop);
        if (progress) progress({"completing", layer.digest.text(), part.span.tar_first, total_bytes, 0, 0});
    }
    const LayerToWrite whole{.diff_id = layer, .tar_bytes = total_bytes, .write_tar = [&](ByteSink& out) {
                                 Recipe::open(core_.paths.recipe(layer))->write_tar(*core_.chunks, out);
                             }};
    NoSink nowhere;
    write_checked_tar(whole, nowhere, [&](std::size_t) {
        if (stop.stop_requested()) throw Error(Errc::cancelled, "complete: cancelled");
    });
    remove_file(core_.paths.lazy(layer));
    sync_folder(core_.paths.layers());
    forget(layer);
}

LazyFetcher::LazyFetcher(StoreCore& core) : impl_(std::make_unique<Impl>(core)) {}
LazyFetcher::~LazyFetcher() = default;

bool LazyFetcher::is_lazy(const DiffId& layer) const {
    return impl_->is_lazy(layer);
}
void LazyFetcher::forget(const DiffId& layer) {
    impl_->forget(layer);
}
void LazyFetcher::fetch(const ChunkId& chunk, const std::vector<DiffId>& layers, const std::stop_token& stop) {
    impl_->fetch(chunk, layers, stop);
}
void LazyFetcher::complete(const DiffId& layer, const ProgressFunction& progress, const std::stop_token& stop) {
    impl_->complete(layer, progress, stop);
}

}  // namespace lamina::store
