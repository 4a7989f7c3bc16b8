#include "store/gc.h"

#include "store/error.h"
#include "store/pack_writer.h"
#include "store/recipe.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <unordered_set>
#include <utility>

// What is in use: images with a name (or imported without one), the bases of mounts/*, and the leases of running jobs.
// Mark, then decide, then remove: rows first (one transaction), then the chunk index without the victims, then files.
//
// Why a job that runs at the same time loses nothing. Marking takes no lock. The decision is made under the leases'
// lock, with roots and leases read under it, and in the same breath the rows of dead images, layers, trees and packs go
// and the victim packs are hidden: Lease::find() misses their chunks from then on.
//   - A layer or tree. A job leases it before it asks whether its row is there. Leased before the decision: it is a
//     root; if its chunks were not marked, marking goes on and the decision is made again. Leased after it: a victim's
//     row is gone, so the job makes it anew. A lease ends after the row that keeps the thing (an image's) is committed,
//     and the decision reads leases before rows, so it sees the one or the other.
//   - A chunk. Lease::find() leases the pack in the same step as the look-up. Before the decision: that pack is no
//     victim. After it: a victim's chunk is not found and is stored again. Packs that are committed after their tables
//     were read here are no candidates.
//   - A file. Jobs lease what they are about to publish, and remove_strays() takes only what is neither leased nor
//     named by a row, one by one under the leases' lock; so a layer that is made anew while its old recipe waits to be
//     removed keeps its file.
//   - An image. add_image() and tag() run under the leases' lock, so no image that the decision found nameless gets a
//     name before it is gone.
// A chunk that lies in two packs counts as live in the one with the lower number, among the tables that were read.
// Of a pack with more than a quarter dead, the live chunks are written into a new pack, then one transaction replaces
// the rows; until then the old one is whole. Readers of other processes that find a pack gone open the chunk index
// again (chunk_store.h).

namespace lamina::store {

namespace {

constexpr int kPatientRounds = 10;
constexpr std::uint64_t kRewriteGroupBytes = 256ull << 20;  ///< Raw bytes of live chunks in one new pack.

struct Roots {
    std::set<DiffId> layers;
    std::set<TreeDigest> trees;
    std::vector<std::int64_t> dead_images;
};

struct PackState {
    PackRow row;
    std::vector<NewChunk> live;  ///< In pack order.
    std::uint64_t live_bytes = 0;
    bool is_dead() const { return live.empty(); }
    bool is_sparse() const { return !is_dead() && (row.raw_bytes - live_bytes) * 4 > row.raw_bytes; }
    std::uint64_t dead_file_bytes() const {
        const double dead = static_cast<double>(row.raw_bytes - live_bytes) / static_cast<double>(row.raw_bytes);
        return static_cast<std::uint64_t>(static_cast<double>(row.file_bytes) * dead);
    }
};

struct Decision {
    Index::Victims victims;
    std::vector<PackState> sparse;
    std::uint64_t dead_bytes = 0;  ///< Of the victims' files.
};

class Collector {
public:
    Collector(StoreCore& core, bool is_dry_run, const std::stop_token& stop)
        : core_(core), is_dry_run_(is_dry_run), stop_(stop) {}

    GcReport run() {
        const std::lock_guard collecting(core_.collecting);
        if (!is_dry_run_) agree_chunk_index(core_);
        const Decision decision = decide();
        GcReport report{.is_dry_run = is_dry_run_,
                        .packs_removed = decision.victims.packs.size(),
                        .packs_rewritten = decision.sparse.size(),
                        .layers_removed = decision.victims.layers.size(),
                        .trees_removed = decision.victims.trees.size()};
        if (is_dry_run_) {
            report.freed_bytes = decision.dead_bytes;
            for (const PackState& pack : decision.sparse) report.freed_bytes += pack.dead_file_bytes();
            return report;
        }
        report.freed_bytes = forget(decision);
        report.packs_rewritten = 0;
        rewrite(decision.sparse, report);
        return report;
    }

private:
    /// What has no row any more leaves the chunk index and the disk; returns the bytes.
    std::uint64_t forget(const Decision& decision) {
        std::uint64_t freed_bytes = 0;
        try {
            agree_chunk_index(core_);
        } catch (const Error& error) {
            // The new chunk index finds no room: the files go first. It then names packs that are gone until it is
            // written, of which nobody needs a chunk and jobs find none, because they stay hidden.
            if (error.code() != Errc::no_space && error.code() != Errc::quota) throw;
            freed_bytes = remove_strays(core_);
            agree_chunk_index(core_);
        }
        core_.leases.show(decision.victims.packs);  // The chunk index does not name them any more.
        return freed_bytes + remove_strays(core_);
    }

    void poll() const {
        if (stop_.stop_requested()) throw Error(Errc::cancelled, "gc was stopped");
    }

    Roots roots(const Leases::Held& held) {
        Roots roots{held.layers, held.trees, {}};
        std::set<std::string> mounted_configs;
        for (const KeptMount& mount : kept_mounts(core_)) {
            roots.layers.insert(mount.base.layers.begin(), mount.base.layers.end());
            roots.trees.insert(mount.base.tree);
            mounted_configs.insert(mount.base.config_digest);
        }
        for (const ImageRow& image : core_.index->all_images()) {
            const bool is_known = !image.is_removed && (!image.names.empty() || image.is_anonymous || image.is_pinned);
            if (!is_known && !mounted_configs.contains(image.config.digest.text())) {
                roots.dead_images.push_back(image.id);
                continue;
            }
            roots.layers.insert(image.layers.begin(), image.layers.end());
            roots.trees.insert(image.tree.digest);
        }
        return roots;
    }

    /// False: a layer that must stay has not been marked.
    bool is_marked(const Roots& roots, const std::vector<LayerRow>& rows) const {
        return std::none_of(rows.begin(), rows.end(), [&](const LayerRow& row) {
            return roots.layers.contains(row.diff_id) && !marked_.contains(row.diff_id);
        });
    }

    void mark(const Roots& roots) {
        for (const LayerRow& row : core_.index->layers()) {
            if (!roots.layers.contains(row.diff_id) || marked_.contains(row.diff_id)) continue;
            poll();
            try {
                for (const ChunkId& chunk : Recipe::open(core_.paths.recipe(row.diff_id))->chunks()) {
                    live_.insert(chunk);
                }
            } catch (const Error& error) {  // Without it nobody knows which chunks it needs: nothing may be removed.
                throw Error(Errc::corrupt, "layer " + row.diff_id.digest.text() +
                                               ": gc cannot tell what it needs, nothing was removed: " + error.what());
            }
            marked_.insert(row.diff_id);
        }
    }

    std::vector<PackState> pack_states() {
        std::vector<PackState> states;
        std::unordered_set<ChunkId> unplaced = live_;
        for (const PackRow& row : core_.index->packs()) {
            poll();
            PackState state{.row = row, .live = {}};
            try {
                for (const NewChunk& chunk : read_pack_table(core_.paths.packs(), row.number)) {
                    if (unplaced.erase(chunk.id) == 0) continue;
                    state.live.push_back(chunk);
                    state.live_bytes += chunk.place.size_bytes;
                }
            } catch (const Error&) {  // A damaged pack is kept, for verify to report.
                continue;
            }
            states.push_back(std::move(state));
        }
        return states;
    }

    Decision decide() {
        for (int round = 1;; ++round) {
            mark(core_.leases.with_all([&](const Leases::Held& held, auto&&) { return roots(held); }));
            std::vector<PackState> states = pack_states();
            std::optional<Decision> decision =
                core_.leases.with_all([&](const Leases::Held& held, auto&& hide) -> std::optional<Decision> {
                    const Roots now = roots(held);
                    if (!is_marked(now, core_.index->layers())) {
                        if (round < kPatientRounds) return std::nullopt;
                        mark(now);  // Jobs keep coming: now they wait.
                        states = pack_states();
                    }
                    Decision made = victims(now, held, states);
                    if (is_dry_run_) return made;
                    std::vector<std::uint32_t> hidden = made.victims.packs;
                    for (const PackState& pack : made.sparse) hidden.push_back(pack.row.number);
                    hide(hidden);
                    core_.index->remove(made.victims);
                    return made;
                });
            if (decision) return std::move(*decision);
        }
    }

    Decision victims(const Roots& now, const Leases::Held& held, const std::vector<PackState>& states) {
        Decision decision;
        decision.victims.images = now.dead_images;
        for (const LayerRow& row : core_.index->layers()) {
            if (now.layers.contains(row.diff_id)) continue;
            decision.victims.layers.push_back(row.diff_id);
            decision.dead_bytes += row.recipe_bytes;
        }
        for (const TreeRow& row : core_.index->trees()) {
            if (now.trees.contains(row.digest)) continue;
            decision.victims.trees.push_back(row.digest);
            decision.dead_bytes += row.file_bytes;
        }
        for (const PackState& state : states) {
            if (held.packs.contains(state.row.number)) continue;
            if (state.is_dead()) {
                decision.victims.packs.push_back(state.row.number);
                decision.dead_bytes += state.row.file_bytes;
            } else if (state.is_sparse()) {
                decision.sparse.push_back(state);
            }
        }
        return decision;
    }

    void rewrite(const std::vector<PackState>& sparse, GcReport& report);
    std::vector<std::uint32_t> rewrite_group(std::span<const PackState> group, GcReport& report);
    bool copy_live(const PackState& pack, PackWriter& writer);

    StoreCore& core_;
    const bool is_dry_run_;
    const std::stop_token& stop_;
    std::set<DiffId> marked_;
    std::unordered_set<ChunkId> live_;
};

/// Ends the hiding of packs that are still there, however the rewriting ends.
class Unhide {
public:
    Unhide(StoreCore& core, const std::vector<PackState>& packs) : core_(core), packs_(packs) {}
    ~Unhide() {
        try {
            std::vector<std::uint32_t> there;
            for (const PackState& pack : packs_) {
                if (core_.index->has_pack(pack.row.number)) there.push_back(pack.row.number);
            }
            core_.leases.show(there);
        } catch (const Error&) {  // Hidden packs cost nothing but chunks that are stored once more.
        }
    }
    Unhide(const Unhide&) = delete;
    Unhide& operator=(const Unhide&) = delete;

private:
    StoreCore& core_;
    const std::vector<PackState>& packs_;
};

void Collector::rewrite(const std::vector<PackState>& sparse, GcReport& report) {
    const Unhide unhide(core_, sparse);
    for (std::size_t begin = 0; begin < sparse.size();) {
        std::size_t end = begin;
        std::uint64_t bytes = 0;
        while (end < sparse.size() && (end == begin || bytes + sparse[end].live_bytes <= kRewriteGroupBytes)) {
            bytes += sparse[end++].live_bytes;
        }
        report.packs_rewritten += rewrite_group(std::span(sparse).subspan(begin, end - begin), report).size();
        begin = end;
    }
}

std::vector<std::uint32_t> Collector::rewrite_group(std::span<const PackState> group, GcReport& report) {
    Leases::Lease lease = core_.leases.take();
    const JobFolder folder(core_);
    const std::uint32_t number = core_.index->allocate_pack();
    lease.keep_pack(number);
    LeasedChunks known(*core_.chunks, lease);  // Which does not know what is hidden.
    PackWriter writer({.packs_folder = core_.paths.packs(),
                       .staging_folder = folder.path(),
                       .pack_number = number,
                       .thread_count = std::max(1u, std::thread::hardware_concurrency())},
                      known);
    std::vector<std::uint32_t> copied;
    for (const PackState& pack : group) {
        if (copy_live(pack, writer)) copied.push_back(pack.row.number);
    }
    const std::optional<FinishedPack> finished = writer.finish();
    std::vector<PackRow> added;
    if (finished) added.push_back({finished->number, finished->file_bytes, finished->raw_bytes});
    {
        const std::lock_guard publishing(core_.publishing);
        core_.index->replace_packs(added, copied);
    }
    agree_chunk_index(core_);
    const std::uint64_t freed_bytes = remove_strays(core_);
    const std::uint64_t added_bytes = finished ? finished->file_bytes : 0;
    report.freed_bytes += freed_bytes > added_bytes ? freed_bytes - added_bytes : 0;
    return copied;
}

/// False when a chunk cannot be read: the pack then stays as it is, for verify to report.
bool Collector::copy_live(const PackState& pack, PackWriter& writer) {
    std::vector<std::byte> buffer;
    for (const NewChunk& chunk : pack.live) {
        poll();
        buffer.resize(chunk.place.size_bytes);
        try {
            core_.chunks->read(chunk.id, 0, buffer);
        } catch (const Error& error) {
            if (error.code() == Errc::corrupt || error.code() == Errc::not_found) return false;
            throw;
        }
        if (Digest::of(buffer) != chunk.id.digest) return false;
        writer.add(buffer);
    }
    return true;
}

}  // namespace

GcReport collect(StoreCore& core, bool is_dry_run, const std::stop_token& stop) {
    return Collector(core, is_dry_run, stop).run();
}

}  // namespace lamina::store
