#include "store/index.h"

#include "store/error.h"
#include "store/file.h"
#include "store/sqlite.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <limits>
#include <mutex>

// One connection, one lock, all statements prepared at open. Every changing call is a Transaction of its own, so a
// caller's order of calls is the order on disk. Rows refer to each other by foreign keys without cascades where a
// cascade could hide a mistake: a layer that an image names cannot be removed, nor a tree.

namespace lamina::store {

namespace {

constexpr std::int64_t kSchemaVersion = 2;
constexpr std::int64_t kSameUseSeconds = 60;
constexpr std::int64_t kSameImportSeconds = 3600;
constexpr off_t kReservedLogBytes = 256 << 10;
constexpr off_t kReservedBytes = 64 << 10;
constexpr std::uint64_t kPlentyBytes = 4 << 20;
constexpr std::size_t kFewRows = 8;

constexpr const char* kSchema = R"sql(
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO counters VALUES ('next_pack', 1), ('next_use', 1);
CREATE TABLE packs (
    number INTEGER PRIMARY KEY,
    file_bytes INTEGER NOT NULL,
    raw_bytes INTEGER NOT NULL,
    dense_bytes INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE layers (
    diff_id BLOB PRIMARY KEY,
    tar_bytes INTEGER NOT NULL,
    entry_count INTEGER NOT NULL,
    recipe_bytes INTEGER NOT NULL) STRICT;
CREATE TABLE trees (
    digest BLOB PRIMARY KEY,
    file_bytes INTEGER NOT NULL,
    inode_count INTEGER NOT NULL,
    logical_bytes INTEGER NOT NULL) STRICT;
CREATE TABLE chains (
    chain_id BLOB PRIMARY KEY,
    tree BLOB NOT NULL REFERENCES trees(digest) ON DELETE CASCADE) STRICT;
CREATE INDEX chains_by_tree ON chains(tree);
CREATE TABLE images (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    config_digest BLOB NOT NULL UNIQUE,
    config BLOB NOT NULL,
    manifest_digest BLOB NOT NULL,
    tree BLOB NOT NULL REFERENCES trees(digest),
    os TEXT NOT NULL,
    architecture TEXT NOT NULL,
    variant TEXT NOT NULL,
    created TEXT NOT NULL,
    imported_at INTEGER NOT NULL,
    is_anonymous INTEGER NOT NULL,
    is_removed INTEGER NOT NULL DEFAULT 0,
    is_pinned INTEGER NOT NULL DEFAULT 0,
    used_at INTEGER NOT NULL DEFAULT 0,
    use_order INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX images_by_tree ON images(tree);
CREATE TABLE manifests (
    digest BLOB PRIMARY KEY,
    image INTEGER NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    media_type TEXT NOT NULL,
    document BLOB NOT NULL) STRICT;
CREATE INDEX manifests_by_image ON manifests(image);
CREATE TABLE names (
    name TEXT PRIMARY KEY,
    image INTEGER NOT NULL REFERENCES images(id) ON DELETE CASCADE) STRICT, WITHOUT ROWID;
CREATE INDEX names_by_image ON names(image);
CREATE TABLE image_layers (
    image INTEGER NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    diff_id BLOB NOT NULL REFERENCES layers(diff_id),
    PRIMARY KEY (image, position)) STRICT, WITHOUT ROWID;
CREATE INDEX image_layers_by_layer ON image_layers(diff_id);
PRAGMA user_version = 2;
)sql";

constexpr const char* kUpgradeFrom1 = R"sql(
ALTER TABLE packs ADD COLUMN dense_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE images ADD COLUMN is_pinned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE images ADD COLUMN used_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE images ADD COLUMN use_order INTEGER NOT NULL DEFAULT 0;
UPDATE images SET used_at = imported_at, use_order = id;
INSERT INTO counters SELECT 'next_use', coalesce(max(id), 0) + 1 FROM images;
PRAGMA user_version = 2;
)sql";

std::string image_query(std::string_view tail) {
    return "SELECT i.id, i.manifest_digest, i.config_digest, i.tree, t.file_bytes, t.inode_count, t.logical_bytes,"
           " i.os, i.architecture, i.variant, i.created, i.imported_at, i.is_anonymous, i.is_removed, i.is_pinned, "
           "i.used_at, i.use_order"
           " FROM images i JOIN trees t ON t.digest = i.tree " +
           std::string(tail);
}

std::string log_of(const std::string& path) {
    return path + "-wal";
}

/// Sets blocks aside behind the file's end, without changing its size: so an image can be removed, and gc can run, on a
/// disk that is full to the last byte. Where the file system cannot, there is just no reserve.
void reserve_blocks(const std::string& path, off_t size_bytes) {
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    struct stat st {};
    if (!fd || ::fstat(fd.get(), &st) != 0) return;
    static_cast<void>(::fallocate(fd.get(), FALLOC_FL_KEEP_SIZE, 0, st.st_size + size_bytes));
}

Database open_with_schema(const std::string& path, bool may_create) {
    if (!may_create && !exists(path)) throw Error(Errc::corrupt, path + ": is missing, but the store has content");
    Database database = Database::open(path);
    std::int64_t version = 0;
    std::int64_t table_count = 0;
    {
        Statement statement(database,
                            "SELECT user_version, (SELECT count(*) FROM sqlite_schema) FROM pragma_user_version");
        Rows rows = statement.run();
        if (rows.next()) {
            version = rows.integer(0);
            table_count = rows.integer(1);
        }
    }
    if (version == 0 && table_count == 0) {
        if (!may_create) throw Error(Errc::corrupt, path + ": is empty, but the store has content");
        Transaction transaction(database);
        database.execute(kSchema);
        transaction.commit();
        sync_folder(folder_of(path));
        version = kSchemaVersion;
    }
    if (version == 1) {
        Transaction transaction(database);
        database.execute(kUpgradeFrom1);
        transaction.commit();
        version = kSchemaVersion;
    }
    if (version != kSchemaVersion) {
        throw Error(Errc::unsupported, path + ": the index has version " + std::to_string(version) +
                                           ", this program knows " + std::to_string(kSchemaVersion) +
                                           ": use the program that wrote it, or another store");
    }
    reserve_blocks(path, kReservedBytes);
    reserve_blocks(log_of(path), kReservedLogBytes);
    return database;
}

}  // namespace

class Index::Impl {
public:
    bool has_plenty() const;
    void shorten_log();
    template <class Work>
    void transact(Work&& work);

    Impl(const std::string& path, bool may_create) : database_(open_with_schema(path, may_create)) {}

    std::mutex mutex_;  // Guards all below. Innermost: nothing else is locked under it.
    Database database_;

    ImageRow read_image(const Rows& rows);
    std::vector<ImageRow> read_images(Rows rows);
    void add_pack(const PackRow& pack) {
        add_pack_.execute(pack.number, pack.file_bytes, pack.raw_bytes, pack.dense_bytes);
    }
    void add_tree(const NewImage& image);
    void record_use(std::int64_t image, std::int64_t unix_seconds);
    std::int64_t add_image_row(const NewImage& image, const BlobDigest& config, const BlobDigest& manifest);
    std::optional<std::int64_t> id_of_config(const BlobDigest& config);
    ImageRow image(std::int64_t id);
    std::optional<ImageRow> find_same(const NewImage& image, const BlobDigest& config, const BlobDigest& manifest);

    Statement allocate_packs_{database_,
                              "UPDATE counters SET value = value + ? WHERE name = 'next_pack' RETURNING value"};
    Statement packs_{database_, "SELECT number, file_bytes, raw_bytes, dense_bytes FROM packs ORDER BY number"};
    Statement has_pack_{database_, "SELECT 1 FROM packs WHERE number = ?"};
    Statement add_pack_{database_, "INSERT INTO packs VALUES (?, ?, ?, ?)"};
    Statement remove_pack_{database_, "DELETE FROM packs WHERE number = ?"};
    Statement find_layer_{database_,
                          "SELECT diff_id, tar_bytes, entry_count, recipe_bytes FROM layers WHERE diff_id = ?"};
    Statement layers_{database_, "SELECT diff_id, tar_bytes, entry_count, recipe_bytes FROM layers ORDER BY diff_id"};
    Statement add_layer_{database_, "INSERT INTO layers VALUES (?, ?, ?, ?)"};
    Statement renew_layer_{database_,
                           "UPDATE layers SET tar_bytes = ?2, entry_count = ?3, recipe_bytes = ?4 WHERE diff_id = ?1"};
    Statement remove_layer_{database_, "DELETE FROM layers WHERE diff_id = ?"};
    Statement find_tree_{database_,
                         "SELECT digest, file_bytes, inode_count, logical_bytes FROM trees t JOIN chains c "
                         "ON c.tree = t.digest WHERE c.chain_id = ?"};
    Statement has_tree_{database_, "SELECT 1 FROM trees WHERE digest = ?"};
    Statement trees_{database_, "SELECT digest, file_bytes, inode_count, logical_bytes FROM trees ORDER BY digest"};
    Statement add_tree_{database_, "INSERT INTO trees VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING"};
    Statement add_chain_{database_, "INSERT INTO chains VALUES (?, ?) ON CONFLICT (chain_id) DO NOTHING"};
    Statement remove_tree_{database_, "DELETE FROM trees WHERE digest = ?"};
    Statement images_{database_, image_query("WHERE i.is_removed = 0 OR ? ORDER BY i.id")};
    Statement image_{database_, image_query("WHERE i.id = ?")};
    Statement image_by_name_{database_, image_query("JOIN names n ON n.image = i.id WHERE n.name = ?")};
    Statement images_by_digest_{
        database_,
        image_query("WHERE i.is_removed = 0 AND (substr(lower(hex(i.config_digest)), 1, ?2) = ?1 OR i.id IN"
                    " (SELECT image FROM manifests WHERE substr(lower(hex(digest)), 1, ?2) = ?1)) ORDER BY i.id")};
    Statement id_of_config_{database_, "SELECT id FROM images WHERE config_digest = ?"};
    Statement image_names_{database_, "SELECT name FROM names WHERE image = ? ORDER BY name"};
    Statement layers_of_image_{database_, "SELECT diff_id FROM image_layers WHERE image = ? ORDER BY position"};
    Statement add_image_{database_,
                         "INSERT INTO images (config_digest, config, manifest_digest, tree, os, architecture, variant,"
                         " created, imported_at, is_anonymous) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id"};
    Statement renew_image_{database_,
                           "UPDATE images SET manifest_digest = ?2, imported_at = ?3, is_removed = 0, tree = ?4"
                           " WHERE id = ?1"};
    Statement set_anonymous_{database_, "UPDATE images SET is_anonymous = ?2 WHERE id = ?1"};
    Statement add_image_layer_{database_, "INSERT INTO image_layers VALUES (?, ?, ?)"};
    Statement add_manifest_{database_, "INSERT INTO manifests VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING"};
    Statement documents_{database_,
                         "SELECT m.document, m.media_type, i.config FROM images i JOIN manifests m ON"
                         " m.digest = i.manifest_digest WHERE i.id = ?"};
    Statement all_documents_{database_,
                             "SELECT m.document, m.media_type, i.config FROM images i JOIN manifests m ON"
                             " m.image = i.id WHERE i.id = ? ORDER BY m.digest = i.manifest_digest DESC, m.rowid DESC"};
    Statement set_manifest_{database_, "UPDATE images SET manifest_digest = ?2 WHERE id = ?1"};
    Statement set_name_{database_,
                        "INSERT INTO names VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET image = excluded.image"};
    Statement remove_name_{database_, "DELETE FROM names WHERE name = ?"};
    Statement remove_names_{database_, "DELETE FROM names WHERE image = ?"};
    Statement remove_image_{database_, "DELETE FROM images WHERE id = ?"};
    Statement hide_image_{database_, "UPDATE images SET is_removed = 1, is_anonymous = 0, is_pinned = 0 WHERE id = ?"};
    Statement set_pinned_{database_, "UPDATE images SET is_pinned = ?2 WHERE id = ?1"};
    Statement scrub_counters_{database_, "SELECT name, value FROM counters WHERE name LIKE 'scrub\\_%' ESCAPE '\\'"};
    Statement set_counter_{
        database_, "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"};
    Statement last_use_{database_, "SELECT value - 1 FROM counters WHERE name = 'next_use'"};
    Statement count_use_{database_, "UPDATE counters SET value = value + 1 WHERE name = 'next_use'"};
    Statement set_use_{database_,
                       "UPDATE images SET used_at = ?2, use_order ="
                       " (SELECT value - 1 FROM counters WHERE name = 'next_use') WHERE id = ?1"};
};

bool Index::Impl::has_plenty() const {
    struct statvfs disk {};
    if (::statvfs(database_.path().c_str(), &disk) != 0) return false;
    return std::uint64_t{disk.f_bavail} * disk.f_frsize >= kPlentyBytes;
}

/// Moves what the write-ahead log holds into the database: it would lie on disk twice. Where space is scarce the file
/// stays as long as it is, because it is the reserve, and is written anew from its beginning. What was committed is so
/// whether or not this works.
void Index::Impl::shorten_log() {
    try {
        database_.execute(has_plenty() ? "PRAGMA wal_checkpoint(TRUNCATE)" : "PRAGMA wal_checkpoint(RESTART)");
    } catch (const Error&) {  // The next one may do better.
    }
    reserve_blocks(database_.path(), kReservedBytes);
    reserve_blocks(log_of(database_.path()), kReservedLogBytes);
}

/// A transaction that makes room, or for which there must always be some: on a full disk it is tried again once the log
/// can be written from its beginning.
template <class Work>
void Index::Impl::transact(Work&& work) {
    std::optional<Transaction> transaction;
    const auto run = [&] {
        transaction.emplace(database_);
        work();
        transaction->commit();
    };
    try {
        run();
    } catch (const Error& error) {
        const bool has_happened = transaction && !transaction->is_open();
        transaction.reset();
        if (has_happened || (error.code() != Errc::no_space && error.code() != Errc::quota)) throw;
        shorten_log();
        run();
    }
    shorten_log();
}

ImageRow Index::Impl::read_image(const Rows& rows) {
    ImageRow image{.id = rows.integer(0),
                   .manifest = BlobDigest{rows.digest(1)},
                   .config = BlobDigest{rows.digest(2)},
                   .tree = {TreeDigest{rows.digest(3)}, rows.count(4), rows.count(5), rows.count(6)},
                   .platform = {rows.text(7), rows.text(8), rows.text(9)},
                   .created = rows.text(10),
                   .imported_at = rows.integer(11),
                   .is_anonymous = rows.integer(12) != 0,
                   .is_removed = rows.integer(13) != 0,
                   .is_pinned = rows.integer(14) != 0,
                   .used_at = rows.integer(15),
                   .use_order = rows.integer(16)};
    for (Rows names = image_names_.run(image.id); names.next();) image.names.push_back(names.text(0));
    for (Rows layers = layers_of_image_.run(image.id); layers.next();) image.layers.push_back({layers.digest(0)});
    return image;
}

std::vector<ImageRow> Index::Impl::read_images(Rows rows) {
    std::vector<ImageRow> images;
    while (rows.next()) images.push_back(read_image(rows));
    return images;
}

std::optional<std::int64_t> Index::Impl::id_of_config(const BlobDigest& config) {
    Rows rows = id_of_config_.run(config);
    if (!rows.next()) return std::nullopt;
    return rows.integer(0);
}

ImageRow Index::Impl::image(std::int64_t id) {
    Rows rows = image_.run(id);
    if (!rows.next()) throw Error(Errc::not_found, "image " + std::to_string(id) + ": not in the index");
    return read_image(rows);
}

/// The row when adding the image would change nothing but the time of its import, by less than an hour.
std::optional<ImageRow> Index::Impl::find_same(const NewImage& image, const BlobDigest& config,
                                               const BlobDigest& manifest) {
    const auto id = id_of_config(config);
    if (!id) return std::nullopt;
    ImageRow row = this->image(*id);
    const bool has_name = !image.name || std::ranges::find(row.names, image.name->text()) != row.names.end();
    const bool is_same = row.manifest == manifest && row.tree.digest == image.tree.digest && !row.is_removed &&
                         row.is_anonymous == row.names.empty();
    const std::int64_t since = image.imported_at - row.used_at;
    const bool is_recent = since >= 0 && since < kSameImportSeconds;
    return has_name && is_same && is_recent ? std::optional(std::move(row)) : std::nullopt;
}

void Index::Impl::add_tree(const NewImage& image) {
    const TreeRow& tree = image.tree;
    add_tree_.execute(tree.digest, tree.file_bytes, tree.inode_count, tree.logical_bytes);
    if (image.chain) add_chain_.execute(*image.chain, tree.digest);
}

std::int64_t Index::Impl::add_image_row(const NewImage& image, const BlobDigest& config, const BlobDigest& manifest) {
    std::int64_t id = 0;
    {
        Rows rows = add_image_.run(config, image.config, manifest, image.tree.digest, image.platform.os,
                                   image.platform.architecture, image.platform.variant, image.created,
                                   image.imported_at, !image.name.has_value());
        if (!rows.next()) throw Error(Errc::internal, "the index gave no image id");
        id = rows.integer(0);
        while (rows.next()) {
        }
    }
    int position = 0;
    for (const DiffId& layer : image.layers) add_image_layer_.execute(id, position++, layer);
    return id;
}

void Index::Impl::record_use(std::int64_t image, std::int64_t unix_seconds) {
    count_use_.execute();
    set_use_.execute(image, unix_seconds);
}

Index::Index(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Index::~Index() = default;

std::unique_ptr<Index> Index::open(const std::string& path, bool may_create) {
    return std::unique_ptr<Index>(new Index(std::make_unique<Impl>(path, may_create)));
}

std::vector<std::uint32_t> Index::allocate_packs(std::uint32_t count) {
    const std::lock_guard lock(impl_->mutex_);
    Transaction transaction(impl_->database_);
    std::uint64_t end = 0;
    for (Rows rows = impl_->allocate_packs_.run(count); rows.next();) end = rows.count(0);
    if (end <= count || end - 1 > std::numeric_limits<std::uint32_t>::max()) {
        throw Error(Errc::corrupt, impl_->database_.path() + ": no pack number is left");
    }
    transaction.commit();
    std::vector<std::uint32_t> numbers;
    for (std::uint64_t number = end - count; number < end; ++number) {
        numbers.push_back(static_cast<std::uint32_t>(number));
    }
    return numbers;
}

std::vector<PackRow> Index::packs() {
    const std::lock_guard lock(impl_->mutex_);
    std::vector<PackRow> packs;
    for (Rows rows = impl_->packs_.run(); rows.next();) {
        packs.push_back({static_cast<std::uint32_t>(rows.count(0)), rows.count(1), rows.count(2), rows.count(3)});
    }
    return packs;
}

bool Index::has_pack(std::uint32_t number) {
    const std::lock_guard lock(impl_->mutex_);
    return impl_->has_pack_.run(number).next();
}

std::vector<std::uint32_t> Index::pack_numbers() {
    std::vector<std::uint32_t> numbers;
    for (const PackRow& pack : packs()) numbers.push_back(pack.number);
    return numbers;
}

void Index::replace_packs(const std::vector<PackRow>& added, const std::vector<std::uint32_t>& removed) {
    const std::lock_guard lock(impl_->mutex_);
    impl_->transact([&] {
        for (const std::uint32_t number : removed) impl_->remove_pack_.execute(number);
        for (const PackRow& pack : added) impl_->add_pack(pack);
    });
}

namespace {

LayerRow read_layer(const Rows& rows) {
    return {DiffId{rows.digest(0)}, rows.count(1), rows.count(2), rows.count(3)};
}

TreeRow read_tree(const Rows& rows) {
    return {TreeDigest{rows.digest(0)}, rows.count(1), rows.count(2), rows.count(3)};
}

}  // namespace

std::optional<LayerRow> Index::find_layer(const DiffId& diff_id) {
    const std::lock_guard lock(impl_->mutex_);
    Rows rows = impl_->find_layer_.run(diff_id);
    if (!rows.next()) return std::nullopt;
    return read_layer(rows);
}

std::vector<LayerRow> Index::layers() {
    const std::lock_guard lock(impl_->mutex_);
    std::vector<LayerRow> layers;
    for (Rows rows = impl_->layers_.run(); rows.next();) layers.push_back(read_layer(rows));
    return layers;
}

void Index::add_layer(const LayerRow& layer, const std::optional<PackRow>& pack) {
    const std::lock_guard lock(impl_->mutex_);
    Transaction transaction(impl_->database_);
    if (pack) impl_->add_pack(*pack);
    impl_->add_layer_.execute(layer.diff_id, layer.tar_bytes, layer.entry_count, layer.recipe_bytes);
    transaction.commit();
}

void Index::renew_layer(const LayerRow& layer) {
    const std::lock_guard lock(impl_->mutex_);
    impl_->transact(
        [&] { impl_->renew_layer_.execute(layer.diff_id, layer.tar_bytes, layer.entry_count, layer.recipe_bytes); });
}

std::optional<TreeRow> Index::find_tree(const ChainId& chain) {
    const std::lock_guard lock(impl_->mutex_);
    Rows rows = impl_->find_tree_.run(chain);
    if (!rows.next()) return std::nullopt;
    return read_tree(rows);
}

bool Index::has_tree(const TreeDigest& digest) {
    const std::lock_guard lock(impl_->mutex_);
    return impl_->has_tree_.run(digest).next();
}

std::vector<TreeRow> Index::trees() {
    const std::lock_guard lock(impl_->mutex_);
    std::vector<TreeRow> trees;
    for (Rows rows = impl_->trees_.run(); rows.next();) trees.push_back(read_tree(rows));
    return trees;
}

ImageRow Index::add_image(const NewImage& image) {
    const BlobDigest config{Digest::of(image.config)};
    const BlobDigest manifest{Digest::of(image.manifest)};
    const std::lock_guard lock(impl_->mutex_);
    if (auto same = impl_->find_same(image, config, manifest)) return *std::move(same);
    Transaction transaction(impl_->database_);
    impl_->add_tree(image);
    std::int64_t id = 0;
    if (const auto known = impl_->id_of_config(config)) {
        id = *known;
        impl_->renew_image_.execute(id, manifest, image.imported_at, image.tree.digest);
    } else {
        id = impl_->add_image_row(image, config, manifest);
    }
    impl_->add_manifest_.execute(manifest, id, image.manifest_media_type, image.manifest);
    if (image.name) impl_->set_name_.execute(image.name->text(), id);
    impl_->record_use(id, image.imported_at);
    ImageRow row = impl_->image(id);
    row.is_anonymous = row.names.empty();
    impl_->set_anonymous_.execute(id, row.is_anonymous);
    transaction.commit();
    impl_->shorten_log();
    return row;
}

std::vector<ImageRow> Index::images() {
    const std::lock_guard lock(impl_->mutex_);
    return impl_->read_images(impl_->images_.run(0));
}

std::vector<ImageRow> Index::all_images() {
    const std::lock_guard lock(impl_->mutex_);
    return impl_->read_images(impl_->images_.run(1));
}

std::optional<ImageRow> Index::find_by_name(const ImageName& name) {
    const std::lock_guard lock(impl_->mutex_);
    Rows rows = impl_->image_by_name_.run(name.text());
    if (!rows.next()) return std::nullopt;
    return impl_->read_image(rows);
}

std::vector<ImageRow> Index::find_by_digest(std::string_view hex) {
    const std::lock_guard lock(impl_->mutex_);
    return impl_->read_images(impl_->images_by_digest_.run(hex, hex.size()));
}

std::optional<ImageRow> Index::find_by_config(const BlobDigest& config) {
    const std::lock_guard lock(impl_->mutex_);
    const auto id = impl_->id_of_config(config);
    if (!id) return std::nullopt;
    return impl_->image(*id);
}

ImageDocuments Index::documents(std::int64_t image) {
    const std::lock_guard lock(impl_->mutex_);
    Rows rows = impl_->documents_.run(image);
    if (!rows.next()) throw Error(Errc::not_found, "image " + std::to_string(image) + ": not in the index");
    return {rows.bytes(0), rows.text(1), rows.bytes(2)};
}

std::vector<ImageDocuments> Index::all_documents(std::int64_t image) {
    const std::lock_guard lock(impl_->mutex_);
    std::vector<ImageDocuments> all;
    for (Rows rows = impl_->all_documents_.run(image); rows.next();) {
        all.push_back({rows.bytes(0), rows.text(1), rows.bytes(2)});
    }
    return all;
}

void Index::add_manifest(std::int64_t image, const ImageDocuments& documents) {
    const BlobDigest digest{Digest::of(documents.manifest)};
    const std::lock_guard lock(impl_->mutex_);
    Transaction transaction(impl_->database_);
    impl_->add_manifest_.execute(digest, image, documents.manifest_media_type, documents.manifest);
    impl_->set_manifest_.execute(image, digest);
    transaction.commit();
    impl_->shorten_log();
}

void Index::set_name(const ImageName& name, std::int64_t image) {
    const std::lock_guard lock(impl_->mutex_);
    impl_->transact([&] {
        static_cast<void>(impl_->image(image));  // not_found, rather than a broken foreign key.
        impl_->set_name_.execute(name.text(), image);
        impl_->set_anonymous_.execute(image, 0);
    });
}

void Index::remove_name(const ImageName& name) {
    const std::lock_guard lock(impl_->mutex_);
    impl_->transact([&] { impl_->remove_name_.execute(name.text()); });
}

void Index::remove_image(std::int64_t image) {
    const std::lock_guard lock(impl_->mutex_);
    impl_->transact([&] { impl_->remove_image_.execute(image); });
}

void Index::hide_image(std::int64_t image) {
    const std::lock_guard lock(impl_->mutex_);
    impl_->transact([&] {
        impl_->remove_names_.execute(image);
        impl_->hide_image_.execute(image);
    });
}

void Index::set_pinned(std::int64_t image, bool is_pinned) {
    const std::lock_guard lock(impl_->mutex_);
    impl_->transact([&] {
        static_cast<void>(impl_->image(image));
        impl_->set_pinned_.execute(image, is_pinned);
    });
}

void Index::record_use(std::int64_t image, std::int64_t unix_seconds) {
    const std::lock_guard lock(impl_->mutex_);
    const ImageRow row = impl_->image(image);
    std::int64_t last = 0;
    for (Rows rows = impl_->last_use_.run(); rows.next();) last = rows.integer(0);
    const std::int64_t since = unix_seconds - row.used_at;
    if (row.use_order == last && since >= 0 && since < kSameUseSeconds) return;
    const UnsyncedCommits unsynced(impl_->database_);
    Transaction transaction(impl_->database_);
    impl_->record_use(image, unix_seconds);
    transaction.commit();
}

ScrubState Index::scrub_state() {
    const std::lock_guard lock(impl_->mutex_);
    ScrubState state;
    for (Rows rows = impl_->scrub_counters_.run(); rows.next();) {
        const std::string name = rows.text(0);
        if (name == "scrub_pack") state.pack = static_cast<std::uint32_t>(rows.count(1));
        if (name == "scrub_offset") state.offset_bytes = rows.count(1);
        if (name == "scrub_began_at") state.began_at = rows.integer(1);
        if (name == "scrub_ended_at") state.ended_at = rows.integer(1);
        if (name == "scrub_bad_frames") state.bad_frames = rows.count(1);
    }
    return state;
}

void Index::set_scrub_state(const ScrubState& state) {
    const std::lock_guard lock(impl_->mutex_);
    impl_->transact([&] {
        impl_->set_counter_.execute("scrub_pack", state.pack);
        impl_->set_counter_.execute("scrub_offset", state.offset_bytes);
        impl_->set_counter_.execute("scrub_began_at", state.began_at);
        impl_->set_counter_.execute("scrub_ended_at", state.ended_at);
        impl_->set_counter_.execute("scrub_bad_frames", state.bad_frames);
    });
}

void Index::remove(const Victims& victims) {
    const std::lock_guard lock(impl_->mutex_);
    const auto remove_all = [&] {
        for (const std::int64_t image : victims.images) impl_->remove_image_.execute(image);
        for (const DiffId& layer : victims.layers) impl_->remove_layer_.execute(layer);
        for (const TreeDigest& tree : victims.trees) impl_->remove_tree_.execute(tree);
        for (const std::uint32_t pack : victims.packs) impl_->remove_pack_.execute(pack);
    };
    try {
        return impl_->transact(remove_all);
    } catch (const Error& error) {  // More than the log's reserve takes: then by and by, in the same order.
        if (error.code() != Errc::no_space && error.code() != Errc::quota) throw;
    }
    const auto remove_some = [&](auto& statement, const auto& rows) {
        for (std::size_t begin = 0; begin < rows.size(); begin += kFewRows) {
            impl_->transact([&] {
                const std::size_t end = std::min(rows.size(), begin + kFewRows);
                for (std::size_t i = begin; i < end; ++i) statement.execute(rows[i]);
            });
        }
    };
    remove_some(impl_->remove_image_, victims.images);
    remove_some(impl_->remove_layer_, victims.layers);
    remove_some(impl_->remove_tree_, victims.trees);
    remove_some(impl_->remove_pack_, victims.packs);
}

Index::FileBytes Index::file_bytes() {
    const std::lock_guard lock(impl_->mutex_);
    const std::string& path = impl_->database_.path();
    FileBytes bytes{.now = file_size(path)};
    if (exists(log_of(path))) bytes.now += file_size(log_of(path));
    bytes.settled = bytes.now;
    if (!impl_->has_plenty()) return bytes;
    Statement statement(impl_->database_, "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size");
    for (Rows rows = statement.run(); rows.next();) bytes.settled = rows.count(0);
    return bytes;
}

void Index::shorten_log() {
    const std::lock_guard lock(impl_->mutex_);
    impl_->shorten_log();
}

std::vector<std::string> Index::check() {
    const std::lock_guard lock(impl_->mutex_);
    std::vector<std::string> problems;
    Statement integrity(impl_->database_, "PRAGMA integrity_check(100)");
    for (Rows rows = integrity.run(); rows.next();) {
        if (rows.text(0) != "ok") problems.push_back("index: " + rows.text(0));
    }
    Statement foreign(impl_->database_, "SELECT \"table\", parent FROM pragma_foreign_key_check LIMIT 100");
    for (Rows rows = foreign.run(); rows.next();) {
        problems.push_back("index: a row of " + rows.text(0) + " names a missing row of " + rows.text(1));
    }
    return problems;
}

}  // namespace lamina::store
