#include "store/gc.h"

#include "store/chunk_index.h"
#include "store/error.h"
#include "store/liveness.h"
#include "store/pack_copy.h"
#include "store/pack_swap.h"
#include "store/reserve.h"
#include "store/usage.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <set>
#include <utility>

// What is in use: images with a name or a pin (or imported without a name), the bases of mounts/*, and the leases of
// running jobs. Mark, then decide, then remove: rows first (one transaction), then the chunk index without the victims,
// then files.
//
// Why a job that runs at the same time loses nothing. Marking takes no lock. The decision is made under the leases'
// lock, with roots and leases read under it, and in the same breath the rows of dead images, layers, trees and packs go
// and the victim packs are hidden: Lease::find() misses their chunks from then on.
//   - A layer or tree. A job leases it before it asks whether its row is there. Leased before the decision: it is a
//     root; if its chunks were not marked, marking goes on and the decision is made again. Leased after it: a victim's
//     row is gone, so the job makes it anew. A lease ends after the row that keeps the thing (an image's) is committed,
//     and the decision reads leases before rows, so it sees the one or the other.
//   - A chunk. Lease::find() leases the pack in the same step as the look-up. Before the decision: that pack is no
//     victim. After it: a victim's chunk is not found and is stored again. Packs that are committed after marking began
//     are no candidates.
//   - A file. Jobs lease what they are about to publish, and remove_strays() takes only what is neither leased nor
//     named by a row, one by one under the leases' lock; so a layer that is made anew while its old recipe waits to be
//     removed keeps its file.
//   - An image. add_image(), tag() and set_pinned() run under the leases' lock, so no image that the decision found
//   dead
//     gets a name or a pin before it is gone.
// Mounts take no lock against gc: what a mount needs is kept by its base, which is there before its server starts, and
// goes only under the lock that a server holds.
//
// A chunk that lies in several packs is needed where the chunk index finds it, and nowhere else: so what readers find
// is what stays. gc trusts the index only after it has checked it against itself and against the packs' own tables.
//
// Of a pack of which a good part is dead, what is needed is written into a new pack, then one transaction replaces the
// rows (pack_swap.h); until then the old one is whole. Readers of other processes that find a pack gone, or cut, open
// the chunk index again (chunk_store.h).
//
// On a full disk: the reserve is given up first, and the index has its own (index.cpp). Where the new chunk index finds
// no room, the files of dead packs go before it. Packs are then written anew one by one, the smallest need first, as
// far as there is room.
//
// A dry run makes the same plan, and measures the new packs without writing them; so it knows every byte.

namespace lamina::store {

namespace {

constexpr int kPatientRounds = 10;
constexpr std::uint64_t kGroupBytes = 256ull << 20;  ///< Raw bytes of needed chunks in one new pack.
constexpr std::uint64_t kScarceBytes = 16ull << 20;  ///< Less is free: the reserve is needed.
constexpr std::uint64_t kMarginBytes = 64ull << 10;  ///< For folders, lists and rows beside a new pack.

/// Of the chunk index.
std::uint64_t index_bytes(const StorePaths& paths) {
    std::uint64_t bytes = 0;
    for (const std::string& name : list_folder(paths.packs())) {
        if (!pack_number_of(name)) bytes += bytes_below(paths.packs() + "/" + name);
    }
    return bytes;
}

struct Decision {
    Index::Victims victims;
    std::vector<PackUse> sparse;
};

/// Packs that are written into one new pack together.
using Groups = std::vector<std::vector<PackUse>>;

class Collector {
public:
    Collector(StoreCore& core, const GcRequest& request, const std::stop_token& stop)
        : core_(core), request_(request), stop_(stop) {}

    GcReport run() {
        const std::lock_guard collecting(core_.collecting);
        const Index::FileBytes index_before = core_.index->file_bytes();
        make_room();
        agree_chunk_index_somehow(core_);
        const Decision decision = decide();
        report_ = {.is_dry_run = request_.is_dry_run,
                   .images_removed = decision.victims.images.size(),
                   .packs_removed = decision.victims.packs.size(),
                   .layers_removed = decision.victims.layers.size(),
                   .trees_removed = decision.victims.trees.size()};
        std::int64_t freed_bytes = request_.is_dry_run ? foresee(decision) : remove(decision);
        if (!request_.is_dry_run) {
            core_.index->shorten_log();
            keep_reserve(core_.paths);
        }
        const Index::FileBytes index_after = core_.index->file_bytes();
        freed_bytes += static_cast<std::int64_t>(index_before.now) -
                       static_cast<std::int64_t>(request_.is_dry_run ? index_after.settled : index_after.now);
        report_.freed_bytes = static_cast<std::uint64_t>(std::max<std::int64_t>(0, freed_bytes));
        return report_;
    }

private:
    void make_room();
    std::optional<std::vector<PackUse>> pack_uses();
    Decision decide();
    Decision victims(const Roots& now, const Leases::Held& held, const std::vector<PackUse>& uses);
    std::uint64_t victim_bytes(const Index::Victims& victims) const;
    Groups plan(const std::vector<PackUse>& sparse, std::uint64_t room_bytes);
    PackFile::Options pack_options(const std::vector<PackUse>& group) const;

    std::int64_t foresee(const Decision& decision);
    std::uint64_t foreseen_index_bytes(const Index::Victims& victims, const Groups& groups);

    std::int64_t remove(const Decision& decision);
    std::uint64_t forget(const Index::Victims& victims);
    std::int64_t rewrite(const std::vector<PackUse>& group);
    void compact_index();

    StoreCore& core_;
    const GcRequest& request_;
    const std::stop_token& stop_;
    std::uint64_t room_bytes_ = 0;  ///< Before anything was freed.
    std::unique_ptr<Liveness> liveness_;
    bool is_index_rebuilt_ = false;
    GcReport report_;
};

void Collector::make_room() {
    const bool is_scarce = free_bytes(core_.paths) < kScarceBytes;
    room_bytes_ = free_bytes(core_.paths) + (is_scarce ? reserve_bytes(core_.paths) : 0);
    if (is_scarce && !request_.is_dry_run) give_up_reserve(core_.paths);
}

/// nullopt: the chunk index was wrong and has been made anew; nothing is marked.
std::optional<std::vector<PackUse>> Collector::pack_uses() {
    if (auto uses = liveness_->pack_uses()) return uses;
    if (std::exchange(is_index_rebuilt_, true)) {
        throw Error(Errc::corrupt, "the chunk index contradicts the packs, nothing was removed: run lamina verify");
    }
    {
        const std::lock_guard publishing(core_.publishing);
        core_.chunks->rebuild(core_.index->pack_numbers());
    }
    liveness_.reset();
    return std::nullopt;
}

Decision Collector::decide() {
    for (int round = 1;; ++round) {
        if (!liveness_) {
            const auto& idle = request_.idle_mounts;
            liveness_ = std::make_unique<Liveness>(core_, stop_, std::set<std::string>(idle.begin(), idle.end()));
        }
        liveness_->mark(liveness_->roots());
        auto uses = pack_uses();
        if (!uses) continue;
        std::optional<Decision> decision =
            core_.leases.with_all([&](const Leases::Held& held, auto&& hide) -> std::optional<Decision> {
                const Roots now = liveness_->roots(held);
                if (!liveness_->has_marked(now)) {
                    if (round < kPatientRounds) return std::nullopt;
                    liveness_->mark(now);  // Jobs keep coming: now they wait.
                    uses = liveness_->pack_uses();
                    if (!uses) return std::nullopt;
                }
                Decision made = victims(now, held, *uses);
                if (request_.is_dry_run) return made;
                hide(made.victims.packs);
                core_.index->remove(made.victims);
                return made;
            });
        if (decision) return std::move(*decision);
    }
}

Decision Collector::victims(const Roots& now, const Leases::Held& held, const std::vector<PackUse>& uses) {
    Decision decision;
    decision.victims.images = now.dead_images;
    for (const LayerRow& row : core_.index->layers()) {
        if (!now.layers.contains(row.diff_id)) decision.victims.layers.push_back(row.diff_id);
    }
    for (const TreeRow& row : core_.index->trees()) {
        if (!now.trees.contains(row.digest)) decision.victims.trees.push_back(row.digest);
    }
    for (const PackUse& use : uses) {
        if (held.packs.contains(use.row.number)) continue;
        if (use.is_dead()) decision.victims.packs.push_back(use.row.number);
        if (use.is_sparse()) decision.sparse.push_back(use);
    }
    return decision;
}

std::uint64_t Collector::victim_bytes(const Index::Victims& victims) const {
    std::uint64_t bytes = 0;
    for (const DiffId& layer : victims.layers) {
        const StorePaths& paths = core_.paths;
        for (const auto& path : {paths.recipe(layer), paths.lazy(layer), paths.blob(layer), paths.quarantined(layer)}) {
            bytes += bytes_below(path);
        }
    }
    for (const TreeDigest& tree : victims.trees) bytes += bytes_below(core_.paths.tree(tree));
    for (const std::uint32_t pack : victims.packs) bytes += bytes_below(pack_path(core_.paths.packs(), pack));
    return bytes;
}

/// `room_bytes`: free once the victims are gone.
Groups Collector::plan(const std::vector<PackUse>& sparse, std::uint64_t room_bytes) {
    std::uint64_t all_bytes = 0;
    for (const PackUse& use : sparse) all_bytes += use.needed_file_bytes;
    Groups groups;
    if (room_bytes > all_bytes + kScarceBytes) {
        std::uint64_t bytes = 0;
        for (const PackUse& use : sparse) {
            bytes += use.needed_bytes;
            if (groups.empty() || bytes > kGroupBytes) {
                groups.emplace_back();
                bytes = use.needed_bytes;
            }
            groups.back().push_back(use);
        }
        return groups;
    }
    std::vector<PackUse> by_need = sparse;
    std::ranges::stable_sort(by_need, {}, &PackUse::needed_file_bytes);
    for (const PackUse& use : by_need) {
        if (use.needed_file_bytes + kMarginBytes > room_bytes) {
            ++report_.packs_waiting;
            continue;
        }
        room_bytes += use.row.file_bytes - use.needed_file_bytes;
        groups.push_back({use});
    }
    return groups;
}

PackFile::Options Collector::pack_options(const std::vector<PackUse>& group) const {
    const auto is_dense = [](const PackUse& use) { return use.row.dense_bytes > 0; };
    return {.packs_folder = core_.paths.packs(),
            .staging_folder = {},
            .tells_levels = std::any_of(group.begin(), group.end(), is_dense)};
}

std::int64_t Collector::foresee(const Decision& decision) {
    const std::uint64_t gone_bytes = victim_bytes(decision.victims) + stray_bytes(core_);
    auto freed_bytes = static_cast<std::int64_t>(gone_bytes);
    Groups groups = plan(decision.sparse, room_bytes_ + gone_bytes);
    for (auto& group : groups) {
        PackFile::Options options = pack_options(group);
        options.is_measured = true;
        PackCopy copy(options, *liveness_, stop_);
        std::erase_if(group, [&](const PackUse& use) { return !copy.add(use.row.number); });
        if (group.empty()) continue;
        for (const PackUse& use : group) freed_bytes += static_cast<std::int64_t>(use.row.file_bytes);
        if (const auto pack = copy.finish()) freed_bytes -= static_cast<std::int64_t>(pack->file_bytes);
        report_.packs_rewritten += group.size();
    }
    std::erase_if(groups, [](const auto& group) { return group.empty(); });
    if (decision.victims.packs.empty() && groups.empty()) return freed_bytes;
    return freed_bytes + static_cast<std::int64_t>(index_bytes(core_.paths)) -
           static_cast<std::int64_t>(foreseen_index_bytes(decision.victims, groups));
}

std::uint64_t Collector::foreseen_index_bytes(const Index::Victims& victims, const Groups& groups) {
    const std::set<std::uint32_t> dead(victims.packs.begin(), victims.packs.end());
    std::set<std::uint32_t> rewritten;
    for (const auto& group : groups) {
        for (const PackUse& use : group) rewritten.insert(use.row.number);
    }
    const std::uint64_t entry_count = liveness_->chunks().count([&](std::uint32_t pack, bool is_marked) {
        return rewritten.contains(pack) ? is_marked : !dead.contains(pack);
    });
    const std::size_t pack_count = core_.index->packs().size() - dead.size() - rewritten.size() + groups.size();
    return ChunkIndex::compact_bytes(pack_count, entry_count);
}

std::int64_t Collector::remove(const Decision& decision) {
    const std::uint64_t index_bytes_before = index_bytes(core_.paths);
    const std::uint64_t gone_bytes = forget(decision.victims);
    auto freed_bytes = static_cast<std::int64_t>(gone_bytes);
    for (const auto& group : plan(decision.sparse, room_bytes_ + gone_bytes)) {
        try {
            freed_bytes += rewrite(group);
        } catch (const Error& error) {
            if (error.code() != Errc::no_space && error.code() != Errc::quota) throw;
            report_.packs_waiting += group.size();
        }
    }
    if (!decision.victims.packs.empty() || report_.packs_rewritten > 0) compact_index();
    return freed_bytes + static_cast<std::int64_t>(index_bytes_before) -
           static_cast<std::int64_t>(index_bytes(core_.paths));
}

/// What has no row any more leaves the chunk index and the disk; returns the bytes.
std::uint64_t Collector::forget(const Index::Victims& victims) {
    const auto forget_in_index = [&] {
        const std::lock_guard publishing(core_.publishing);
        core_.chunks->replace_packs(nullptr, victims.packs);
    };
    std::uint64_t freed_bytes = 0;
    try {
        forget_in_index();
    } catch (const Error& error) {
        // The new list finds no room: the files go first. The index then names packs that are gone until it is written,
        // of which nobody needs a chunk and jobs find none, because they stay hidden.
        if (error.code() != Errc::no_space && error.code() != Errc::quota) throw;
        freed_bytes = remove_dead_packs(core_, victims.packs);
        forget_in_index();
    }
    core_.leases.show(victims.packs);  // The chunk index does not name them any more.
    return freed_bytes + remove_strays(core_);
}

/// Returns what it freed, less what it wrote.
std::int64_t Collector::rewrite(const std::vector<PackUse>& group) {
    Leases::Lease lease = core_.leases.take();
    const JobFolder folder(core_);
    PackFile::Options options = pack_options(group);
    options.staging_folder = folder.path();
    options.pack_number = core_.index->allocate_pack();
    lease.keep_pack(options.pack_number);
    PackCopy copy(options, *liveness_, stop_);
    std::vector<std::uint32_t> copied;
    for (const PackUse& use : group) {
        if (copy.add(use.row.number)) copied.push_back(use.row.number);
    }
    if (copied.empty()) return 0;
    const std::optional<FinishedPack> pack = copy.finish();
    if (!pack) return 0;
    report_.packs_rewritten += swap_packs(core_, *liveness_, *pack, copied).size();
    return static_cast<std::int64_t>(remove_strays(core_)) - static_cast<std::int64_t>(pack->file_bytes);
}

/// Its old segments have entries of what is gone. Without room for a new one they serve on.
void Collector::compact_index() {
    const std::lock_guard publishing(core_.publishing);
    try {
        core_.chunks->compact();
    } catch (const Error& error) {
        if (error.code() != Errc::no_space && error.code() != Errc::quota) throw;
    }
}

}  // namespace

GcReport collect(StoreCore& core, const GcRequest& request, const std::stop_token& stop) {
    return Collector(core, request, stop).run();
}

}  // namespace lamina::store
