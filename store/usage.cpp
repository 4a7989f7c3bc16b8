#include "store/usage.h"

#include "store/error.h"
#include "store/gc.h"
#include "store/recipe.h"

#include <sys/stat.h>

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

/// What a chunk takes on disk: its part of its frame, by its part of the frame's raw bytes.
struct ChunkShare {
    double stored_bytes = 0;
    std::uint32_t image_count = 0;
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

/// Calls `visit` once for each distinct chunk of an image.
template <class Visit>
void for_each_chunk(const StoreCore& core, const ImageRow& image, Shares& shares, std::int64_t mark, Visit&& visit) {
    for (const DiffId& layer : image.layers) {
        for (const ChunkId& chunk : Recipe::open(core.paths.recipe(layer))->chunks()) {
            const auto share = shares.find(chunk);
            if (share == shares.end() || share->second.last_image == mark) continue;
            share->second.last_image = mark;
            visit(share->second);
        }
    }
}

/// No file that is looked at goes meanwhile: under StoreCore::collecting.
std::vector<DiskUsage::Image> measure_rows(StoreCore& core, const std::vector<ImageRow>& images) {
    std::vector<DiskUsage::Image> measured;
    Shares shares;
    for (const PackRow& pack : core.index->packs()) add_shares(core, pack.number, shares);
    std::int64_t mark = 0;
    for (const ImageRow& image : images) {
        for_each_chunk(core, image, shares, mark++, [](ChunkShare& share) { ++share.image_count; });
    }
    for (const ImageRow& image : images) {
        double stored_bytes = 0;
        double unique_bytes = 0;
        for_each_chunk(core, image, shares, mark++, [&](const ChunkShare& share) {
            stored_bytes += share.stored_bytes;
            if (share.image_count == 1) unique_bytes += share.stored_bytes;
        });
        measured.push_back({.name = image.names.empty() ? std::string() : image.names.front(),
                            .config = image.config,
                            .logical_bytes = image.tree.logical_bytes,
                            .stored_bytes = static_cast<std::uint64_t>(stored_bytes),
                            .unique_bytes = static_cast<std::uint64_t>(unique_bytes)});
    }
    return measured;
}

}  // namespace

std::vector<DiskUsage::Image> measure_images(StoreCore& core) {
    const std::lock_guard collecting(core.collecting);
    return measure_rows(core, core.index->images());
}

DiskUsage measure_usage(StoreCore& core) {
    DiskUsage usage;
    for (const LayerRow& layer : core.index->layers()) usage.tar_bytes += layer.tar_bytes;
    core.index->shorten_log();  // Else what the next transaction frees by itself would be gc's.
    usage.reclaimable_bytes = collect(core, {.is_dry_run = true, .idle_mounts = {}}, {}).freed_bytes;
    const std::lock_guard collecting(core.collecting);
    usage.images = measure_rows(core, core.index->images());
    for (const DiskUsage::Image& image : usage.images) usage.logical_bytes += image.logical_bytes;
    measure_files(core, usage);
    return usage;
}

}  // namespace lamina::store
