#include "store/verify.h"

#include "store/error.h"
#include "store/printable.h"
#include "store/recipe.h"

#include <map>
#include <set>
#include <unordered_set>
#include <utility>

// From the index outwards: the database, then each pack (frames, and with check_data every chunk), the chunk index
// against the packs' own tables, each recipe and the chunks that it names, each tree. A chunk that is missing or bad is
// then told by image and path. No gc runs meanwhile; imports may.

namespace lamina::store {

namespace {

constexpr std::size_t kMaxPathsPerImage = 100;
constexpr std::size_t kMaxProblemsPerKind = 1000;

class Verifier {
public:
    Verifier(StoreCore& core, bool check_data, const ProgressFunction& progress, const std::stop_token& stop)
        : core_(core), check_data_(check_data), progress_(progress), stop_(stop) {}

    VerifyReport run() {
        const std::lock_guard collecting(core_.collecting);
        for (std::string& problem : core_.index->check()) problems_.push_back(std::move(problem));
        const auto packs = core_.index->packs();
        const auto layers = core_.index->layers();
        const auto trees = core_.index->trees();
        for (const PackRow& pack : packs) total_bytes_ += pack.file_bytes;
        for (const LayerRow& layer : layers) total_bytes_ += layer.recipe_bytes;
        for (const TreeRow& tree : trees) total_bytes_ += tree.file_bytes;
        attempt("chunk index", [&] { agree_chunk_index(core_); });
        attempt("chunk index", [&] {
            for (std::string& found : check_chunk_index(core_.paths.packs())) problem(std::move(found));
        });
        for (const PackRow& pack : packs) check_pack_row(pack);
        for (const LayerRow& layer : layers) check_layer(layer);
        for (const TreeRow& tree : trees) check_tree(tree);
        const auto images = core_.index->all_images();
        for (const ImageRow& image : images) check_image(image);
        check_mounts();
        return {.chunks_checked = chunks_checked_, .bytes_checked = done_bytes_, .problems = std::move(problems_)};
    }

private:
    template <class Check>
    void attempt(const std::string& what, Check&& check) {
        if (stop_.stop_requested()) throw Error(Errc::cancelled, "verify was stopped");
        try {
            check();
        } catch (const Error& error) {  // A check that cannot go on is a problem that is found, not a failure.
            if (error.code() == Errc::cancelled) throw;
            problem(what + ": " + error.what());
        }
    }
    void problem(std::string text) { problems_.push_back(std::move(text)); }
    void done(const std::string& phase, const std::string& item, std::uint64_t bytes) {
        done_bytes_ += bytes;
        if (progress_) progress_({phase, item, done_bytes_, total_bytes_});
    }
    void check_size(const std::string& what, const std::string& path, std::uint64_t expected_bytes) {
        attempt(what, [&] {
            const std::uint64_t size_bytes = file_size(path);
            if (size_bytes != expected_bytes) {
                problem(what + ": has " + std::to_string(size_bytes) + " bytes, the index says " +
                        std::to_string(expected_bytes));
            }
        });
    }

    void check_pack_row(const PackRow& pack) {
        const std::string what = "pack " + std::to_string(pack.number);
        const std::string& folder = core_.paths.packs();
        check_size(what, pack_path(folder, pack.number), pack.file_bytes);
        attempt(what, [&] {
            for (std::string& text :
                 check_pack(folder, pack.number, check_data_, [&](const ChunkId& chunk) { bad_.insert(chunk); })) {
                problem(std::move(text));
            }
        });
        lost_packs_.insert(pack.number);  // Until its table has been read.
        attempt(what, [&] {
            std::size_t wrong = 0;
            for (const NewChunk& chunk : read_pack_table(folder, pack.number)) {
                ++chunks_checked_;
                const auto place = core_.chunks->find(chunk.id);
                const bool is_right = place && (place->pack != pack.number || is_same(*place, chunk.place));
                if (!is_right && ++wrong <= kMaxProblemsPerKind) {
                    problem("chunk index: " + chunk.id.digest.text() + " is not where " + what + " has it");
                }
            }
            lost_packs_.erase(pack.number);
        });
        done("checking packs", what, pack.file_bytes);
    }
    static bool is_same(const ChunkPlace& one, const ChunkPlace& other) {
        return one.pack == other.pack && one.frame_offset_bytes == other.frame_offset_bytes &&
               one.frame_size_bytes == other.frame_size_bytes &&
               one.offset_in_frame_bytes == other.offset_in_frame_bytes && one.size_bytes == other.size_bytes;
    }

    bool is_good(const ChunkId& chunk) {
        if (bad_.contains(chunk)) return false;
        const auto place = core_.chunks->find(chunk);
        return place && !lost_packs_.contains(place->pack);
    }

    /// What save promises: the layer's tar, byte for byte.
    void check_tar(const std::string& what, const LayerRow& layer, const Recipe& recipe) {
        class HashingSink : public ByteSink {
        public:
            explicit HashingSink(const std::stop_token& stop) : stop_(stop) {}
            void write(std::span<const std::byte> data) override {
                if (stop_.stop_requested()) throw Error(Errc::cancelled, "verify was stopped");
                hasher.update(data);
            }
            Hasher hasher;

        private:
            const std::stop_token& stop_;
        };
        HashingSink out(stop_);
        recipe.write_tar(*core_.chunks, out);
        if (out.hasher.finish() != layer.diff_id.digest) problem(what + ": its recipe gives another tar");
    }

    void check_layer(const LayerRow& layer) {
        const std::string what = "layer " + layer.diff_id.digest.text();
        const std::string path = core_.paths.recipe(layer.diff_id);
        const std::size_t problems_before = problems_.size();
        check_size(what, path, layer.recipe_bytes);
        attempt(what, [&] {
            const auto recipe = Recipe::open(path);
            if (recipe->diff_id() != layer.diff_id) problem(what + ": its recipe is of another layer");
            if (recipe->tar_bytes() != layer.tar_bytes) problem(what + ": its recipe is of another size");
            std::uint64_t entry_count = 0;
            for (const auto entries = recipe->entries(); entries->next();) ++entry_count;
            if (entry_count != layer.entry_count) problem(what + ": its recipe has another number of entries");
            std::size_t bad_count = 0;
            const bool is_lazy = core_.lazy.is_lazy(layer.diff_id);
            for (const ChunkId& chunk : recipe->chunks()) {
                if (is_good(chunk)) continue;
                if (is_lazy && !core_.chunks->find(chunk)) {
                    awaited_.insert(chunk);
                } else {
                    ++bad_count;
                }
            }
            if (bad_count > 0) problem(what + ": " + std::to_string(bad_count) + " of its chunks are missing or bad");
            if (check_data_ && bad_count == 0 && !is_lazy) check_tar(what, layer, *recipe);
        });
        if (problems_.size() != problems_before) hit_layers_.insert(layer.diff_id);
        done("checking layers", what, layer.recipe_bytes);
    }

    void check_tree(const TreeRow& row) {
        const std::string what = "tree " + row.digest.digest.text();
        const std::string path = core_.paths.tree(row.digest);
        const std::size_t problems_before = problems_.size();
        check_size(what, path, row.file_bytes);
        attempt(what, [&] {
            for (const std::string& text : ImageTree::open(path, row.digest)->check()) problem(what + ": " + text);
        });
        if (problems_.size() != problems_before) hit_trees_.insert(row.digest);
        done("checking trees", what, row.file_bytes);
    }

    void check_image(const ImageRow& image) {
        const std::string what = "image " + display_name(image);
        if (hit_trees_.contains(image.tree.digest)) return problem(what + ": its tree is damaged");
        for (const DiffId& layer : image.layers) {
            if (hit_layers_.contains(layer)) problem(what + ": its layer " + layer.digest.text() + " is damaged");
        }
        attempt(what, [&] {
            const auto tree = ImageTree::open(core_.paths.tree(image.tree.digest), image.tree.digest);
            std::size_t paths = 0;
            check_folder(*tree, kTreeRoot, "", [&](const std::string& path) {
                if (++paths <= kMaxPathsPerImage) problem(what + ": " + quote(path) + " cannot be read");
            });
            if (paths > kMaxPathsPerImage) {
                problem(what + ": and " + std::to_string(paths - kMaxPathsPerImage) + " more files");
            }
        });
    }

    /// Folders are walked with a list, not by recursion: a tree may be as deep as its paths are long.
    template <class Report>
    void check_folder(const ImageTree& tree, TreeIno root, const std::string& root_path, Report&& report) {
        std::vector<std::pair<TreeIno, std::string>> folders{{root, root_path}};
        while (!folders.empty()) {
            const auto [folder, path] = std::move(folders.back());
            folders.pop_back();
            const std::uint32_t count = tree.entry_count(folder);
            for (std::uint32_t position = 0; position < count; ++position) {
                const TreeName entry = tree.entry(folder, position);
                std::string entry_path = path + "/" + std::string(entry.name);
                if (entry.type == FileType::directory) folders.emplace_back(entry.ino, std::move(entry_path));
                if (entry.type == FileType::regular && !is_file_good(tree, entry.ino)) report(entry_path);
            }
        }
    }

    bool is_file_good(const ImageTree& tree, TreeIno file) {
        const std::uint64_t size_bytes = tree.attributes(file).size_bytes;
        if (size_bytes == 0) return true;
        for (const ImageTree::PlacedPart& placed : tree.parts(file, 0, size_bytes)) {
            const ChunkId& chunk = placed.part.chunk;
            if (!placed.part.is_hole && !is_good(chunk) && !awaited_.contains(chunk)) return false;
        }
        return true;
    }

    void check_mounts() {
        attempt("mounts", [&] {
            for (const KeptMount& mount : kept_mounts(core_)) {
                const bool has_tree = core_.index->has_tree(mount.base.tree);
                if (!has_tree) problem("mount " + mount.id + ": its image tree is not in the store");
            }
        });
    }

    StoreCore& core_;
    const bool check_data_;
    const ProgressFunction& progress_;
    const std::stop_token& stop_;
    std::vector<std::string> problems_;
    std::unordered_set<ChunkId> bad_;
    std::unordered_set<ChunkId> awaited_;  ///< Missing of lazy layers: fetched when they are read.
    std::set<std::uint32_t> lost_packs_;
    std::set<DiffId> hit_layers_;
    std::set<TreeDigest> hit_trees_;
    std::uint64_t chunks_checked_ = 0;
    std::uint64_t done_bytes_ = 0;
    std::uint64_t total_bytes_ = 0;
};

}  // namespace

VerifyReport verify_store(StoreCore& core, bool check_data, const ProgressFunction& progress,
                          const std::stop_token& stop) {
    return Verifier(core, check_data, progress, stop).run();
}

}  // namespace lamina::store
