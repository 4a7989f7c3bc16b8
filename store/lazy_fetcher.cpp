#include "store/lazy_fetcher.h"

#include "store/error.h"
#include "store/job_packs.h"
#include "store/outgoing_image.h"
#include "store/recipe.h"
#include "store/registries_conf.h"
#include "store/store_core.h"

#include <algorithm>

namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxLazyFileBytes = 1ull << 30;

class NoSink : public ByteSink {
public:
    void write(std::span<const std::byte>) override {}
};

}  // namespace

bool LazyFetcher::is_lazy(const DiffId& layer) const {
    return exists(core_.paths.lazy(layer));
}

std::shared_ptr<const LazyFetcher::Open> LazyFetcher::open(const DiffId& layer) {
    {
        const std::lock_guard lock(mutex_);
        if (const auto found = open_.find(layer); found != open_.end()) return found->second;
    }
    if (!is_lazy(layer)) return nullptr;
    const std::string path = core_.paths.lazy(layer);
    try {
        auto opened = std::make_shared<const Open>(
            Open{LazyLayer::parse(read_file(path, kMaxLazyFileBytes)), ChunkMap(core_.paths.recipe(layer))});
        const std::lock_guard lock(mutex_);
        return open_.emplace(layer, std::move(opened)).first->second;
    } catch (const Error& error) {  // Our own file: what is wrong with it is no fault of who wants a chunk.
        if (error.code() == Errc::not_found) return nullptr;  // Completed since the look.
        throw with_context(Error(Errc::corrupt, error.what()), path);
    }
}

RegistryPlaces LazyFetcher::places_of(const LazyLayer& lazy, const std::stop_token& stop) const {
    const RegistryAccess access{.credentials = std::nullopt,
                                .auth_file = lazy.auth_file,
                                .cert_dir = lazy.cert_dir,
                                .verifies_tls = lazy.verifies_tls,
                                .proxy = ProxySettings::from_environment()};
    RegistryReference reference = RegistryReference::parse(lazy.repository + "@" + lazy.blob.digest.digest.text());
    RegistryPlaces places;
    for (const RegistryPlace& place : RegistriesConf::load().places(reference)) {
        places.push_back(std::make_shared<RegistrySession>(core_.http(), place, access, stop));
    }
    return places;
}

void LazyFetcher::fetch(const ChunkId& chunk, const std::vector<DiffId>& layers, const std::stop_token& stop) {
    for (const DiffId& layer : layers) {
        const auto opened = open(layer);
        const ChunkMap::Part* const part = opened ? opened->chunks.find(chunk) : nullptr;
        if (!part) continue;
        const auto span = opened->layer.points.span_of(part->tar_offset, part->tar_offset + 1);
        const std::pair key(layer, span.point);
        {
            std::unique_lock lock(mutex_);
            const bool is_free = changed_.wait(lock, stop, [&] { return !fetching_.contains(key); });
            if (!is_free) throw Error(Errc::cancelled, "fetch: cancelled");
            fetching_.insert(key);
        }
        const auto give_back = [&](const void*) {
            const std::lock_guard lock(mutex_);
            fetching_.erase(key);
            changed_.notify_all();
        };
        const std::unique_ptr<const void, decltype(give_back)> claim(&key, give_back);
        if (core_.chunks->find(chunk)) return;  // Whoever had it before us has fetched it.
        return fetch_part(*opened, span, stop);
    }
    throw Error(Errc::not_found, "chunk " + chunk.digest.hex() + ": of no layer that can be fetched");
}

// A chunk belongs to the part in which it begins, so that each is fetched with one part only.
void LazyFetcher::fetch_part(const Open& open, const AccessPoints::Span& part, const std::stop_token& stop) {
    const LazyLayer& lazy = open.layer;
    const auto chunks = open.chunks.beginning_in(part.tar_first, part.tar_end);
    AccessPoints::Span span = part;
    lazy.points.extend(span, chunks.back().tar_offset + chunks.back().size_bytes);
    RegistryPlaces places = places_of(lazy, stop);
    while (true) {
        try {
            const std::vector<std::byte> bytes =
                read_registry_range(places, lazy.blob, {span.blob_first, span.blob_end}, stop);
            return store_chunks(open, span, chunks, lazy.points.decode(span, bytes));
        } catch (const Error& error) {  // Bytes that are not what the recipe says: the next place may have them right.
            const bool is_wrong = error.code() == Errc::corrupt || error.code() == Errc::malformed;
            if (!is_wrong || places.size() == 1) throw;
            places.erase(places.begin());
        }
    }
}

void LazyFetcher::store_chunks(const Open& open, const AccessPoints::Span& part, std::span<const ChunkMap::Part> chunks,
                               std::span<const std::byte> tar) {
    const auto bytes_of = [&](const ChunkMap::Part& chunk) {
        return tar.subspan(chunk.tar_offset - part.tar_first, chunk.size_bytes);
    };
    for (const ChunkMap::Part& chunk : chunks) {  // All of them before any is stored.
        if (Digest::of(bytes_of(chunk)) == chunk.chunk.digest) continue;
        throw Error(Errc::corrupt, "layer blob " + open.layer.blob.digest.digest.text() + ": at tar offset " +
                                       std::to_string(chunk.tar_offset) + " its bytes are not those of chunk " +
                                       chunk.chunk.digest.hex());
    }
    Leases::Lease lease = core_.leases.take();
    const JobFolder folder(core_);
    JobPacks packs(core_, lease, folder.path(), JobPacks::Limits{});
    const auto lane = packs.lane();
    for (const ChunkMap::Part& chunk : chunks) lane->add(bytes_of(chunk));
    packs.commit_chunks();
}

void LazyFetcher::complete(const DiffId& layer, const ProgressFunction& progress, const std::stop_token& stop) {
    const auto opened = open(layer);
    if (!opened) return;
    const std::uint64_t total_bytes = opened->layer.points.tar_bytes;
    for (const ChunkMap::Part& part : opened->chunks.parts()) {
        if (!core_.chunks->find(part.chunk)) fetch(part.chunk, {layer}, stop);
        if (progress) progress({"completing", layer.digest.text(), part.tar_offset, total_bytes, 0, 0});
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
    const std::lock_guard lock(mutex_);
    open_.erase(layer);
}

}  // namespace lamina::store
