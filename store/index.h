#pragma once

#include "store/digest.h"
#include "store/oci.h"
#include "store/reference.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::store {

struct PackRow {
    std::uint32_t number = 0;
    std::uint64_t file_bytes = 0;
    std::uint64_t raw_bytes = 0;
    std::uint64_t dense_bytes = 0;  ///< Of raw_bytes: in frames that upkeep has compressed.
    bool operator==(const PackRow&) const = default;
};

struct LayerRow {
    DiffId diff_id;
    std::uint64_t tar_bytes = 0;
    std::uint64_t entry_count = 0;
    std::uint64_t recipe_bytes = 0;  ///< Of the recipe file.
};

struct TreeRow {
    TreeDigest digest;
    std::uint64_t file_bytes = 0;
    std::uint64_t inode_count = 0;
    std::uint64_t logical_bytes = 0;
};

/// An image is its config: another manifest over the same config is the same image, known by both digests.
struct ImageRow {
    std::int64_t id = 0;
    BlobDigest manifest;  ///< The one that came last.
    BlobDigest config;
    TreeRow tree;
    oci::Platform platform;
    std::string created;
    std::int64_t imported_at = 0;  ///< Unix seconds.
    bool is_anonymous = false;     ///< Imported without a name: kept although it has none.
    bool is_removed = false;     ///< Removed by force while a mount used it: kept for that mount's commit, else unseen.
    bool is_pinned = false;      ///< Kept, with or without a name, and never evicted.
    std::int64_t used_at = 0;    ///< Unix seconds of the last use; for people, since clocks may be set back.
    std::int64_t use_order = 0;  ///< Who was used later has the higher one.
    std::vector<std::string> names;
    std::vector<DiffId> layers;  ///< Bottom first.
};

struct NewImage {
    std::vector<std::byte> manifest;
    std::string manifest_media_type;
    std::vector<std::byte> config;
    oci::Platform platform;
    std::string created;
    std::int64_t imported_at = 0;
    std::vector<DiffId> layers;
    std::optional<ChainId> chain;  ///< nullopt: no layers.
    TreeRow tree;
    std::optional<ImageName> name;
};

struct ImageDocuments {
    std::vector<std::byte> manifest;
    std::string manifest_media_type;
    std::vector<std::byte> config;
};

/// How far the reading of all packs is (scrub.h).
struct ScrubState {
    std::uint32_t pack = 0;  ///< What is read next; 0: no pass is under way.
    std::uint64_t offset_bytes = 0;
    std::int64_t began_at = 0;     ///< Unix seconds, of the pass under way or the last one.
    std::int64_t ended_at = 0;     ///< Of the last pass that came to its end; 0: none did.
    std::uint64_t bad_frames = 0;  ///< Found in the pass under way, or in the last one.
    bool is_under_way() const noexcept { return pack != 0; }
};

/// The SQLite index of a store (FORMAT.md, "Index"): images, names, layers, trees, packs. No row per chunk.
///
/// What returns has happened durably: each changing call is one transaction. Thread-safe (one lock, held for one call).
/// Throws what sqlite.h says; unsupported when another version wrote the schema. Callers see to it that the files a
/// row names are on disk before the row is.
class Index {
public:
    /// Makes it when it is missing or empty and `may_create`; else that is corrupt.
    static std::unique_ptr<Index> open(const std::string& path, bool may_create = true);
    ~Index();

    /// Numbers that no pack ever had, nor will have, whatever crashes: from 1 up, one after another.
    std::vector<std::uint32_t> allocate_packs(std::uint32_t count);
    std::uint32_t allocate_pack() { return allocate_packs(1).front(); }
    std::vector<PackRow> packs();  ///< By number.
    std::vector<std::uint32_t> pack_numbers();
    bool has_pack(std::uint32_t number);
    /// After a pack was rewritten.
    void replace_packs(const std::vector<PackRow>& added, const std::vector<std::uint32_t>& removed);

    std::optional<LayerRow> find_layer(const DiffId& diff_id);
    std::vector<LayerRow> layers();
    void renew_layer(const LayerRow& layer);  ///< After its recipe was made anew.
    void add_layer(const LayerRow& layer, const std::optional<PackRow>& pack);  ///< pack: nullopt when nothing was new.

    std::optional<TreeRow> find_tree(const ChainId& chain);
    bool has_tree(const TreeDigest& digest);
    std::vector<TreeRow> trees();

    /// Makes the image (or finds it by its config) and gives it the name, which another image may lose. Its layers'
    /// rows must be there. Nothing is written when the image has all that already and was
    /// used within the last hour.
    ImageRow add_image(const NewImage& image);
    std::vector<ImageRow> images();      ///< In order of their first import; without the removed.
    std::vector<ImageRow> all_images();  ///< With them.
    std::optional<ImageRow> find_by_name(const ImageName& name);
    /// Images of which the config digest or one manifest digest begins with `hex` (lower case, at most 64 digits).
    std::vector<ImageRow> find_by_digest(std::string_view hex);
    std::optional<ImageRow> find_by_config(const BlobDigest& config);  ///< The removed too.
    ImageDocuments documents(std::int64_t image);
    std::vector<ImageDocuments> all_documents(std::int64_t image);  ///< With every manifest, the last one first.
    void add_manifest(std::int64_t image, const ImageDocuments& documents);  ///< Becomes the last one.

    void set_name(const ImageName& name, std::int64_t image);
    void remove_name(const ImageName& name);
    void remove_image(std::int64_t image);  ///< Row and names; layers and tree stay for gc.
    void hide_image(std::int64_t image);    ///< Names and pin go, the row stays as removed.
    void set_pinned(std::int64_t image, bool is_pinned);
    /// Makes it the one that was used last. Costs nothing when it was so within the last minute, and does not wait for
    /// the disk: a power cut may undo it. not_found.
    void record_use(std::int64_t image, std::int64_t unix_seconds);

    ScrubState scrub_state();
    void set_scrub_state(const ScrubState& state);

    /// Images first, so that nothing names what goes. One transaction, or several where there is no room for one.
    struct Victims {
        std::vector<std::int64_t> images;
        std::vector<DiffId> layers;
        std::vector<TreeDigest> trees;
        std::vector<std::uint32_t> packs;
    };
    void remove(const Victims& victims);
    /// Moves what the write-ahead log holds into the database, where the disk has plenty: it lies on disk twice.
    void shorten_log();
    struct FileBytes {
        std::uint64_t now = 0;      ///< Of database and log.
        std::uint64_t settled = 0;  ///< After shorten_log(), when nothing is added.
    };
    FileBytes file_bytes();

    std::vector<std::string> check();  ///< SQLite's integrity_check and foreign_key_check; empty when sound.

private:
    class Impl;
    explicit Index(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::store
