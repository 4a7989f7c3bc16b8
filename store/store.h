#pragma once

#include "store/byte_stream.h"
#include "store/content.h"
#include "store/digest.h"
#include "store/layer_stream.h"
#include "store/lazy_fetcher.h"
#include "store/oci.h"
#include "store/progress.h"
#include "store/read_view.h"
#include "store/reference.h"
#include "store/registry_auth.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

namespace lamina::store {

struct Explanation;  // explain.h
struct ExplainRequest;

struct ImageSummary {
    std::vector<std::string> names;
    BlobDigest manifest;  ///< Of the manifest that was imported (or made).
    BlobDigest config;    ///< The image ID.
    TreeDigest tree;
    std::vector<DiffId> layers;  ///< Bottom first.
    oci::Platform platform;
    std::string created;           ///< RFC 3339, from the config.
    std::int64_t imported_at = 0;  ///< Unix seconds.
    std::int64_t used_at = 0;      ///< Of the last import, mount or save.
    bool is_pinned = false;
    std::uint64_t logical_bytes = 0;
    std::uint64_t inode_count = 0;
    bool is_lazy = false;                     ///< Layers are missing, or not compared with their digests yet.
    LayerState state = LayerState::verified;  ///< Of the layer that is worst off.
    std::string quarantine;                   ///< Why it is quarantined.
};

struct ImageDetails {
    ImageSummary summary;
    std::string manifest_json;  ///< The original bytes.
    std::string config_json;    ///< The original bytes.
    struct Layer {
        DiffId diff_id;
        std::uint64_t tar_bytes = 0;
        std::uint64_t entry_count = 0;
    };
    std::vector<Layer> layers;
};

struct ImportRequest {
    std::string source;             ///< blob_source.h
    std::optional<ImageName> name;  ///< Instead of the source's own; only when it has one image.
    oci::Platform platform = oci::Platform::host();
    ProgressFunction progress;  ///< May be empty.
};

struct PullRequest {
    std::string reference;          ///< registry_reference.h
    std::optional<ImageName> name;  ///< Instead of `reference`, which is the image's name as it was typed.
    oci::Platform platform = oci::Platform::host();
    /// Only documents and the index that push() published; layers when they are read. `automatic`: where there is one.
    enum class Lazy { never, automatic, always } lazy = Lazy::never;
    RegistryAccess access;
    ProgressFunction progress;
    std::function<void(const std::string& line)> note = {};  ///< Told of what is not believed.
};

struct ChunkRequest {
    std::string mount_id;
    ChunkId chunk;
    bool takes_bytes = false;  ///< Before they are stored.
};

struct CompleteRequest {
    std::string image;  ///< As ImageReference.
    Completion completion;
};

struct PushRequest {
    std::string image;                            ///< As ImageReference.
    std::string target;                           ///< registry_reference.h, without digest; empty: the image's name.
    Compression compression = Compression::gzip;  ///< Of layers that the registry has in no form.
    bool publishes_index = false;                 ///< Beside the image, what a lazy pull needs.
    RegistryAccess access;
    ProgressFunction progress;
};

struct PushReport {
    std::string reference;  ///< Where it is now.
    BlobDigest manifest;
    std::uint64_t layers_there = 0;    ///< The registry had them in this repository,
    std::uint64_t layers_mounted = 0;  ///< or in another one;
    std::uint64_t layers_sent = 0;     ///< these were sent.
    std::uint64_t sent_bytes = 0;
};

/// A new image from an existing one and one more layer, given as an uncompressed tar.
struct CommitRequest {
    std::string base_config_digest;   ///< Of the image that the mount was made from.
    std::vector<DiffId> base_layers;  ///< Bottom first.
    ImageName name;
    std::string created_by;  ///< For the config's history.
    ProgressFunction progress;
};

struct SaveRequest {
    std::string image;   ///< As ImageReference.
    std::string target;  ///< "oci:DIR[:TAG]", "oci-archive:FILE[:TAG]", "docker-archive:FILE"; absolute paths.
    ProgressFunction progress;
};

struct DiskUsage {
    std::uint64_t logical_bytes = 0;  ///< Of all images, each file of each image.
    std::uint64_t tar_bytes = 0;      ///< Of all distinct layers, uncompressed.
    std::uint64_t pack_bytes = 0;     ///< Files on disk, like the next.
    std::uint64_t index_bytes = 0;
    std::uint64_t recipe_bytes = 0;
    std::uint64_t tree_bytes = 0;
    std::uint64_t mount_bytes = 0;
    std::uint64_t other_bytes = 0;
    std::uint64_t reclaimable_bytes = 0;  ///< What gc would free now, to the byte for whole packs.
    struct Image {
        std::string name;
        BlobDigest config;
        std::uint64_t logical_bytes = 0;
        std::uint64_t stored_bytes = 0;  ///< Compressed share of all chunks that it uses.
        std::uint64_t unique_bytes = 0;  ///< Of these, used by no other image: what its removal frees.
    };
    std::vector<Image> images;
    /// What some images use and all others do not: the compressed share of these chunks.
    struct Share {
        std::vector<std::uint32_t> images;  ///< Places in `images`, in order; none: various ones, each time little.
        std::uint64_t stored_bytes = 0;
    };
    std::vector<Share>
        shares;  ///< The largest first. Of an image they add up to its stored_bytes, but for various ones.
};

struct GcRequest {
    bool is_dry_run = false;
    std::vector<std::string> idle_mounts;  ///< Ids of mounts that are discarded first, if they do not run.
};

struct GcReport {
    bool is_dry_run = false;
    std::uint64_t freed_bytes = 0;  ///< By st_size of all files below the root.
    std::uint64_t images_removed = 0;
    std::uint64_t packs_removed = 0;
    std::uint64_t packs_rewritten = 0;
    std::uint64_t layers_removed = 0;
    std::uint64_t trees_removed = 0;
    std::uint64_t packs_waiting = 0;  ///< Partly dead, and no room on the disk to write what is needed anew.
};

struct SizeLimitRequest {
    std::uint64_t max_bytes = 0;           ///< Of all files below the root, by st_size.
    std::vector<std::string> idle_mounts;  ///< As in GcRequest.
    std::vector<BlobDigest> keep;          ///< Configs of images that were brought just now: these stay.
};

struct SizeLimitReport {
    std::uint64_t store_bytes = 0;  ///< Afterwards.
    std::uint64_t freed_bytes = 0;
    std::vector<std::string> removed;  ///< Names of images, in order.
    bool is_met = false;               ///< false: nothing more may go.
};

struct VerifyReport {
    std::uint64_t chunks_checked = 0;
    std::uint64_t bytes_checked = 0;
    std::vector<std::string> problems;  ///< One line each, naming images and paths that are hit.
};

struct UpkeepRequest {
    std::uint64_t bytes_per_second =
        0;                ///< Of content that is compressed anew, and of packs that are read; 0: no limit.
    bool scrubs = false;  ///< Also reads and checks every byte of the packs.
    std::int64_t scrub_pause_seconds =
        0;                       ///< Not before the last such pass ended so long ago; an unfinished one goes on.
    bool is_background = false;  ///< Everything else that wants the processor goes first.
    ProgressFunction progress;
};

struct UpkeepReport {
    std::uint64_t compressed_bytes = 0;  ///< Content, unpacked, that was compressed anew.
    std::int64_t freed_bytes = 0;
    std::uint64_t packs_written = 0;
    std::uint64_t packs_removed = 0;
    std::uint64_t read_bytes = 0;       ///< Of packs, by the scrub.
    std::vector<std::string> problems;  ///< That the scrub has found: one line each.
};

struct RepairRequest {
    /// As ImportRequest::source: where good copies may be had. What they give is checked, so they need not be trusted.
    std::vector<std::string> sources;
    oci::Platform platform = oci::Platform::host();
    ProgressFunction progress;
};

struct RepairReport {
    std::vector<std::string> done;  ///< One line each.
    VerifyReport left;              ///< What a verify of every byte finds afterwards.
};

struct ListedName {
    std::string path;  ///< Relative to the image's root.
    TreeAttributes attributes;
    TreeIno ino = 0;
    std::string link_target;
};

/// The store: opens the folder, owns index, packs and trees; what daemon/ uses. Thread-safe: several jobs at once.
/// Only one process has a folder open (flock on <root>/lock): busy otherwise. All throw store::Error.
class Store {
public:
    /// Creates the folder when missing; finishes what a crash left: stray files are removed, the chunk index agrees
    /// with the index. unsupported: written by another version.
    static std::unique_ptr<Store> open(const std::string& root);
    virtual ~Store() = default;
    virtual const std::string& root() const = 0;

    virtual std::vector<ImageSummary> import(const ImportRequest& request, std::stop_token stop) = 0;
    virtual ImageSummary pull(const PullRequest& request, std::stop_token stop) = 0;
    /// Fetches what is missing of a lazy image, and verifies it. corrupt: it is, or has just been, quarantined.
    virtual ImageSummary complete(const CompleteRequest& request, std::stop_token stop) = 0;
    virtual PushReport push(const PushRequest& request, std::stop_token stop) = 0;
    virtual ImageSummary commit(const CommitRequest& request, ByteSource& layer_tar, std::stop_token stop) = 0;
    virtual void save(const SaveRequest& request, std::stop_token stop) = 0;

    virtual std::vector<ImageSummary> images() = 0;
    virtual ImageDetails inspect(
        const std::string& image) = 0;  ///< not_found; malformed when a digest prefix is ambiguous.
    virtual void tag(const std::string& image, const ImageName& name) = 0;
    /// For a limit that evicts: this image was used now. Does nothing when there is none, or no room to write it down.
    virtual void record_use(const std::string& image) = 0;
    /// An image that is pinned stays, with or without a name, until the pin is taken away: gc does not collect it, no
    /// limit evicts it, and it is removed by force only.
    virtual void set_pinned(const std::string& image, bool is_pinned) = 0;
    /// Takes a name away, or all of an image's when named by digest (or `force` with several). The image goes when its
    /// last name does. busy when it is pinned or a mount (mounts/*/base) uses it and not `force`: then the image goes,
    /// and for a mount its content stays until that is discarded.
    virtual void remove_image(const std::string& image, bool force) = 0;

    virtual std::vector<ListedName> list(const std::string& image, const std::string& path) = 0;
    virtual void read_file(const std::string& image, const std::string& path, ByteSink& out) = 0;

    virtual DiskUsage disk_usage() = 0;
    /// Removes what no name, pin, mount or running job reaches. A dry run removes nothing, and tells to the byte what
    /// would be freed when nothing else happens meanwhile.
    virtual GcReport gc(const GcRequest& request, std::stop_token stop) = 0;
    GcReport gc(bool is_dry_run, std::stop_token stop) {
        return gc(GcRequest{.is_dry_run = is_dry_run, .idle_mounts = {}}, std::move(stop));
    }
    /// Brings the store below a limit: frees what nothing needs, then removes images, the one first that was used
    /// longest ago. Those stay that are pinned, mounted, or in the hands of a job, those of `keep`, and what was used
    /// last. One at a time.
    virtual SizeLimitReport limit_size(const SizeLimitRequest& request, std::stop_token stop) = 0;
    virtual VerifyReport verify(bool check_data, const ProgressFunction& progress, std::stop_token stop) = 0;

    /// Makes anew what follows from other parts of the store (chunk index, trees), takes chunks and recipes that are
    /// damaged or missing from the sources, and puts what is left of damaged packs aside (<root>/quarantine). What
    /// cannot be mended stays lost; everything else goes on. Running mounts see what was mended. Other jobs go on.
    virtual RepairReport repair(const RepairRequest& request, std::stop_token stop) = 0;

    /// What makes the store smaller and finds damage, for idle times: whatever is compressed as at import is compressed
    /// as densely as zstd's level 19 does, in the order of layers and paths, leaving out what nothing needs; then the
    /// scrub. Other jobs go on. Stopped at any instant it throws cancelled, and the next one goes on from there.
    virtual UpkeepReport upkeep(const UpkeepRequest& request, std::stop_token stop) = 0;

    /// Makes <root>/mounts/<id> with its base, so that the image cannot be collected. `id` is generated: 16 hex digits.
    /// `name` goes into its file of that name, unless it is empty.
    virtual std::string create_mount(const std::string& image, const std::string& mountpoint, bool is_read_only,
                                     const std::string& name = {}) = 0;
    /// Before a mount's server starts, the first time or again: refuses a quarantined image (corrupt), and one that is
    /// not verified where it must be (denied); fetches ahead what programs wanted first before.
    virtual void begin_mount(const std::string& mount_id, bool must_be_verified) = 0;
    /// What programs have read of a lazy image in a mount's first minute, in that order, as the first 16 hex digits of
    /// chunk IDs: so its next start knows. Throws nothing.
    virtual void note_reads(const std::string& mount_id, const std::vector<std::string>& chunks) = 0;
    /// Makes a chunk of a mount's lazy layers be stored, or, for who takes its bytes, come: these, when it is not
    /// stored yet. not_found: it is of none of them.
    virtual std::vector<std::byte> fetch_chunk(const ChunkRequest& request, std::stop_token stop) = 0;
    /// Removes a mount's folder with all its changes. busy when a server runs on it: what a running mount needs is kept
    /// by its base, so that must not go before.
    virtual void discard_mount(const std::string& id) = 0;

    /// Where an image's bytes came from, and who waited for them (explain.h). not_found: image, mount or path.
    virtual Explanation explain(const ExplainRequest& request, std::stop_token stop) = 0;
};

}  // namespace lamina::store
