#include "store/docker_archive_source.h"

#include "store/error.h"
#include "store/printable.h"
#include "store/reference.h"

#include <algorithm>
#include <utility>

// Such an archive has no OCI manifest, so one is made from what is there: the config's digest, and for each layer the
// digest and size of the file as it lies in the archive. The digest of an uncompressed layer is its diff ID; that of a
// compressed one is in its name, or else the layer is read once for it.
namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxAllDocumentBytes = 64ull << 20;
constexpr std::size_t kMaxImages = 1000;
constexpr std::size_t kMaxTags = 1000;
constexpr std::string_view kConfigType = "application/vnd.oci.image.config.v1+json";
constexpr std::string_view kManifestType = "application/vnd.oci.image.manifest.v1+json";

std::string_view layer_type(Compression compression) {
    switch (compression) {
        case Compression::none:
            return "application/vnd.oci.image.layer.v1.tar";
        case Compression::gzip:
            return "application/vnd.oci.image.layer.v1.tar+gzip";
        case Compression::zstd:
            return "application/vnd.oci.image.layer.v1.tar+zstd";
    }
    return "";
}

/// What "blobs/sha256/<hex>" or "<hex>.json" promises; nullopt for a name that promises nothing.
std::optional<Digest> digest_in(std::string_view path) {
    constexpr std::string_view blobs = "blobs/sha256/";
    constexpr std::string_view json = ".json";
    if (path.starts_with(blobs)) {
        path.remove_prefix(blobs.size());
    } else if (path.ends_with(json)) {
        path.remove_suffix(json.size());
    } else {
        return std::nullopt;
    }
    const bool is_hex =
        path.size() == 2 * Digest::kSizeBytes && path.find_first_not_of("0123456789abcdef") == std::string_view::npos;
    return is_hex ? std::optional(Digest::parse_hex(path)) : std::nullopt;
}

/// Tags of one image differ in how much they spell out.
std::string comparable(std::string_view name) {
    constexpr std::string_view host = "docker.io/";
    constexpr std::string_view library = "library/";
    if (name.starts_with(host)) {
        name.remove_prefix(host.size());
        if (name.starts_with(library)) name.remove_prefix(library.size());
    }
    const bool has_tag = name.find(':', name.rfind('/') + 1) != std::string_view::npos;
    return std::string(name) + (has_tag ? "" : ":latest");
}

Digest digest_of(ByteSource& bytes) {
    Hasher hasher;
    std::vector<std::byte> buffer(256 * 1024);
    while (const std::size_t got = bytes.read(buffer)) hasher.update(std::span(buffer).first(got));
    return hasher.finish();
}

}  // namespace

DockerArchiveSource::DockerArchiveSource(std::unique_ptr<SourceFiles> files, std::string tag)
    : files_(std::move(files)), tag_(std::move(tag)) {}

std::vector<std::string> DockerArchiveSource::wanted_names(const json::Field& entry) const {
    std::vector<std::string> names;
    if (const std::optional<json::Field> tags = entry.find_member("RepoTags")) {
        const std::size_t count = tags->item_count();
        if (count > kMaxTags) tags->fail("more than " + std::to_string(kMaxTags) + " tags");
        for (std::size_t i = 0; i < count; ++i) names.push_back(tags->item(i).text());
    }
    if (tag_.empty()) {
        if (names.empty()) names.emplace_back();
        return names;
    }
    const auto is_other = [&](const std::string& name) { return comparable(name) != comparable(tag_); };
    names.erase(std::remove_if(names.begin(), names.end(), is_other), names.end());
    return names;
}

SourceLayer DockerArchiveSource::load_layer(const std::string& path, const DiffId& diff_id) const {
    const SourceFiles::OpenFile file = files_->open(path);
    const Compression compression = compression_of(file.first_bytes);
    std::optional<Digest> digest = digest_in(path);
    if (!digest && compression == Compression::none) digest = diff_id.digest;
    if (!digest) digest = digest_of(*file.bytes);
    return {.diff_id = diff_id, .blob = LayerStream::Expected{{*digest}, file.size_bytes}, .compression = compression};
}

void DockerArchiveSource::count_document(std::uint64_t bytes, const json::Field& entry) {
    document_bytes_ += bytes;
    if (document_bytes_ > kMaxAllDocumentBytes) entry.fail("with it all configs are larger than 64 MiB");
}

DockerArchiveSource::Loaded DockerArchiveSource::load_image(const json::Field& entry) {
    Loaded loaded{.image = {.manifest_media_type = std::string(kManifestType)}};
    SourceImage& image = loaded.image;
    const std::string config_path = entry.member("Config").text();
    image.config = files_->read(config_path, oci::kMaxDocumentBytes);
    const Digest config_digest = Digest::of(image.config);
    if (const std::optional<Digest> promised = digest_in(config_path); promised && *promised != config_digest) {
        throw Error(Errc::corrupt,
                    files_->describe(config_path) + ": wrong digest, its bytes have " + config_digest.text());
    }
    oci::Config config;
    try {
        config = oci::parse_config(image.config);
    } catch (const Error& error) {  // Which document it was.
        throw with_context(error, files_->describe(config_path));
    }
    const std::optional<json::Field> layers = entry.find_member("Layers");
    const std::size_t count = layers ? layers->item_count() : 0;
    if (count != config.diff_ids.size()) {
        entry.fail(std::to_string(count) + " layers, the config has " + std::to_string(config.diff_ids.size()) +
                   " diff IDs");
    }
    std::vector<oci::Descriptor> descriptors;
    for (std::size_t i = 0; i < count; ++i) {
        loaded.layer_paths.push_back(layers->item(i).text());
        image.layers.push_back(load_layer(loaded.layer_paths.back(), config.diff_ids[i]));
        const LayerStream::Expected& blob = *image.layers.back().blob;
        image.total_blob_bytes += blob.size_bytes;
        descriptors.push_back({.media_type = std::string(layer_type(image.layers.back().compression.value())),
                               .digest = blob.digest,
                               .size_bytes = blob.size_bytes});
    }
    const std::string manifest = oci::write_manifest(
        {.media_type = std::string(kConfigType), .digest = {config_digest}, .size_bytes = image.config.size()},
        descriptors);
    const std::span<const std::byte> bytes = as_bytes(manifest);
    image.manifest.assign(bytes.begin(), bytes.end());
    return loaded;
}

void DockerArchiveSource::load() {
    const std::string where = files_->describe("manifest.json");
    const std::vector<std::byte> document = files_->read("manifest.json", oci::kMaxDocumentBytes);
    const boost::json::value value = json::parse(document, {.document_bytes = oci::kMaxDocumentBytes});
    const json::Field entries(value, "");
    std::vector<Loaded> all;
    for (std::size_t i = 0; i < entries.item_count(); ++i) {
        const json::Field entry = entries.item(i);
        const std::vector<std::string> names = wanted_names(entry);
        if (names.empty()) continue;
        if (all.size() + names.size() > kMaxImages) {
            entries.fail("more than " + std::to_string(kMaxImages) + " images; name one of them");
        }
        Loaded loaded = load_image(entry);
        for (const std::string& name : names) {
            loaded.image.name = name;
            count_document(loaded.image.config.size(), entry);  // Each has a copy.
            all.push_back(loaded);
        }
    }
    if (all.empty() && !tag_.empty()) throw Error(Errc::not_found, where + ": no image named " + quote(tag_));
    if (all.empty()) entries.fail("no image in it");
    loaded_ = std::move(all);
}

void DockerArchiveSource::load_once() {
    if (!loaded_.empty()) return;
    try {
        load();
    } catch (const Error& error) {  // Which document it was, unless it says so.
        if (std::string_view(error.what()).starts_with(files_->describe(""))) throw;
        throw with_context(error, files_->describe("manifest.json"));
    }
}

std::vector<SourceImage> DockerArchiveSource::images() {
    load_once();
    std::vector<SourceImage> images;
    for (const Loaded& loaded : loaded_) images.push_back(loaded.image);
    return images;
}

std::unique_ptr<ByteSource> DockerArchiveSource::open_layer(std::size_t image, std::size_t layer) {
    load_once();
    return files_->open(loaded_.at(image).layer_paths.at(layer)).bytes;
}

}  // namespace lamina::store
