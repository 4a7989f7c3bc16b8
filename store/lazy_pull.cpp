#include "store/lazy_pull.h"

#include "store/error.h"
#include "store/import_job.h"
#include "store/lazy_layer.h"
#include "store/ordered_tasks.h"
#include "store/recipe.h"

#include <algorithm>
#include <future>
#include <iterator>
#include <optional>
#include <unordered_set>
#include <utility>

// What makes a layer lazy is on the disk before its row is: a crash in between leaves nothing that looks whole.
namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxRecipeBytes = 512ull << 20;
constexpr std::uint64_t kMaxPointsBytes = 64ull << 20;
constexpr std::uint64_t kMaxGapBytes = 128ull << 20;
constexpr std::uint64_t kMaxBytesAtOnce = 64ull << 20;  ///< Of several layers' indexes.
constexpr unsigned kLayersAtOnce = 6;

class LazyPull {
public:
    LazyPull(StoreCore& core, const PullRequest& request, RegistrySource& source, std::future<PublishedBeside>& beside,
             const std::stop_token& stop)
        : core_(core),
          request_(request),
          source_(source),
          stop_(stop),
          image_(source.images().front()),
          beside_(beside),
          places_(source.places()),
          meter_(request.progress),
          job_(core, meter_),
          folder_(core) {}

    std::optional<ImageRow> run() {
        const BlobDigest manifest{Digest::of(image_.manifest)};
        const PublishedBeside published = beside_.get();
        if (!published.index) {
            if (request_.lazy == PullRequest::Lazy::automatic) return std::nullopt;
            throw Error(Errc::not_found,
                        request_.reference + ": no index is published beside it; lamina push --index makes one");
        }
        if (published.trace) {
            trace_ = std::async(std::launch::async, [this, trace = *published.trace] {
                PublishedTrace read = read_start_trace(*places_.front(), trace);
                if (read.bundle) bundle_ = bring(*read.bundle);
                return read;
            });
        }
        const LazyIndex index = read_lazy_index(*places_.front(), *published.index, manifest);
        std::uint64_t total_bytes = 0;
        for (const LazyIndex::Layer& layer : index.layers)
            total_bytes += layer.recipe.size_bytes + layer.points.size_bytes;
        meter_.expect(total_bytes);
        ImageParts parts{.manifest = image_.manifest,
                         .manifest_media_type = image_.manifest_media_type,
                         .config = image_.config,
                         .layers = {},
                         .name = request_.name};
        if (!parts.name && !image_.name.empty()) parts.name = ImageName::parse(image_.name);
        for (const SourceLayer& layer : image_.layers) parts.layers.push_back(layer.diff_id.value());
        {
            OrderedTasks tasks(
                parts.layers.size(), total_bytes > kMaxBytesAtOnce ? 1 : kLayersAtOnce,
                [&](std::size_t number, const std::stop_token& stop) { make_layer(index, number, stop); }, stop_);
            for (std::size_t i = 0; i < parts.layers.size(); ++i) tasks.wait(i);
        }
        const std::optional<PublishedTrace> trace = trusted_trace();
        decide(trace.has_value());
        ImageRow row = job_.image(parts, stop_);
        if (trace) keep(*trace, row);
        return row;
    }

    ~LazyPull() {
        if (trace_.valid()) trace_.wait();
        decide(false);
    }
    LazyPull(const LazyPull&) = delete;
    LazyPull& operator=(const LazyPull&) = delete;

private:
    /// It comes while the rest is done; what it holds is not believed before the recipes are here.
    std::optional<DiffId> bring(const PublishedBundle& bundle) {
        std::vector<DiffId> layers;
        for (const SourceLayer& layer : image_.layers) layers.push_back(layer.diff_id.value());
        return core_.lazy.bring(bundle.directory, found_at(bundle.blob), layers);
    }

    void decide(bool is_trusted) {
        if (bundle_) core_.lazy.decide(*bundle_, is_trusted);
        bundle_.reset();
    }

    void make_layer(const LazyIndex& index, std::size_t number, const std::stop_token& stop) {
        const DiffId diff_id = image_.layers[number].diff_id.value();
        const Leases::Claim claim = core_.leases.claim_layer(diff_id, stop);
        if (job_.known_layer(diff_id)) return core_.lazy.check_not_quarantined(diff_id);
        const auto entry =
            std::ranges::find_if(index.layers, [&](const auto& other) { return other.diff_id == diff_id; });
        const std::string name = "layer " + std::to_string(number + 1) + " of " + request_.reference;
        if (entry == index.layers.end()) throw Error(Errc::malformed, name + ": is not in the published index");
        Meter::Part part(meter_, {.phase = "reading index",
                                  .item = diff_id.digest.text(),
                                  .item_total_bytes = entry->recipe.size_bytes + entry->points.size_bytes});
        try {
            make_layer(*entry, source_.layer_blobs().at(number), stop);
        } catch (const Error& error) {  // Which layer it was.
            throw with_context(error, name);
        }
        part.reach(entry->recipe.size_bytes + entry->points.size_bytes);
    }

    void make_layer(const LazyIndex::Layer& entry, const oci::Descriptor& blob, const std::stop_token& stop) {
        const std::string path = folder_.path() + "/" + entry.diff_id.digest.hex();
        auto points = std::async(std::launch::async, [&] { return read(entry.points, kMaxPointsBytes, stop); });
        {
            const std::vector<std::byte> recipe = read(entry.recipe, kMaxRecipeBytes, stop);
            File file = File::create(path);
            file.append(recipe);
            file.sync();
        }
        LazyLayer lazy = found_at(blob);
        lazy.points = AccessPoints::parse(points.get());
        const LayerRow row = check(path, entry, lazy);
        write_file_atomically(core_.paths.lazy(entry.diff_id), lazy.write());
        rename_durably(path, core_.paths.recipe(entry.diff_id));
        core_.lazy.forget(entry.diff_id);
        core_.index->add_layer(row, std::nullopt);
    }

    /// A trace that names what is not in the image is somebody else's, or made up: none of it is believed.
    std::optional<PublishedTrace> trusted_trace() {
        try {
            if (!trace_.valid()) return std::nullopt;
            PublishedTrace published = trace_.get();
            std::unordered_set<ChunkId> known;
            for (const SourceLayer& layer : image_.layers) {
                for (const ChunkId& chunk : Recipe::open(core_.paths.recipe(layer.diff_id.value()))->chunks())
                    known.insert(chunk);
            }
            std::vector<ChunkId> named = published.trace.chunks;
            if (published.bundle) std::ranges::copy(published.bundle->directory.chunks(), std::back_inserter(named));
            for (const ChunkId& chunk : named) {
                if (known.contains(chunk)) continue;
                note("its start trace names chunk " + chunk.digest.hex() + ", which the image has not");
                return std::nullopt;
            }
            return published;
        } catch (const Error& error) {  // The image comes all the same.
            if (error.code() == Errc::cancelled) throw;
            note(error.what());
            return std::nullopt;
        }
    }

    void keep(const PublishedTrace& trace, const ImageRow& row) {
        const std::string repository = repository_of(row.names.empty() ? "" : row.names.front());
        try {
            core_.traces.add({row.config, repository}, trace.trace.chunks);
        } catch (const Error& error) {  // A full disk, most likely.
            note(error.what());
        }
    }

    void note(const std::string& why) const {
        if (request_.note) request_.note(request_.reference + ": start trace not used: " + why);
    }

    LazyLayer found_at(const oci::Descriptor& blob) const {
        return {.repository = named_repository(),
                .verifies_tls = request_.access.verifies_tls && !places_.front()->place().is_insecure,
                .auth_file = request_.access.auth_file,
                .cert_dir = request_.access.cert_dir,
                .blob = blob,
                .points = {.blob = blob.digest, .points = {}}};
    }

    std::string named_repository() const {
        const RegistryReference reference = RegistryReference::parse(request_.reference);
        return reference.host.empty() ? places_.front()->place().reference.name() : reference.name();
    }

    std::vector<std::byte> read(const oci::Descriptor& blob, std::uint64_t limit_bytes,
                                const std::stop_token& stop) const {
        const std::string name = "blob " + blob.digest.digest.text() + " of the index";
        if (blob.size_bytes == 0 || blob.size_bytes > limit_bytes) throw Error(Errc::malformed, name + ": too large");
        std::vector<std::byte> bytes = read_registry_range(places_, blob, {0, blob.size_bytes}, stop);
        if (Digest::of(bytes) == blob.digest.digest) return bytes;
        throw Error(Errc::corrupt, name + ": its bytes have another digest");
    }

    static LayerRow check(const std::string& recipe_path, const LazyIndex::Layer& entry, const LazyLayer& lazy) {
        const auto recipe = Recipe::open(recipe_path);
        const bool is_meant = recipe->diff_id() == entry.diff_id && recipe->tar_bytes() == lazy.points.tar_bytes &&
                              lazy.points.blob == lazy.blob.digest && lazy.points.blob_bytes == lazy.blob.size_bytes;
        if (!is_meant) throw Error(Errc::malformed, "the published index is of another layer or blob");
        if (lazy.points.widest_gap_bytes() > kMaxGapBytes) {
            throw Error(Errc::unsupported, "its blob cannot be read in parts: pull it with --lazy=never");
        }
        LayerRow row{.diff_id = entry.diff_id,
                     .tar_bytes = recipe->tar_bytes(),
                     .entry_count = 0,
                     .recipe_bytes = file_size(recipe_path)};
        for (const auto entries = recipe->entries(); entries->next();) ++row.entry_count;
        return row;
    }

    StoreCore& core_;
    const PullRequest& request_;
    RegistrySource& source_;
    const std::stop_token& stop_;
    const SourceImage image_;
    std::future<PublishedBeside>& beside_;
    const RegistryPlaces places_;
    Meter meter_;
    ImportJob job_;
    JobFolder folder_;
    std::optional<DiffId> bundle_;  ///< Until it is decided; set before trace_ is there.
    std::future<PublishedTrace> trace_;
};

}  // namespace

std::optional<ImageRow> pull_lazily(StoreCore& core, const PullRequest& request, RegistrySource& source,
                                    std::future<PublishedBeside>& beside, const std::stop_token& stop) {
    try {
        return LazyPull(core, request, source, beside, stop).run();
    } catch (
        const Error& error) {  // A layer that cannot be lazy: then all of it comes at once, unless that is forbidden.
        if (error.code() != Errc::unsupported || request.lazy == PullRequest::Lazy::always) throw;
        return std::nullopt;
    }
}

}  // namespace lamina::store
