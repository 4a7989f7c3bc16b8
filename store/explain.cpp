// Three sources are put together: the recipes say which chunks a layer has, the chunk store which of them are here, and
// the fetch log which request brought which part of a layer's tar, and so which chunks. Other images' recipes say who
// shares them; the image's tree, walked once, what files they belong to.
#include "store/explain.h"

#include "store/error.h"
#include "store/image_paths.h"
#include "store/lazy_layer.h"
#include "store/oci.h"
#include "store/printable.h"
#include "store/recipe.h"
#include "store/store_core.h"

#include <algorithm>
#include <ctime>
#include <map>
#include <unordered_map>
#include <utility>

namespace lamina::store {

namespace {

constexpr std::size_t kMostShares = 10;
constexpr std::size_t kMostLongest = 10;
constexpr std::size_t kMostEvents = 2'000;
constexpr std::size_t kMostPaths = 3;
constexpr std::int64_t kQuietUs = 60'000'000;  ///< Ends a start.

using ChunkSet = std::unordered_set<ChunkId>;
using Events = FetchLog::Events;

/// What is explained: an image, or what a mount was made of.
struct Subject {
    std::string image;
    BlobDigest config;
    TreeDigest tree;
    std::vector<DiffId> layers;
    std::string mount_id;  ///< Empty: the last one of the image.
};

Subject subject_of(StoreCore& core, Leases::Lease& lease, const ExplainRequest& request) {
    if (request.mount_id.empty()) {
        const ImageRow row = keep_image(core, lease, request.image).row;
        return {display_name(row), row.config, row.tree.digest, row.layers, {}};
    }
    const MountBase base = read_mount_base(core.paths.mount(request.mount_id));
    return {base.image, {Digest::parse(base.config_digest)}, base.tree, base.layers, request.mount_id};
}

/// One layer's chunks, each once, and how they came.
struct LayerChunks {
    explicit LayerChunks(const std::string& recipe) : map(recipe) {}
    ChunkMap map;
    std::unordered_map<ChunkId, FetchKind> came;
};

void note_came(LayerChunks& layer, const RangeRequest& request) {
    for (const ChunkMap::Part& part : layer.map.beginning_in(request.tar_first, request.tar_end)) {
        layer.came.try_emplace(part.chunk, request.kind);
    }
}

class Explainer {
public:
    Explainer(StoreCore& core, const ExplainRequest& request, const std::stop_token& stop)
        : core_(core),
          request_(request),
          stop_(stop),
          lease_(core.leases.take()),
          subject_(subject_of(core, lease_, request)),
          tree_(ImageTree::open(core.paths.tree(subject_.tree), subject_.tree)),
          events_(core.fetches.read()) {}

    Explanation run() {
        Explanation explanation{.image = subject_.image,
                                .config = subject_.config,
                                .path = request_.path,
                                .layers = {},
                                .bundles = {},
                                .start = {},
                                .hints = {}};
        if (!request_.path.empty()) explanation.size_bytes = choose_file();
        for (const DiffId& layer : subject_.layers) open_layer(layer);
        open_bundles();
        for (std::size_t i = 0; i < subject_.layers.size(); ++i) {
            Explanation::Layer layer = explain_layer(i);
            if (!only_ || layer.chunk_bytes > 0) explanation.layers.push_back(std::move(layer));
        }
        explanation.bundles = sum_up(
            [&](const RangeRequest& request) { return by_bundle_.contains(request.sent_us) && is_ours(request); });
        share(explanation.layers);
        explanation.start = find_start();
        explanation.hints = hints_for(explanation, traced_bytes());
        if (events_.unreadable_lines > 0) {
            explanation.hints.push_back(std::to_string(events_.unreadable_lines) +
                                        " lines of the fetch log are damaged, and left out here");
        }
        return explanation;
    }

private:
    void check_stop() const {
        if (stop_.stop_requested()) throw Error(Errc::cancelled, "explain: cancelled");
    }
    bool is_meant(const ChunkId& chunk) const { return !only_ || only_->contains(chunk); }
    std::uint64_t choose_file();
    void open_layer(const DiffId& layer);
    Explanation::Layer explain_layer(std::size_t number);
    void count_chunks(const LayerChunks& chunks, Explanation::Layer& layer) const;
    void open_bundles();
    /// Of the requests that are meant.
    template <class IsMeant>
    std::vector<Explanation::Fetched> sum_up(const IsMeant& is_it) const;
    /// The image's chunks that a request brought.
    std::vector<const ChunkMap::Part*> brought(const RangeRequest& request) const;
    void say_why_whole(Explanation::Layer& layer) const;
    std::uint64_t blob_bytes(std::size_t number);
    void share(std::vector<Explanation::Layer>& layers);
    std::optional<Explanation::Start> find_start();
    std::optional<MountBegun> last_begun() const;
    void count_came(Explanation::Start& start, const ChunkSet& waited) const;
    std::int64_t end_of(const Explanation::Start& start, const std::vector<const ChunkWait*>& waits) const;
    Explanation::Wait wait_of(const ChunkWait& event) const;
    void name_paths(Explanation::Start& start) const;
    TracedBytes traced_bytes() const;
    bool is_ours(const RangeRequest& request) const;
    std::uint64_t size_of(const ChunkId& chunk) const;

    StoreCore& core_;
    const ExplainRequest& request_;
    const std::stop_token& stop_;
    Leases::Lease lease_;
    const Subject subject_;
    const std::shared_ptr<const ImageTree> tree_;
    const Events events_;
    std::optional<ChunkSet> only_;                                          ///< The file's chunks.
    std::vector<std::shared_ptr<LayerChunks>> chunks_;                      ///< Of each layer.
    std::map<std::int64_t, std::vector<const ChunkMap::Part*>> by_bundle_;  ///< Brought by a start bundle's request.
    std::optional<std::vector<oci::Descriptor>> blobs_;
    ChunkSet waited_;  ///< By the mount whose start is told.
};

/// Its size.
std::uint64_t Explainer::choose_file() {
    const TreeIno ino = resolve_path_no_follow(*tree_, request_.path);
    const TreeAttributes attributes = tree_->attributes(ino);
    const std::string name = store::quote(request_.path);
    if (attributes.type == FileType::directory) throw Error(Errc::malformed, name + ": is a directory: name a file");
    if (attributes.type == FileType::symlink) {
        throw Error(Errc::malformed, name + ": is a symbolic link to " + store::quote(tree_->link_target(ino)) +
                                         ": name the file that it leads to");
    }
    if (attributes.type != FileType::regular) throw Error(Errc::malformed, name + ": is not a regular file");
    only_.emplace();
    for (const ImageTree::PlacedPart& placed : tree_->parts(ino, 0, attributes.size_bytes)) {
        if (!placed.part.is_hole) only_->insert(placed.part.chunk);
    }
    return attributes.size_bytes;
}

void Explainer::open_layer(const DiffId& layer) {
    check_stop();
    auto chunks = std::make_shared<LayerChunks>(core_.paths.recipe(layer));
    for (const RangeRequest& request : events_.requests) {
        if (request.layer == layer) note_came(*chunks, request);
    }
    chunks_.push_back(std::move(chunks));
}

Explanation::Layer Explainer::explain_layer(std::size_t number) {
    const DiffId& diff_id = subject_.layers[number];
    Explanation::Layer layer{.diff_id = diff_id,
                             .state = core_.lazy.state(diff_id),
                             .why = {},
                             .blob_bytes = blob_bytes(number),
                             .shares = {},
                             .fetched = {}};
    if (layer.state == LayerState::verified) say_why_whole(layer);
    if (layer.state == LayerState::complete) layer.why = "all of it has come; lamina complete verifies it";
    if (layer.state == LayerState::quarantined) layer.why = core_.lazy.why_quarantined(diff_id);
    count_chunks(*chunks_[number], layer);
    layer.fetched = sum_up([&](const RangeRequest& request) { return request.layer == diff_id && is_ours(request); });
    return layer;
}

void Explainer::count_chunks(const LayerChunks& chunks, Explanation::Layer& layer) const {
    ChunkSet seen;
    for (const ChunkMap::Part& part : chunks.map.parts()) {
        if (!is_meant(part.chunk) || !seen.insert(part.chunk).second) continue;
        layer.chunk_bytes += part.size_bytes;
        const auto came = chunks.came.find(part.chunk);
        if (!core_.chunks->find(part.chunk)) {
            layer.missing_bytes += part.size_bytes;
        } else if (came == chunks.came.end()) {
            layer.local_bytes += part.size_bytes;
        } else if (came->second == FetchKind::rest) {
            layer.rest_bytes += part.size_bytes;
        } else {
            (came->second == FetchKind::waited ? layer.waited_bytes : layer.prefetched_bytes) += part.size_bytes;
        }
    }
}

void Explainer::open_bundles() {
    if (events_.came.empty()) return;
    std::unordered_map<std::string, const ChunkMap::Part*> by_digits;
    for (const auto& layer : chunks_) {
        for (const ChunkMap::Part& part : layer->map.parts())
            by_digits.emplace(ChunksCame::digits_of(part.chunk), &part);
    }
    for (const ChunksCame& event : events_.came) {
        for (const std::string& digits : event.chunks) {
            const auto found = by_digits.find(digits);
            if (found == by_digits.end()) continue;
            const ChunkId& chunk = found->second->chunk;
            by_bundle_[event.request_us].push_back(found->second);
            for (const auto& layer : chunks_) {
                if (layer->map.find(chunk)) layer->came.try_emplace(chunk, event.kind);
            }
        }
    }
}

std::vector<const ChunkMap::Part*> Explainer::brought(const RangeRequest& request) const {
    if (const auto bundle = by_bundle_.find(request.sent_us); bundle != by_bundle_.end()) return bundle->second;
    std::vector<const ChunkMap::Part*> parts;
    const auto at = std::ranges::find(subject_.layers, request.layer) - subject_.layers.begin();
    const auto& map = chunks_[static_cast<std::size_t>(at)]->map;
    for (const ChunkMap::Part& part : map.beginning_in(request.tar_first, request.tar_end)) parts.push_back(&part);
    return parts;
}

template <class IsMeant>
std::vector<Explanation::Fetched> Explainer::sum_up(const IsMeant& is_it) const {
    std::map<std::pair<FetchKind, std::string>, Explanation::Fetched> fetched;
    std::map<const Explanation::Fetched*, std::int64_t> answered;
    for (const RangeRequest& request : events_.requests) {
        if (!is_it(request)) continue;
        Explanation::Fetched& sum = fetched[{request.kind, request.source}];
        sum.kind = request.kind;
        sum.source = request.source;
        ++sum.requests;
        sum.bytes += request.bytes;
        sum.failures += request.failures + (request.error.empty() ? 0 : 1);
        if (request.bytes == 0) continue;
        ++answered[&sum];
        sum.first_byte_us += request.first_byte_us - request.sent_us;
        sum.transfer_us += request.end_us - request.first_byte_us;
    }
    std::vector<Explanation::Fetched> sums;
    for (auto& [key, sum] : fetched) {
        if (sum.bytes > 0) sum.first_byte_us /= answered[&sum];
        sums.push_back(sum);
    }
    return sums;
}

std::string day_of(std::int64_t unix_us) {
    const std::time_t seconds = unix_us / 1'000'000;
    std::tm parts{};
    ::gmtime_r(&seconds, &parts);
    std::string text(16, '\0');
    text.resize(std::strftime(text.data(), text.size(), "%Y-%m-%d", &parts));
    return text;
}

/// As far as it is known.
void Explainer::say_why_whole(Explanation::Layer& layer) const {
    const auto is_of_it = [&](const RangeRequest& request) { return request.layer == layer.diff_id; };
    if (std::ranges::any_of(events_.requests, is_of_it)) {
        layer.why = "was lazy; all of it has come, and is verified";
        return;
    }
    layer.why = "was here whole: imported or committed here, or pulled before the fetch log begins";
    for (const WholePull& pull : events_.pulls) {
        if (std::ranges::find(pull.layers, layer.diff_id) == pull.layers.end()) continue;
        layer.lacks_index = pull.lacks_index;
        layer.why = "pulled whole from " + pull.source + " on " + day_of(pull.at_us) +
                    (pull.lacks_index ? ": no index that could be used was published beside it"
                                      : ": lamina pull was not told to be lazy");
    }
}

/// As the manifest says, where that can be had.
std::uint64_t Explainer::blob_bytes(std::size_t number) {
    if (!blobs_) {
        blobs_.emplace();
        try {
            if (const auto row = core_.index->find_by_config(subject_.config)) {
                const ImageDocuments documents = core_.index->documents(row->id);
                blobs_ = oci::parse_manifest(documents.manifest, documents.manifest_media_type).layers;
            }
        } catch (const Error&) {  // Another form of manifest: then nobody says.
        }
    }
    return blobs_->size() == subject_.layers.size() ? (*blobs_)[number].size_bytes : 0;
}

/// Which other images have chunks of these layers.
void Explainer::share(std::vector<Explanation::Layer>& layers) {
    struct Ours {
        std::uint64_t size_bytes = 0;
        std::vector<std::size_t> layers;
        std::int64_t last_image = -1;
        bool is_shared = false;
    };
    std::unordered_map<ChunkId, Ours> ours;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const auto at = std::ranges::find(subject_.layers, layers[i].diff_id) - subject_.layers.begin();
        for (const ChunkMap::Part& part : chunks_[static_cast<std::size_t>(at)]->map.parts()) {
            if (!is_meant(part.chunk)) continue;
            Ours& chunk = ours[part.chunk];
            chunk.size_bytes = part.size_bytes;
            if (chunk.layers.empty() || chunk.layers.back() != i) chunk.layers.push_back(i);
        }
    }
    std::map<DiffId, std::vector<Ours*>> in_both;  // Of a layer of others.
    const auto common = [&](const DiffId& layer) -> const std::vector<Ours*>& {
        const auto [entry, is_new] = in_both.try_emplace(layer);
        if (!is_new) return entry->second;
        try {
            for (const ChunkId& chunk : Recipe::open(core_.paths.recipe(layer))->chunks()) {
                if (const auto found = ours.find(chunk); found != ours.end()) entry->second.push_back(&found->second);
            }
        } catch (const Error& error) {  // Removed meanwhile, or damaged: then nothing is said of it.
            if (error.code() != Errc::not_found && error.code() != Errc::corrupt) throw;
        }
        return entry->second;
    };
    std::int64_t number = 0;
    for (const ImageRow& other : core_.index->images()) {
        check_stop();
        if (other.config == subject_.config) continue;
        std::vector<std::uint64_t> bytes(layers.size());
        for (const DiffId& layer : other.layers) {
            for (Ours* const chunk : common(layer)) {
                if (std::exchange(chunk->last_image, number) == number) continue;
                for (const std::size_t i : chunk->layers) {
                    bytes[i] += chunk->size_bytes;
                    if (!chunk->is_shared) layers[i].shared_bytes += chunk->size_bytes;
                }
                chunk->is_shared = true;
            }
        }
        for (std::size_t i = 0; i < layers.size(); ++i) {
            if (bytes[i] > 0) layers[i].shares.push_back({display_name(other), bytes[i]});
        }
        ++number;
    }
    for (Explanation::Layer& layer : layers) {
        std::ranges::stable_sort(layer.shares, std::greater<>(), &Explanation::Share::bytes);
        if (layer.shares.size() > kMostShares) layer.shares.resize(kMostShares);
    }
}

bool Explainer::is_ours(const RangeRequest& request) const {
    const bool is_bundle = by_bundle_.contains(request.sent_us);
    if (!is_bundle && std::ranges::find(subject_.layers, request.layer) == subject_.layers.end()) return false;
    return !only_ || std::ranges::any_of(brought(request), [&](const auto* part) { return is_meant(part->chunk); });
}

std::uint64_t Explainer::size_of(const ChunkId& chunk) const {
    for (const auto& layer : chunks_) {
        if (const ChunkMap::Part* const part = layer->map.find(chunk)) return part->size_bytes;
    }
    return 0;
}

std::optional<MountBegun> Explainer::last_begun() const {
    std::optional<MountBegun> last;
    for (const MountBegun& begun : events_.mounts) {
        const bool is_it =
            subject_.mount_id.empty() ? begun.config == subject_.config : begun.mount == subject_.mount_id;
        if (is_it) last = begun;
    }
    return last;
}

Explanation::Wait Explainer::wait_of(const ChunkWait& event) const {
    return {.event = event, .size_bytes = size_of(event.chunk), .paths = {}};
}

std::optional<Explanation::Start> Explainer::find_start() {
    const std::optional<MountBegun> begun = last_begun();
    if (!begun) return std::nullopt;
    Explanation::Start start{
        .mount_id = begun->mount, .begun_us = begun->at_us, .requests = {}, .waits = {}, .longest = {}};
    std::vector<const ChunkWait*> waits;
    for (const ChunkWait& wait : events_.waits) {
        if (wait.mount != start.mount_id || wait.begin_us < start.begun_us || !is_meant(wait.chunk)) continue;
        waits.push_back(&wait);
        ++start.wait_count;
        start.wait_us += wait.end_us - wait.begin_us;
        start.last_wait_us = std::max(start.last_wait_us, wait.end_us);
        waited_.insert(wait.chunk);
    }
    count_came(start, waited_);
    start.end_us = end_of(start, waits);
    for (const RangeRequest& request : events_.requests) {
        const bool is_in_it = request.end_us >= start.begun_us && request.sent_us <= start.end_us;
        if (is_in_it && start.requests.size() < kMostEvents && is_ours(request)) start.requests.push_back(request);
    }
    for (const ChunkWait* const wait : waits) {
        if (wait->begin_us <= start.end_us && start.waits.size() < kMostEvents) start.waits.push_back(wait_of(*wait));
    }
    std::ranges::stable_sort(waits, std::greater<>(),
                             [](const ChunkWait* wait) { return wait->end_us - wait->begin_us; });
    if (waits.size() > kMostLongest) waits.resize(kMostLongest);
    for (const ChunkWait* const wait : waits) start.longest.push_back(wait_of(*wait));
    name_paths(start);
    return start;
}

/// All that came since the start, for whomever; and which requests were on their way while it lasted.
void Explainer::count_came(Explanation::Start& start, const ChunkSet& waited) const {
    ChunkSet seen;
    start.are_reads_known = request_.read_chunks.has_value();
    for (const RangeRequest& request : events_.requests) {
        if (request.end_us < start.begun_us || !is_ours(request)) continue;
        start.fetched_bytes += request.bytes;
        ++start.request_count;
        for (const ChunkMap::Part* const part : brought(request)) {
            if (!is_meant(part->chunk) || !seen.insert(part->chunk).second) continue;
            if (request.kind == FetchKind::rest && !waited.contains(part->chunk)) {
                start.rest_bytes += part->size_bytes;
                continue;
            }
            (waited.contains(part->chunk) ? start.waited_bytes : start.prefetched_bytes) += part->size_bytes;
            if (!request_.read_chunks) continue;
            const bool is_read = request_.read_chunks->contains(ChunksCame::digits_of(part->chunk));
            (is_read ? start.read_bytes : start.unread_bytes) += part->size_bytes;
        }
    }
}

std::int64_t Explainer::end_of(const Explanation::Start& start, const std::vector<const ChunkWait*>& waits) const {
    std::vector<std::pair<std::int64_t, std::int64_t>> busy;
    for (const ChunkWait* const wait : waits) busy.emplace_back(wait->begin_us, wait->end_us);
    for (const RangeRequest& request : events_.requests) {
        const bool is_since = request.end_us >= start.begun_us && request.kind != FetchKind::rest;
        if (is_since && is_ours(request)) busy.emplace_back(request.sent_us, request.end_us);
    }
    std::ranges::sort(busy);
    std::int64_t end = start.begun_us;
    for (const auto& [from, to] : busy) {
        if (from > end + kQuietUs) break;
        end = std::max(end, to);
    }
    return end;
}

/// Walks the tree once for all chunks that are waited for.
void Explainer::name_paths(Explanation::Start& start) const {
    std::unordered_map<ChunkId, std::vector<std::string>> names;
    for (const Explanation::Wait& wait : start.waits) names.try_emplace(wait.event.chunk);
    for (const Explanation::Wait& wait : start.longest) names.try_emplace(wait.event.chunk);
    if (names.empty()) return;
    std::vector<std::pair<TreeIno, std::string>> folders{{kTreeRoot, ""}};
    while (!folders.empty()) {
        check_stop();
        const auto [folder, path] = std::move(folders.back());
        folders.pop_back();
        const std::uint32_t count = tree_->entry_count(folder);
        for (std::uint32_t position = 0; position < count; ++position) {
            const TreeName entry = tree_->entry(folder, position);
            if (entry.type == FileType::directory)
                folders.emplace_back(entry.ino, path + "/" + std::string(entry.name));
            if (entry.type != FileType::regular) continue;
            for (const auto& placed : tree_->parts(entry.ino, 0, tree_->attributes(entry.ino).size_bytes)) {
                const auto found = names.find(placed.part.chunk);
                if (placed.part.is_hole || found == names.end() || found->second.size() == kMostPaths) continue;
                const std::string name = path + "/" + std::string(entry.name);
                if (found->second.empty() || found->second.back() != name) found->second.push_back(name);
            }
        }
    }
    for (Explanation::Wait& wait : start.waits) wait.paths = names[wait.event.chunk];
    for (Explanation::Wait& wait : start.longest) wait.paths = names[wait.event.chunk];
}

TracedBytes Explainer::traced_bytes() const {
    TracedBytes bytes;
    const auto trace = core_.traces.find(subject_.config);
    const ChunkSet traced = trace ? ChunkSet(trace->chunks.begin(), trace->chunks.end()) : ChunkSet();
    for (const ChunkId& chunk : waited_) {
        const std::uint64_t size_bytes = size_of(chunk);
        bytes.waited += size_bytes;
        if (traced.contains(chunk)) bytes.traced += size_bytes;
    }
    return bytes;
}

}  // namespace

Explanation explain_bytes(StoreCore& core, const ExplainRequest& request, const std::stop_token& stop) {
    return Explainer(core, request, stop).run();
}

}  // namespace lamina::store
