#include "store/liveness.h"

#include "store/error.h"
#include "store/recipe.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace lamina::store {

namespace {

PackUse use_of(const PackRow& row, const std::vector<NewChunk>& table, ChunkMarks& marks) {
    PackUse use{.row = row};
    for (std::size_t begin = 0; begin < table.size();) {
        const ChunkPlace& frame = table[begin].place;
        std::uint64_t raw_bytes = 0;
        std::uint64_t needed_bytes = 0;
        for (; begin < table.size() && table[begin].place.frame_offset_bytes == frame.frame_offset_bytes; ++begin) {
            raw_bytes += table[begin].place.size_bytes;
            if (marks.claim(table[begin])) needed_bytes += table[begin].place.size_bytes;
        }
        use.needed_bytes += needed_bytes;
        use.needed_file_bytes += frame.frame_size_bytes * needed_bytes / raw_bytes;
    }
    return use;
}

}  // namespace

Liveness::Liveness(StoreCore& core, std::stop_token stop, std::set<std::string> gone_mounts)
    : core_(core), stop_(std::move(stop)), gone_mounts_(std::move(gone_mounts)) {
    const std::lock_guard publishing(core_.publishing);  // So rows and list say the same.
    packs_ = core_.index->packs();
    try {
        chunks_ = std::make_unique<ChunkMarks>(core_.paths.packs());
    } catch (const Error& error) {  // It is derived: the packs have it all.
        if (error.code() != Errc::corrupt) throw;
        core_.chunks->rebuild(core_.index->pack_numbers());
        chunks_ = std::make_unique<ChunkMarks>(core_.paths.packs());
    }
}

void Liveness::poll() const {
    if (stop_.stop_requested()) throw Error(Errc::cancelled, "stopped");
}

Roots Liveness::roots() {
    return core_.leases.with_all([&](const Leases::Held& held, auto&&) { return roots(held); });
}

Roots Liveness::roots(const Leases::Held& held) const {
    Roots roots{held.layers, held.trees, {}};
    std::set<std::string> mounted_configs;
    for (const KeptMount& mount : kept_mounts(core_)) {
        if (gone_mounts_.contains(mount.id)) continue;
        roots.layers.insert(mount.base.layers.begin(), mount.base.layers.end());
        roots.trees.insert(mount.base.tree);
        mounted_configs.insert(mount.base.config_digest);
    }
    for (const ImageRow& image : core_.index->all_images()) {
        const bool is_kept = !image.is_removed && (!image.names.empty() || image.is_anonymous || image.is_pinned);
        if (!is_kept && !mounted_configs.contains(image.config.digest.text())) {
            roots.dead_images.push_back(image.id);
            continue;
        }
        roots.layers.insert(image.layers.begin(), image.layers.end());
        roots.trees.insert(image.tree.digest);
    }
    return roots;
}

Roots Liveness::stored() {
    return core_.leases.with_all([&](const Leases::Held& held, auto&&) { return stored(held); });
}

Roots Liveness::stored(const Leases::Held& held) const {
    Roots all = roots(held);
    for (const LayerRow& row : core_.index->layers()) all.layers.insert(row.diff_id);
    return all;
}

void Liveness::mark(const Roots& roots) {
    for (const LayerRow& row : core_.index->layers()) {
        if (!roots.layers.contains(row.diff_id) || marked_.contains(row.diff_id)) continue;
        poll();
        try {
            for (const ChunkId& chunk : Recipe::open(core_.paths.recipe(row.diff_id))->chunks()) chunks_->mark(chunk);
        } catch (const Error& error) {
            if (error.code() == Errc::cancelled) throw;
            throw Error(Errc::corrupt, "layer " + row.diff_id.digest.text() +
                                           ": nobody can tell what it needs, so nothing was removed: " + error.what());
        }
        marked_.insert(row.diff_id);
    }
}

bool Liveness::has_marked(const Roots& roots) const {
    const std::vector<LayerRow> rows = core_.index->layers();
    return std::none_of(rows.begin(), rows.end(), [&](const LayerRow& row) {
        return roots.layers.contains(row.diff_id) && !marked_.contains(row.diff_id);
    });
}

std::optional<std::vector<PackUse>> Liveness::pack_uses() {
    std::set<std::uint32_t> unreadable;
    std::vector<PackUse> uses;
    const auto read_all = [&] {
        uses.clear();
        for (const PackRow& row : packs_) {
            poll();
            if (unreadable.contains(row.number)) continue;
            try {
                uses.push_back(use_of(row, read_pack_table(core_.paths.packs(), row.number), *chunks_));
            } catch (const Error& error) {  // A damaged pack is kept, for verify to report.
                if (error.code() != Errc::corrupt && error.code() != Errc::not_found) throw;
                unreadable.insert(row.number);
            }
        }
    };
    read_all();
    if (!unreadable.empty()) {
        chunks_->distrust(unreadable);
        read_all();
    }
    std::set<std::uint32_t> unclaimed = chunks_->unclaimed_packs();
    for (const std::uint32_t pack : unreadable) unclaimed.erase(pack);
    if (!unclaimed.empty()) return std::nullopt;
    return uses;
}

}  // namespace lamina::store
