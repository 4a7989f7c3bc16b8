// Who needs a part asks the queue for it and waits for its outcome; the workers take runs of parts from the queue. A
// run is one request. Each of its parts is decoded and checked as soon as its bytes are there, so nobody waits for what
// follows, and handed over to be stored (chunk_arrivals.h), so no reader waits for the disk; a part that is wrong is
// asked of the next place, alone, and fails only those who wait for it.
#include "store/lazy_fetcher_impl.h"
#include "store/noted_range.h"
#include "store/registries_conf.h"

#include <algorithm>

namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxLazyFileBytes = 1ull << 30;
constexpr std::uint64_t kMaxQuarantineBytes = 64 << 10;
constexpr std::uint64_t kMaxFileAheadBytes = 64 << 20;

double seconds_between(std::chrono::steady_clock::time_point begin, std::chrono::steady_clock::time_point end) {
    return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

LazyFetcher::Impl::~Impl() {
    ending_.request_stop();
    for (std::jthread& worker : workers_) worker.request_stop();
}

void LazyFetcher::Impl::forget(const DiffId& layer) {
    const std::lock_guard lock(mutex_);
    forget_locked(layer);
}

void LazyFetcher::Impl::forget_locked(const DiffId& layer) {
    open_.erase(layer);
    places_.erase(layer);
    queue_.remove_layer(layer);
    std::erase_if(traced_, [&](const Place& place) { return place.first == layer; });
}

LazyFetcher::Impl::OpenLayer LazyFetcher::Impl::open(const DiffId& layer) {
    const auto find_open = [&](bool is_bundle) -> OpenLayer {
        const std::lock_guard lock(mutex_);
        const auto found = bundles_.contains(layer) == is_bundle ? open_.find(layer) : open_.end();
        return found == open_.end() ? nullptr : found->second;
    };
    if (auto bundle = find_open(true)) return bundle;
    if (!is_lazy(layer)) return nullptr;  // Also when it was, and was removed since.
    if (auto found = find_open(false)) return found;
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

bool LazyFetcher::Impl::is_wrong(const Error& error) {
    return error.code() == Errc::corrupt || error.code() == Errc::malformed;
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

LazyFetcher::Fetched LazyFetcher::Impl::fetch(const Wanted& wanted, const std::stop_token& stop) {
    for (const DiffId& layer : wanted.layers) {
        const auto opened = open(layer);
        const ChunkMap::Part* const part = opened ? opened->chunks.find(wanted.chunk) : nullptr;
        if (!part) continue;
        Fetched fetched{.bytes = {}, .wanted = {wanted.chunk}};
        const ChunkWait wait{.mount = wanted.mount_id,
                             .layer = layer,
                             .chunk = wanted.chunk,
                             .begin_us = core_.fetches.now_us(),
                             .error = {}};
        if (wait_for_bundle(wanted, wait, fetched.bytes, stop)) return fetched;
        Need need{.place = {layer, opened->parts.number_of(*part)}, .takes_bytes = wanted.takes_bytes};
        const std::size_t file_end = read_file_ahead(*opened, need, *part);
        const auto passed = read_ahead(*opened, need, file_end);
        try {
            fetched.bytes = wait_for_chunk(need, wanted, stop);
        } catch (const Error& error) {
            note_wait(wait, need, error.what());
            throw;
        }
        note_wait(wait, need, "");
        for (std::size_t number = passed.first; number < passed.second; ++number) {
            const auto chunks = opened->parts[number].chunks;
            if (!chunks.empty()) fetched.wanted.insert(fetched.wanted.end() - 1, chunks.front().chunk);
        }
        return fetched;
    }
    throw Error(Errc::not_found, "chunk " + wanted.chunk.digest.hex() + ": of no layer that can be fetched");
}

std::vector<std::byte> LazyFetcher::Impl::wait_for_chunk(Need& need, const Wanted& wanted,
                                                         const std::stop_token& stop) {
    std::vector<std::byte> bytes;
    const auto has_it = [&] {
        if (wanted.takes_bytes) bytes = arrivals_.find(wanted.chunk);
        return !bytes.empty() || core_.chunks->find(wanted.chunk);
    };
    wait_for(need, has_it, stop);
    if (!bytes.empty() || !need.outcome) return bytes;
    const std::lock_guard lock(mutex_);
    return wanted.takes_bytes && need.outcome->arrival ? need.outcome->arrival->find(wanted.chunk) : bytes;
}

std::pair<std::size_t, std::size_t> LazyFetcher::Impl::read_ahead(const Open& open, Need& need,
                                                                  std::size_t wanted_end) {
    const Place& place = need.place;
    FetchQueue::Followed followed;
    {
        const std::lock_guard lock(mutex_);
        if (!queue_.knows(place.first, place.second)) return {};
        followed = queue_.follow(place.first, place.second, wanted_end, link_.request_bytes());
    }
    for (std::size_t part = followed.near_first; part < followed.ahead_end; ++part) {
        const bool is_wanted = part >= place.second && part < wanted_end;  // Whoever wants it asks for it.
        if (!is_wanted && !has_all(open.parts[part])) need.ahead.emplace_back(place.first, part);
    }
    return {followed.passed_first, place.second};
}

std::size_t LazyFetcher::Impl::read_file_ahead(const Open& open, Need& need, const ChunkMap::Part& part) {
    const Place& place = need.place;
    const auto file = open.chunks.file_of(part, kMaxFileAheadBytes);
    if (!file) return place.second + 1;
    const auto of_file = open.chunks.beginning_in(file->first, file->end);
    const std::size_t first = open.parts.number_of(of_file.front());
    const std::size_t last = open.parts.number_of(of_file.back());
    std::vector<Place> others;
    {
        const std::lock_guard lock(mutex_);
        if (!queue_.knows(place.first, place.second)) return place.second + 1;
        const auto note = [&](std::size_t number) {
            if (number != place.second && queue_.is_idle(place.first, number)) others.emplace_back(place.first, number);
        };
        for (std::size_t number = place.second; number <= last; ++number) note(number);
        for (std::size_t number = first; number < place.second; ++number) note(number);
    }
    std::erase_if(others, [&](const Place& other) { return has_all(open.parts[other.second]); });
    need.ahead.insert(need.ahead.end(), others.begin(), others.end());
    return last + 1;
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

/// Null: the part has come since it was looked for.
std::shared_ptr<LazyFetcher::Impl::Outcome> LazyFetcher::Impl::ask(Need& need, bool again) {
    const auto& [layer, part] = need.place;
    const std::lock_guard lock(mutex_);
    if (!queue_.knows(layer, part)) throw Error(Errc::cancelled, "fetch: the layer is another one now");
    const bool is_asked = queue_.ask(layer, part, need.kind, again);
    ask_ahead(need);
    if (!is_asked) return nullptr;
    std::shared_ptr<Outcome>& outcome = awaited_[need.place];
    if (!outcome) outcome = std::make_shared<Outcome>();
    start_workers();
    changed_.notify_all();
    return outcome;
}

void LazyFetcher::Impl::ask_ahead(Need& need) {
    if (need.ahead.empty()) return;
    for (const auto& [layer, part] : std::exchange(need.ahead, {})) {
        if (queue_.knows(layer, part)) queue_.ask(layer, part, Kind::ahead);
    }
    start_workers();
    changed_.notify_all();
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
    Flight flight{.request = {.run = run}, .part = run.first};
    std::optional<Error> failure;
    try {
        {
            const std::lock_guard lock(mutex_);
            flight.request.kind = kind_of(run);
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
    for (; flight.part < run.end; ++flight.part) part_done(flight.request, flight.part, failure);
    give_up_bundle_for_layers(run.layer);
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
    const FetchQueue::Run& run = flight.request.run;
    flight.first = run.first == 0 ? 0 : parts[run.first].span.blob_first;  // A header is before it.
    std::uint64_t end = 0;
    for (std::size_t part = run.first; part < run.end; ++part) {
        end = std::max(end, parts[part].span.blob_end);
    }
    NotedRange source(core_.fetches, request_for(flight, {flight.first, end}),
                      open_registry_range(flight.places, flight.open->layer.blob, {flight.first, end}, stop));
    flight.request.us = source.request_us();
    flight.bytes.resize(end - flight.first);
    std::size_t received = 0;
    const auto sent_at = Clock::now();
    auto begun_at = sent_at;
    for (; flight.part < run.end; ++flight.part) {
        const AccessPoints::Span& span = parts[flight.part].span;
        while (received < span.blob_end - flight.first || (received < flight.bytes.size() && is_held(flight))) {
            received += source.read(std::span(flight.bytes).subspan(received));
            if (begun_at == sent_at) begun_at = Clock::now();
        }
        source.brings(parts[flight.part].chunks_end());
        if (flight.part + 1 == run.end) {
            source.end();
            const std::lock_guard lock(mutex_);
            link_.note(seconds_between(sent_at, begun_at), seconds_between(begun_at, Clock::now()), received);
        }
        wait_until_trusted(flight, stop);
        const std::size_t at = span.blob_first - flight.first;
        const std::size_t size = span.blob_end - span.blob_first;
        if (flight.part == 0 && flight.open->spool) flight.open->spool->put(0, std::span(flight.bytes).first(at));
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
            std::vector<std::byte> tar = open.layer.points.decode(part.span, blob_part);
            check_chunks(open, part, tar);
            if (open.spool) open.spool->put(part.span.blob_first, blob_part);
            if (!open.spool) note_came(flight);
            return arrive(flight, std::move(tar), stop);
        } catch (const Error& error) {
            if (!is_wrong(error)) throw;
            const bool is_last = left.size() == 1;
            if (is_last && !open.spool) throw;  // The layers have what the bundle has not.
            if (is_last) return part_done(flight.request, flight.part, error);
        }
        left.erase(left.begin());
        bytes = read_again(flight, left, stop);
        blob_part = bytes;
    }
}

void LazyFetcher::Impl::arrive(const Flight& flight, std::vector<std::byte> tar, const std::stop_token& stop) {
    const LazyParts::Part& part = flight.open->parts[flight.part];
    if (part.chunks.empty()) return part_done(flight.request, flight.part, std::nullopt);
    const auto on_end = [this, request = flight.request, number = flight.part](const std::optional<Error>& error) {
        part_done(request, number, error);
        if (error && !ending_.stop_requested()) give_up_bundle_for_layers(request.run.layer);
    };
    ChunkArrivals::Arrival come{.bytes = std::move(tar), .pieces = {}, .on_end = on_end};
    for (const ChunkMap::Part& chunk : part.chunks) {
        come.pieces.push_back({chunk.chunk, chunk.tar_offset - part.span.tar_first, chunk.size_bytes});
    }
    const auto arrival = std::make_shared<const ChunkArrivals::Arrival>(std::move(come));
    {
        const std::lock_guard lock(mutex_);
        const auto awaited = awaited_.find({flight.request.run.layer, flight.part});
        if (awaited != awaited_.end()) {
            awaited->second->request_us = flight.request.us;
            awaited->second->kind = flight.request.kind;
            awaited->second->arrival = arrival;
            changed_.notify_all();
        }
    }
    arrivals_.add(arrival, stop);
}

std::vector<std::byte> LazyFetcher::Impl::read_again(Flight& flight, const RegistryPlaces& places,
                                                     const std::stop_token& stop) {
    const AccessPoints::Span& span = flight.open->parts[flight.part].span;
    const ByteRange range{span.blob_first, span.blob_end};
    NotedRange source(core_.fetches, request_for(flight, range),
                      open_registry_range(places, flight.open->layer.blob, range, stop));
    flight.request.us = source.request_us();
    std::vector<std::byte> bytes(range.end - range.first);
    std::size_t done = 0;
    while (done < bytes.size()) done += source.read(std::span(bytes).subspan(done));
    source.brings(flight.open->parts[flight.part].chunks_end());
    source.end();
    return bytes;
}

RangeRequest LazyFetcher::Impl::request_for(const Flight& flight, const ByteRange& range) {
    const std::uint64_t tar_first = flight.open->parts[flight.part].span.tar_first;
    return {.layer = flight.request.run.layer,
            .source = {},
            .kind = flight.request.kind,
            .blob_first = range.first,
            .blob_end = range.end,
            .tar_first = tar_first,
            .tar_end = tar_first,
            .error = {}};
}

void LazyFetcher::Impl::part_done(const Request& request, std::size_t part, std::optional<Error> error) {
    const Place place(request.run.layer, part);
    const std::lock_guard lock(mutex_);
    queue_.part_done(request.run, part, !error);
    traced_.erase(place);
    const auto bundle = bundles_.find(place.first);
    if (bundle != bundles_.end() && !error && --bundle->second.parts_left == 0) forget_bundle(bundle->first);
    const auto awaited = awaited_.find(place);
    if (awaited == awaited_.end()) return;
    awaited->second->is_known = true;
    awaited->second->error = std::move(error);
    awaited->second->request_us = request.us;
    awaited->second->kind = request.kind;
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

void LazyFetcher::Impl::check_chunks(const Open& open, const LazyParts::Part& part, std::span<const std::byte> tar) {
    for (const ChunkMap::Part& chunk : part.chunks) {
        const auto bytes = tar.subspan(chunk.tar_offset - part.span.tar_first, chunk.size_bytes);
        if (Digest::of(bytes) == chunk.chunk.digest) continue;
        throw Error(Errc::corrupt, "layer blob " + open.layer.blob.digest.digest.text() + ": at tar offset " +
                                       std::to_string(chunk.tar_offset) + " its bytes are not those of chunk " +
                                       chunk.chunk.digest.hex());
    }
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
        if (core_.chunks->find(chunk) || place_in_bundle(chunk)) continue;
        for (const auto& [layer, one] : opened) {
            const ChunkMap::Part* const part = one->chunks.find(chunk);
            if (!part) continue;
            places.emplace_back(layer, one->parts.number_of(*part));
            break;
        }
    }
    ask_ahead(places);
}

void LazyFetcher::Impl::ask_ahead(const std::vector<Place>& places) {
    if (places.empty()) return;
    const std::lock_guard lock(mutex_);  // All of them before any is taken, so that neighbours share a request.
    for (const auto& [layer, part] : places) {
        if (queue_.knows(layer, part) && queue_.ask(layer, part, Kind::ahead)) traced_.emplace(layer, part);
    }
    start_workers();
    changed_.notify_all();
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
LazyFetcher::Fetched LazyFetcher::fetch(const Wanted& wanted, const std::stop_token& stop) {
    return impl_->fetch(wanted, stop);
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
std::optional<DiffId> LazyFetcher::bring(const StartBundle& bundle, LazyLayer blob, const std::vector<DiffId>& layers) {
    return impl_->bring(bundle, std::move(blob), layers);
}
void LazyFetcher::decide(const DiffId& bundle, bool is_trusted) {
    impl_->decide(bundle, is_trusted);
}
void LazyFetcher::complete(const DiffId& layer, const Completion& completion, const std::stop_token& stop) {
    impl_->complete(layer, completion, stop);
}

}  // namespace lamina::store
