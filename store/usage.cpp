#include "store/usage.h"

#include "store/error.h"
#include "store/gc.h"
#include "store/recipe.h"

#include <sys/stat.h>

#include <algorithm>
#include <functional>
#include <set>
#include <unordered_map>
#include <utility>

namespace lamina::store {

std::uint64_t bytes_below(const std::string& path) {
    struct stat st {};
    if (::lstat(path.c_str(), &st) != 0) return 0;  // Gone since it was listed.
    if (!S_ISDIR(st.st_mode)) return static_cast<std::uint64_t>(st.st_size);
    std::uint64_t bytes = 0;
    for (const std::string& name : list_folder(path)) bytes += bytes_below(path + "/" + name);
    return bytes;
}

namespace {

constexpr std::size_t kMostShares = 500;

void measure_files(const StoreCore& core, DiskUsage& usage) {
    const StorePaths& paths = core.paths;
    for (const std::string& name : list_folder(paths.packs())) {
        const std::uint64_t bytes = bytes_below(paths.packs() + "/" + name);
        (pack_number_of(name) ? usage.pack_bytes : usage.index_bytes) += bytes;
    }
    usage.recipe_bytes = bytes_below(paths.layers());
    usage.tree_bytes = bytes_below(paths.trees());
    usage.mount_bytes = bytes_below(paths.mounts());
    const std::set<std::string> counted{"packs", "layers", "trees", "mounts", "lost+found"};
    for (const std::string& name : list_folder(paths.root)) {
        if (counted.contains(name)) continue;
        const std::uint64_t bytes = bytes_below(paths.root + "/" + name);
        (name.starts_with("index.sqlite") ? usage.index_bytes : usage.other_bytes) += bytes;
    }
}

/// Sets of images, each under a number of its own. A set is an earlier one and one image more; 0 has none.
class ImageSets {
public:
    std::uint32_t with(std::uint32_t set, std::uint32_t image) {
        const auto [known, is_new] =
            numbers_.try_emplace(std::uint64_t{set} << 32 | image, static_cast<std::uint32_t>(sets_.size()));
        if (is_new) sets_.push_back({set, image});
        return known->second;
    }
    std::size_t size() const { return sets_.size(); }
    std::vector<std::uint32_t> images_of(std::uint32_t set) const {
        std::vector<std::uint32_t> images;
        for (; set != 0; set = sets_[set].before) images.push_back(sets_[set].image);
        std::ranges::reverse(images);
        return images;
    }

private:
    struct Set {
        std::uint32_t before = 0;
        std::uint32_t image = 0;
    };
    std::vector<Set> sets_{{}};
    std::unordered_map<std::uint64_t, std::uint32_t> numbers_;
};

/// What a chunk takes on disk: its part of its frame, by its part of the frame's raw bytes.
struct ChunkShare {
    double stored_bytes = 0;
    std::uint32_t users = 0;  ///< A set.
    std::int64_t last_image = -1;
};
using Shares = std::unordered_map<ChunkId, ChunkShare>;

void add_shares(const StoreCore& core, std::uint32_t pack, Shares& shares) {
    const std::vector<NewChunk> chunks = read_pack_table(core.paths.packs(), pack);
    for (std::size_t begin = 0; begin < chunks.size();) {
        std::size_t end = begin;
        std::uint64_t raw_bytes = 0;
        const ChunkPlace& frame = chunks[begin].place;
        while (end < chunks.size() && chunks[end].place.frame_offset_bytes == frame.frame_offset_bytes) {
            raw_bytes += chunks[end++].place.size_bytes;
        }
        for (; begin < end; ++begin) {
            const double part = static_cast<double>(chunks[begin].place.size_bytes) / static_cast<double>(raw_bytes);
            shares.try_emplace(chunks[begin].id, ChunkShare{.stored_bytes = frame.frame_size_bytes * part});
        }
    }
}

void add_user(const StoreCore& core, const ImageRow& row, std::uint32_t image, Shares& shares, ImageSets& sets) {
    for (const DiffId& layer : row.layers) {
        for (const ChunkId& chunk : Recipe::open(core.paths.recipe(layer))->chunks()) {
            const auto share = shares.find(chunk);
            if (share == shares.end() || share->second.last_image == image) continue;
            share->second.last_image = image;
            share->second.users = sets.with(share->second.users, image);
        }
    }
}

/// What each set of images has that no other image has.
std::vector<DiskUsage::Share> shares_of(const Shares& chunks, const ImageSets& sets) {
    std::vector<double> bytes(sets.size());
    for (const auto& [chunk, share] : chunks) bytes[share.users] += share.stored_bytes;
    std::vector<DiskUsage::Share> shares;
    for (std::uint32_t set = 1; set < sets.size(); ++set) {
        const auto stored_bytes = static_cast<std::uint64_t>(bytes[set]);
        if (stored_bytes != 0) shares.push_back({sets.images_of(set), stored_bytes});
    }
    std::ranges::stable_sort(shares, std::greater<>(), &DiskUsage::Share::stored_bytes);
    return shares;
}

/// No file that is looked at goes meanwhile: under StoreCore::collecting.
void measure_rows(StoreCore& core, const std::vector<ImageRow>& rows, DiskUsage& usage) {
    Shares chunks;
    ImageSets sets;
    for (const PackRow& pack : core.index->packs()) add_shares(core, pack.number, chunks);
    for (std::uint32_t image = 0; image < rows.size(); ++image) add_user(core, rows[image], image, chunks, sets);
    for (const ImageRow& row : rows) {
        usage.images.push_back({.name = row.names.empty() ? std::string() : row.names.front(),
                                .config = row.config,
                                .logical_bytes = row.tree.logical_bytes});
        usage.logical_bytes += row.tree.logical_bytes;
    }
    usage.shares = shares_of(chunks, sets);
    for (const DiskUsage::Share& share : usage.shares) {
        for (const std::uint32_t image : share.images) usage.images[image].stored_bytes += share.stored_bytes;
        if (share.images.size() == 1) usage.images[share.images[0]].unique_bytes += share.stored_bytes;
    }
    if (usage.shares.size() <= kMostShares) return;
    DiskUsage::Share various;
    for (std::size_t i = kMostShares; i < usage.shares.size(); ++i)
        various.stored_bytes += usage.shares[i].stored_bytes;
    usage.shares.resize(kMostShares);
    usage.shares.push_back(std::move(various));
    std::ranges::stable_sort(usage.shares, std::greater<>(), &DiskUsage::Share::stored_bytes);
}

}  // namespace

std::vector<DiskUsage::Image> measure_images(StoreCore& core) {
    const std::lock_guard collecting(core.collecting);
    DiskUsage usage;
    measure_rows(core, core.index->images(), usage);
    return usage.images;
}

DiskUsage measure_usage(StoreCore& core) {
    DiskUsage usage;
    for (const LayerRow& layer : core.index->layers()) usage.tar_bytes += layer.tar_bytes;
    core.index->shorten_log();  // Else what the next transaction frees by itself would be gc's.
    usage.reclaimable_bytes = collect(core, {.is_dry_run = true, .idle_mounts = {}}, {}).freed_bytes;
    const std::lock_guard collecting(core.collecting);
    measure_rows(core, core.index->images(), usage);
    measure_files(core, usage);
    return usage;
}

}  // namespace lamina::store
