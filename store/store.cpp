#include "store/store.h"

#include "store/error.h"
#include "store/explain.h"
#include "store/exporter.h"
#include "store/gc.h"
#include "store/image_paths.h"
#include "store/importer.h"
#include "store/printable.h"
#include "store/pusher.h"
#include "store/recipe.h"
#include "store/recompress.h"
#include "store/repair.h"
#include "store/reserve.h"
#include "store/scrub.h"
#include "store/size_limit.h"
#include "store/store_core.h"
#include "store/store_folder.h"
#include "store/tree_builder.h"
#include "store/usage.h"
#include "store/verify.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <system_error>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <ctime>
#include <filesystem>
#include <optional>
#include <unordered_map>
#include <utility>

// The facade: each call resolves what it is given to rows and hands on. Opening is also recovery, the same whether the
// last process ended or was cut off: staging is emptied, files that no row names are removed, and the chunk index is
// made to cover exactly the committed packs. Nothing else can be out of step, because rows are written after what they
// name and removed before it.

namespace lamina::store {

namespace {

constexpr std::uint64_t kCacheBytes = 64ull << 20;
constexpr std::uint64_t kFileCacheBytes = 8ull << 20;
constexpr std::size_t kReadBytes = 256 << 10;
constexpr std::size_t kMountIdDigits = 16;

std::string new_mount_id() {
    std::array<unsigned char, kMountIdDigits / 2> random{};
    if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
        throw_errno(errno, "random bytes");
    }
    std::string id;
    for (const unsigned char byte : random) {
        id += "0123456789abcdef"[byte >> 4];
        id += "0123456789abcdef"[byte & 15];
    }
    return id;
}

bool is_mount_id(const std::string& id) {
    return id.size() == kMountIdDigits && id.find_first_not_of("0123456789abcdef") == std::string::npos;
}

/// What ChunksCame::digits_of() tells, as a number.
std::uint64_t prefix_of(const ChunkId& chunk) {
    std::uint64_t prefix = 0;
    for (const std::byte byte : chunk.digest.bytes().first<sizeof prefix>())
        prefix = prefix << 8 | std::to_integer<std::uint64_t>(byte);
    return prefix;
}
std::uint64_t prefix_of(const std::string& digits) {
    std::uint64_t prefix = 0;
    std::from_chars(digits.data(), digits.data() + digits.size(), prefix, 16);
    return prefix;
}

class StoreImpl : public Store {
public:
    ~StoreImpl() override { core_.traces.flush(); }
    explicit StoreImpl(const std::string& path) : folder_(StoreFolder::open(path)), core_(folder_.paths()) {
        core_.index = Index::open(core_.paths.index(), !has_content());
        core_.chunks = ChunkStore::open(core_.paths.packs(), kCacheBytes);
        recover_chunk_index();
        remove_strays(core_);
        keep_reserve(core_.paths);
    }

    const std::string& root() const override { return core_.paths.root; }

    std::vector<ImageSummary> import(const ImportRequest& request, std::stop_token stop) override {
        return summaries(import_images(core_, request, stop));
    }
    ImageSummary pull(const PullRequest& request, std::stop_token stop) override {
        return summarize(pull_image(core_, request, stop));
    }
    ImageSummary complete(const CompleteRequest& request, std::stop_token stop) override;
    PushReport push(const PushRequest& request, std::stop_token stop) override {
        return push_image(core_, request, stop);
    }
    ImageSummary commit(const CommitRequest& request, ByteSource& layer_tar, std::stop_token stop) override {
        return summary_of(commit_image(core_, request, layer_tar, stop));
    }
    void save(const SaveRequest& request, std::stop_token stop) override {
        save_image(core_, request, stop);
        record_use(request.image);
    }

    std::vector<ImageSummary> images() override { return summaries(core_.index->images()); }
    ImageDetails inspect(const std::string& image) override;
    void tag(const std::string& image, const ImageName& name) override;
    void record_use(const std::string& image) override;
    void set_pinned(const std::string& image, bool is_pinned) override;
    void remove_image(const std::string& image, bool force) override;

    std::vector<ListedName> list(const std::string& image, const std::string& path) override;
    void read_file(const std::string& image, const std::string& path, ByteSink& out) override;

    DiskUsage disk_usage() override { return measure_usage(core_); }
    using Store::gc;
    GcReport gc(const GcRequest& request, std::stop_token stop) override;
    SizeLimitReport limit_size(const SizeLimitRequest& request, std::stop_token stop) override;
    VerifyReport verify(bool check_data, const ProgressFunction& progress, std::stop_token stop) override {
        return verify_store(core_, check_data, progress, stop);
    }

    RepairReport repair(const RepairRequest& request, std::stop_token stop) override;
    UpkeepReport upkeep(const UpkeepRequest& request, std::stop_token stop) override;

    std::string create_mount(const std::string& image, const std::string& mountpoint, bool is_read_only,
                             const std::string& name) override;
    void begin_mount(const std::string& mount_id, bool must_be_verified) override;
    void note_reads(const std::string& mount_id, const std::vector<std::string>& chunks) override;
    std::vector<std::byte> fetch_chunk(const ChunkRequest& request, std::stop_token stop) override;
    void discard_mount(const std::string& id) override;
    Explanation explain(const ExplainRequest& request, std::stop_token stop) override {
        return explain_bytes(core_, request, stop);
    }

private:
    ImageSummary summarize(const ImageRow& row) {
        ImageSummary summary = summary_of(row);
        for (const DiffId& layer : row.layers) {
            const LayerState state = core_.lazy.state(layer);
            if (state > summary.state) summary.state = state;
            if (summary.quarantine.empty()) summary.quarantine = core_.lazy.why_quarantined(layer);
        }
        summary.is_lazy = summary.state == LayerState::lazy || summary.state == LayerState::complete;
        return summary;
    }
    std::vector<ImageSummary> summaries(const std::vector<ImageRow>& rows) {
        std::vector<ImageSummary> all;
        for (const ImageRow& row : rows) all.push_back(summarize(row));
        return all;
    }
    StartTraces::Image traced(const MountBase& base) const;
    void prefetch_start(const MountBase& base);
    /// Then a missing index is a loss, not a beginning: opening must not take what it no longer names for strays.
    bool has_content() const {
        return !list_folder(core_.paths.packs()).empty() || !list_folder(core_.paths.layers()).empty() ||
               !list_folder(core_.paths.trees()).empty();
    }
    void recover_chunk_index();
    std::vector<std::uint32_t> readable_packs() const;
    void check_tree(const ImageRow& image, const std::stop_token& stop);
    std::vector<KeptMount> mounts_of(const ImageRow& image) const;

    StoreFolder folder_;   // First, so that the lock goes last.
    std::mutex limiting_;  // One limit_size() at a time; taken before all others.
    StoreCore core_;
};

void StoreImpl::recover_chunk_index() {
    try {
        return agree_chunk_index_somehow(core_);
    } catch (const Error& error) {
        if (error.code() != Errc::corrupt && error.code() != Errc::not_found) throw;
    }
    // A committed pack is damaged beyond its frame headers: what is whole must stay usable; verify tells more.
    core_.chunks->rebuild(readable_packs());
}

std::vector<std::uint32_t> StoreImpl::readable_packs() const {
    std::vector<std::uint32_t> readable;
    for (const PackRow& pack : core_.index->packs()) {
        try {
            static_cast<void>(read_pack_table(core_.paths.packs(), pack.number));
            readable.push_back(pack.number);
        } catch (const Error&) {  // That it cannot be read is the answer.
        }
    }
    return readable;
}

RepairReport StoreImpl::repair(const RepairRequest& request, std::stop_token stop) {
    RepairReport report;
    report.done = repair_store(core_, request, stop);
    report.left = verify_store(core_, true, request.progress, stop);
    return report;
}

UpkeepReport StoreImpl::upkeep(const UpkeepRequest& request, std::stop_token stop) {
    const RecompressResult compressed = recompress(core_, request, stop);
    UpkeepReport report{.compressed_bytes = compressed.raw_bytes,
                        .freed_bytes = compressed.freed_bytes,
                        .packs_written = compressed.packs_written,
                        .packs_removed = compressed.packs_removed,
                        .problems = {}};
    if (!request.scrubs || !is_scrub_due(core_, request.scrub_pause_seconds)) return report;
    ScrubResult scrubbed = scrub(core_, request, stop);
    report.read_bytes = scrubbed.read_bytes;
    report.problems = std::move(scrubbed.problems);
    return report;
}

ImageDetails StoreImpl::inspect(const std::string& image) {
    const FoundImage found = find_image(core_, image);
    const ImageDocuments documents = core_.index->documents(found.row.id);
    const auto text_of = [](const std::vector<std::byte>& bytes) {
        return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    };
    ImageDetails details{.summary = summarize(found.row),
                         .manifest_json = text_of(documents.manifest),
                         .config_json = text_of(documents.config),
                         .layers = {}};
    for (const DiffId& layer : found.row.layers) {
        const auto row = core_.index->find_layer(layer);
        if (row) details.layers.push_back({row->diff_id, row->tar_bytes, row->entry_count});
    }
    return details;
}

void StoreImpl::tag(const std::string& image, const ImageName& name) {
    // Under the leases' lock, because gc decides under it which images without a name it takes away.
    core_.leases.with_all(
        [&](const Leases::Held&, auto&&) { core_.index->set_name(name, find_image(core_, image).row.id); });
}

void StoreImpl::set_pinned(const std::string& image, bool is_pinned) {
    // Under the leases' lock, because gc decides under it which images it takes away.
    core_.leases.with_all(
        [&](const Leases::Held&, auto&&) { core_.index->set_pinned(find_image(core_, image).row.id, is_pinned); });
}

/// What was asked for is done already: that it cannot be written down, on a full disk, must not undo it.
void StoreImpl::record_use(const std::string& image) {
    try {
        core_.index->record_use(find_image(core_, image).row.id, std::time(nullptr));
    } catch (const Error&) {  // Then a limit takes it for less used than it is.
    }
}

std::vector<KeptMount> StoreImpl::mounts_of(const ImageRow& image) const {
    std::vector<KeptMount> mounts = kept_mounts(core_);
    const std::string config = image.config.digest.text();
    std::erase_if(mounts, [&](const KeptMount& mount) { return mount.base.config_digest != config; });
    return mounts;
}

void StoreImpl::remove_image(const std::string& image, bool force) {
    const std::lock_guard mounting(core_.mounting);
    const FoundImage found = find_image(core_, image);
    if (found.by_name && found.row.names.size() > 1 && !force) return core_.index->remove_name(*found.by_name);
    if (found.row.is_pinned && !force) {
        throw Error(Errc::busy, "image " + display_name(found.row) + ": is pinned: unpin it first, or force");
    }
    const std::vector<KeptMount> mounts = mounts_of(found.row);
    const auto remove = [&] {
        mounts.empty() ? core_.index->remove_image(found.row.id) : core_.index->hide_image(found.row.id);
    };
    if (!mounts.empty() && !force) {
        throw Error(Errc::busy, "image " + display_name(found.row) + ": mount " + mounts.front().id + " at " +
                                    store::quote(mounts.front().base.mountpoint) +
                                    " needs it: discard the mount first, or force");
    }
    try {
        remove();
    } catch (const Error& error) {
        if (error.code() != Errc::no_space || !give_up_reserve(core_.paths)) throw;
        remove();
    }
}

std::vector<ListedName> StoreImpl::list(const std::string& image, const std::string& path) {
    Leases::Lease lease = core_.leases.take();
    const TreeDigest digest = keep_image(core_, lease, image).row.tree.digest;
    const auto tree = ImageTree::open(core_.paths.tree(digest), digest);
    const auto named = [&](std::string name, TreeIno ino) {
        ListedName listed{.path = std::move(name), .attributes = tree->attributes(ino), .ino = ino, .link_target = {}};
        if (listed.attributes.type == FileType::symlink) listed.link_target = tree->link_target(ino);
        return listed;
    };
    std::string folder = path;
    while (folder.ends_with('/')) folder.pop_back();
    while (folder.starts_with('/')) folder.erase(0, 1);
    TreeIno ino = resolve_path_no_follow(*tree, path);
    if (tree->attributes(ino).type == FileType::symlink) {
        try {
            const TreeIno target = resolve_path(*tree, path);
            if (tree->attributes(target).type == FileType::directory) ino = target;
        } catch (const Error& error) {  // A link that leads nowhere is listed as itself.
            if (error.code() != Errc::not_found) throw;
        }
    }
    std::vector<ListedName> names;
    if (tree->attributes(ino).type != FileType::directory) {
        names.push_back(named(folder, ino));
        return names;
    }
    const std::uint32_t count = tree->entry_count(ino);
    for (std::uint32_t position = 0; position < count; ++position) {
        const TreeName entry = tree->entry(ino, position);
        names.push_back(named((folder.empty() ? "" : folder + "/") + std::string(entry.name), entry.ino));
    }
    return names;
}

void StoreImpl::read_file(const std::string& image, const std::string& path, ByteSink& out) {
    Leases::Lease lease = core_.leases.take();
    const TreeDigest digest = keep_image(core_, lease, image).row.tree.digest;
    const auto view = ReadView::open(core_.paths.root, digest, kFileCacheBytes);
    const TreeIno ino = resolve_path(view->tree(), path);
    const FileType type = view->tree().attributes(ino).type;
    if (type == FileType::directory) throw Error(Errc::malformed, store::quote(path) + ": is a directory");
    if (type != FileType::regular) throw Error(Errc::malformed, store::quote(path) + ": is not a regular file");
    std::vector<std::byte> buffer(kReadBytes);
    std::uint64_t offset_bytes = 0;
    while (const std::size_t got = view->read(ino, offset_bytes, buffer)) {
        out.write(std::span(buffer).first(got));
        offset_bytes += got;
    }
}

GcReport StoreImpl::gc(const GcRequest& request, std::stop_token stop) {
    std::uint64_t mount_bytes = 0;
    for (const std::string& id : request.idle_mounts) {
        const std::uint64_t bytes = bytes_below(core_.paths.mount(id));
        try {
            if (!request.is_dry_run) discard_mount(id);
            mount_bytes += bytes;
        } catch (const Error& error) {  // Mounted again just now, or gone.
            if (error.code() != Errc::busy && error.code() != Errc::not_found) throw;
        }
    }
    GcReport report = collect(core_, request, stop);
    report.freed_bytes += mount_bytes;
    return report;
}

SizeLimitReport StoreImpl::limit_size(const SizeLimitRequest& request, std::stop_token stop) {
    const std::lock_guard alone(limiting_);
    const auto collect = [&] {
        static_cast<void>(gc({.is_dry_run = false, .idle_mounts = request.idle_mounts}, stop));
    };
    return store::limit_size(core_, request, collect, stop);
}

std::string StoreImpl::create_mount(const std::string& image, const std::string& mountpoint, bool is_read_only,
                                    const std::string& name) {
    const std::lock_guard mounting(core_.mounting);
    Leases::Lease lease = core_.leases.take();
    const FoundImage found = keep_image(core_, lease, image);
    std::string id = new_mount_id();
    while (exists(core_.paths.mount(id))) id = new_mount_id();
    const std::string folder = core_.paths.mount(id);
    const std::string staged = core_.paths.staging() + "/mount-" + id;
    const MountBase base{.tree = found.row.tree.digest,
                         .layers = found.row.layers,
                         .image = found.by_name ? found.by_name->text() : display_name(found.row),
                         .manifest_digest = found.row.manifest.digest.text(),
                         .config_digest = found.row.config.digest.text(),
                         .mountpoint = mountpoint,
                         .is_read_only = is_read_only};
    try {
        create_mount_folder(folder, staged, base, name);
    } catch (...) {  // Nothing of it stays, whatever went wrong.
        std::error_code ignored;
        std::filesystem::remove_all(staged, ignored);
        std::filesystem::remove_all(folder, ignored);
        throw;
    }
    record_use(image);
    return id;
}

std::vector<std::byte> StoreImpl::fetch_chunk(const ChunkRequest& request, std::stop_token stop) {
    const std::string& id = request.mount_id;
    if (!is_mount_id(id)) throw Error(Errc::malformed, "mount " + store::quote(id) + ": not an ID");
    const MountBase base = read_mount_base(core_.paths.mount(id));
    LazyFetcher::Fetched fetched = core_.lazy.fetch(
        {.mount_id = id, .chunk = request.chunk, .layers = base.layers, .takes_bytes = request.takes_bytes}, stop);
    core_.traces.note(id, traced(base), fetched.wanted, StartTraces::Clock::now());
    return std::move(fetched.bytes);
}

ImageSummary StoreImpl::complete(const CompleteRequest& request, std::stop_token stop) {
    Leases::Lease lease = core_.leases.take();
    const ImageRow image = keep_image(core_, lease, request.image).row;
    bool was_lazy = false;
    for (const DiffId& layer : image.layers) {
        was_lazy = core_.lazy.is_lazy(layer) || was_lazy;
        core_.lazy.complete(layer, request.completion, stop);
    }
    if (was_lazy) check_tree(image, stop);
    return summarize(image);
}

void StoreImpl::check_tree(const ImageRow& image, const std::stop_token& stop) {
    std::vector<std::unique_ptr<Recipe>> recipes;
    for (const DiffId& layer : image.layers) recipes.push_back(Recipe::open(core_.paths.recipe(layer)));
    const JobFolder folder(core_);
    if (build_tree(recipes, folder.path(), stop).digest == image.tree.digest) return;
    throw Error(Errc::corrupt,
                "image " + display_name(image) + ": its tree is not what its layers give; lamina verify --repair");
}

StartTraces::Image StoreImpl::traced(const MountBase& base) const {
    return {.config = {Digest::parse(base.config_digest)}, .repository = repository_of(base.image)};
}

void StoreImpl::begin_mount(const std::string& mount_id, bool must_be_verified) {
    const MountBase base = read_mount_base(core_.paths.mount(mount_id));
    bool is_lazy = false;
    for (const DiffId& layer : base.layers) {
        core_.lazy.check_not_quarantined(layer);
        is_lazy = is_lazy || core_.lazy.is_lazy(layer);
    }
    if (!is_lazy) return;
    if (must_be_verified) {
        throw Error(Errc::denied, "image " + base.image + ": is not verified, and this store mounts no such image; " +
                                      "lamina complete verifies it");
    }
    core_.traces.begin(mount_id);
    core_.fetches.add(MountBegun{mount_id, {Digest::parse(base.config_digest)}, core_.fetches.now_us()});
    prefetch_start(base);
}

void StoreImpl::note_reads(const std::string& mount_id, const std::vector<std::string>& chunks) {
    if (!is_mount_id(mount_id) || chunks.empty()) return;
    try {
        const MountBase base = read_mount_base(core_.paths.mount(mount_id));
        std::unordered_map<std::uint64_t, std::size_t> wanted;  // To their places in the run.
        for (const std::string& digits : chunks) wanted.try_emplace(prefix_of(digits), wanted.size());
        const auto trace = core_.traces.find(traced(base).config);
        const auto is_wanted = [&](const ChunkId& chunk) { return wanted.contains(prefix_of(chunk)); };
        if (trace && std::cmp_equal(std::ranges::count_if(trace->chunks, is_wanted), wanted.size())) return;
        std::vector<std::optional<ChunkId>> found(wanted.size());
        for (const DiffId& layer : base.layers) {
            for (const ChunkId& chunk : Recipe::open(core_.paths.recipe(layer))->chunks()) {
                const auto place = wanted.find(prefix_of(chunk));
                if (place != wanted.end()) found[place->second] = chunk;
            }
        }
        std::vector<ChunkId> run;
        for (const std::optional<ChunkId>& chunk : found) {
            if (chunk) run.push_back(*chunk);
        }
        core_.traces.add_run(traced(base), run);
    } catch (const Error&) {  // The next start is slower then, and nothing else.
    }
}

/// Ahead of whoever reads; what cannot be had is told to him.
void StoreImpl::prefetch_start(const MountBase& base) {
    try {
        const auto is_ours = [&](const ChunkId& chunk) { return core_.lazy.knows(chunk, base.layers); };
        const auto trace = core_.traces.find_for(traced(base), is_ours);
        if (trace) core_.lazy.prefetch(trace->chunks, base.layers);
    } catch (const Error&) {  // As when there is no trace.
    }
}

void StoreImpl::discard_mount(const std::string& id) {
    const std::lock_guard mounting(core_.mounting);
    const std::string folder = core_.paths.mount(id);
    if (!is_mount_id(id) || !exists(folder))
        throw Error(Errc::not_found, "mount " + store::quote(id) + ": there is none");
    const UniqueFd lock(::open((folder + "/lock").c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    if (lock && ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
        throw Error(Errc::busy, "mount " + id + ": its server runs: unmount it first");
    }
    remove_file(folder + "/base");  // First: what is left after a crash is no mount any more.
    sync_folder(folder);
    remove_tree(folder);
}

}  // namespace

std::unique_ptr<Store> Store::open(const std::string& root) {
    return std::make_unique<StoreImpl>(root);
}

}  // namespace lamina::store
