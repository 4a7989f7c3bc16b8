// A start bundle is for the queue one more layer, until all of it that was asked for has come, or it fails; then its
// chunks are those of the image's layers again.
#include "store/lazy_fetcher_impl.h"
#include "store/start_bundle.h"

#include <algorithm>

namespace lamina::store {

std::optional<LazyFetcher::Impl::Place> LazyFetcher::Impl::place_in_bundle(const ChunkId& chunk) {
    const std::lock_guard lock(mutex_);
    const auto found = bundled_.find(chunk);
    if (found == bundled_.end() || !bundles_.at(found->second).is_trusted) return std::nullopt;
    const OpenLayer& bundle = open_.at(found->second);
    return Place{found->second, bundle->parts.number_of(*bundle->chunks.find(chunk))};
}

bool LazyFetcher::Impl::wait_for_bundle(const Wanted& wanted, const ChunkWait& wait, std::vector<std::byte>& bytes,
                                        const std::stop_token& stop) {
    const auto place = place_in_bundle(wanted.chunk);
    if (!place) return false;
    Need need{.place = *place, .takes_bytes = wanted.takes_bytes};
    try {
        bytes = wait_for_chunk(need, wanted, stop);
    } catch (const Error&) {  // The layer has it, too.
        if (stop.stop_requested()) throw;
    }
    if (bytes.empty() && !core_.chunks->find(wanted.chunk)) return false;
    note_wait(wait, need, "");
    return true;
}

std::optional<DiffId> LazyFetcher::Impl::bring(const StartBundle& bundle, LazyLayer blob,
                                               const std::vector<DiffId>& layers) {
    blob.points = bundle.points(blob.blob.digest);
    const DiffId id{Digest::of(as_bytes(bundle.write()))};
    const auto opened = std::make_shared<const Open>(std::move(blob), bundle.map());
    std::vector<Place> places;
    for (std::size_t part = 0; part < opened->parts.size(); ++part) {
        if (!has_all(opened->parts[part])) places.emplace_back(id, part);
    }
    {
        const std::lock_guard lock(mutex_);
        if (places.empty() || bundles_.contains(id)) return std::nullopt;
        bundles_.emplace(id, Bundle{.layers = layers, .parts_left = places.size()});
        open_.emplace(id, opened);
        queue_.add_layer(id, opened->parts.sizes());
        for (const auto& [bundle_id, part] : places) {
            for (const ChunkMap::Part& chunk : opened->parts[part].chunks) bundled_.emplace(chunk.chunk, id);
        }
    }
    ask_ahead(places);
    return id;
}

void LazyFetcher::Impl::decide(const DiffId& bundle, bool is_trusted) {
    if (!is_trusted) {
        give_up_bundle(bundle);
        return;
    }
    const std::lock_guard lock(mutex_);
    if (const auto found = bundles_.find(bundle); found != bundles_.end()) found->second.is_trusted = true;
    changed_.notify_all();
}

bool LazyFetcher::Impl::is_held(const Flight& flight) {
    if (flight.open->spool) return false;
    const std::lock_guard lock(mutex_);
    const auto found = bundles_.find(flight.request.run.layer);
    return found != bundles_.end() && !found->second.is_trusted;
}

void LazyFetcher::Impl::wait_until_trusted(const Flight& flight, const std::stop_token& stop) {
    if (flight.open->spool) return;
    std::unique_lock lock(mutex_);
    const auto is_decided = [&] {
        const auto found = bundles_.find(flight.request.run.layer);
        return found == bundles_.end() || found->second.is_trusted;
    };
    if (changed_.wait(lock, stop, is_decided) && bundles_.contains(flight.request.run.layer)) return;
    throw Error(Errc::cancelled, "fetch: the start bundle is given up");
}

// A copy: the one in the map goes.
void LazyFetcher::Impl::forget_bundle(DiffId bundle) {
    forget_locked(bundle);
    bundles_.erase(bundle);
    std::erase_if(bundled_, [&](const auto& entry) { return entry.second == bundle; });
}

std::pair<std::vector<ChunkId>, std::vector<DiffId>> LazyFetcher::Impl::give_up_bundle(const DiffId& id) {
    const std::lock_guard lock(mutex_);
    const auto found = bundles_.find(id);
    if (found == bundles_.end()) return {};
    std::vector<ChunkId> chunks;
    for (const ChunkMap::Part& chunk : open_.at(id)->chunks.parts()) chunks.push_back(chunk.chunk);
    std::vector<DiffId> layers = std::move(found->second.layers);
    forget_bundle(id);
    for (auto& [place, outcome] : awaited_) {  // Who waits for it looks for the layers.
        if (place.first != id) continue;
        outcome->is_known = true;
        outcome->error = Error(Errc::cancelled, "fetch: the start bundle is given up");
    }
    std::erase_if(awaited_, [](const auto& entry) { return entry.second->is_known; });
    changed_.notify_all();
    return {std::move(chunks), std::move(layers)};
}

void LazyFetcher::Impl::give_up_bundle_for_layers(const DiffId& id) {
    const auto [chunks, layers] = give_up_bundle(id);
    prefetch(chunks, layers);
}

void LazyFetcher::Impl::note_came(const Flight& flight) {
    auto left = flight.open->parts[flight.part].chunks;
    while (!left.empty()) {
        const auto some = left.first(std::min(left.size(), ChunksCame::kMostChunks));
        left = left.subspan(some.size());
        ChunksCame event{.request_us = flight.request.us, .kind = flight.request.kind, .chunks = {}};
        for (const ChunkMap::Part& chunk : some) event.chunks.push_back(ChunksCame::digits_of(chunk.chunk));
        core_.fetches.add(event);
    }
}

}  // namespace lamina::store
