#include "store/lazy_index.h"

#include "store/error.h"
#include "store/json.h"
#include "store/memory_source.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include <future>
#include <map>

namespace lamina::store {

namespace {

constexpr const char* kArtifactType = "application/vnd.lamina.index.v1";
constexpr const char* kTraceType = "application/vnd.lamina.start-trace.v1";
constexpr const char* kBundleDirectoryType = "application/vnd.lamina.start-bundle-directory.v1";
constexpr std::uint64_t kMaxTraceBytes = 8 << 20;
constexpr const char* kManifestType = "application/vnd.oci.image.manifest.v1+json";
constexpr const char* kImageIndexType = "application/vnd.oci.image.index.v1+json";
constexpr const char* kEmptyType = "application/vnd.oci.empty.v1+json";
constexpr const char* kDiffIdKey = "lamina.diff-id";
constexpr const char* kManifestKey = "lamina.manifest";  ///< Of an entry under the fallback tag: its own text.
constexpr std::size_t kMaxInlineBytes = 64 << 10;
constexpr std::string_view kEmptyConfig = "{}";

boost::json::object json_of(const oci::Descriptor& descriptor) {
    boost::json::object object{{"mediaType", descriptor.media_type},
                               {"digest", descriptor.digest.digest.text()},
                               {"size", descriptor.size_bytes}};
    if (descriptor.annotations.empty()) return object;
    boost::json::object annotations;
    for (const auto& [key, value] : descriptor.annotations) annotations[key] = value;
    object["annotations"] = std::move(annotations);
    return object;
}

oci::Descriptor empty_config() {
    const auto bytes = as_bytes(kEmptyConfig);
    return {.media_type = kEmptyType, .digest = {Digest::of(bytes)}, .size_bytes = bytes.size()};
}

std::string fallback_tag(const BlobDigest& subject) {
    return "sha256-" + subject.digest.hex();
}

/// The last descriptor in an image index that is an artifact of this type.
std::optional<oci::Descriptor> newest_in(std::span<const std::byte> document, std::string_view type) {
    const boost::json::value value = json::parse(document, {.document_bytes = oci::kMaxDocumentBytes});
    const json::Field manifests = json::Field(value, "").member("manifests");
    const oci::ImageIndex index = oci::parse_image_index(document);
    for (std::size_t i = index.manifests.size(); i > 0; --i) {
        if (manifests.item(i - 1).text_or_empty("artifactType") == type) return index.manifests[i - 1];
    }
    return std::nullopt;
}

/// An image index of all that was published beside the subject; nullopt: nothing was. Both ways are tried at once: what
/// the registry knows is not known, and a start waits for the answer.
std::optional<std::vector<std::byte>> referrers(RegistrySession& session, const BlobDigest& subject) {
    auto tagged = std::async(std::launch::async, [&]() -> std::optional<std::vector<std::byte>> {
        try {
            return session.manifest(fallback_tag(subject)).bytes;
        } catch (const Error& error) {  // No such tag: nobody has published one.
            if (error.code() != Errc::not_found) throw;
            return std::nullopt;
        }
    });
    if (auto document = session.find_referrers(subject)) return document;
    return tagged.get();
}

// Two who do this at once may lose one of the two entries: the registry offers no way to tell. What is lost is an index
// that can be published again.
void add_to_fallback_tag(RegistrySession& session, const BlobDigest& subject, boost::json::object entry) {
    boost::json::value index =
        boost::json::object{{"schemaVersion", 2}, {"mediaType", kImageIndexType}, {"manifests", boost::json::array()}};
    try {
        const auto document = session.manifest(fallback_tag(subject));
        oci::parse_image_index(document.bytes);
        index = json::parse(document.bytes, {.document_bytes = oci::kMaxDocumentBytes});
    } catch (const Error& error) {  // The first one.
        if (error.code() != Errc::not_found) throw;
    }
    boost::json::array& entries = index.as_object().at("manifests").as_array();
    const boost::json::value digest = entry.at("digest");
    for (const boost::json::value& other : entries) {
        if (other.as_object().at("digest") == digest) return;
    }
    entries.push_back(std::move(entry));
    session.put_manifest(fallback_tag(subject), kImageIndexType, as_bytes(boost::json::serialize(index)));
}

std::string artifact_text(const char* type, boost::json::array blobs, const oci::Descriptor& subject) {
    return boost::json::serialize(boost::json::object{{"schemaVersion", 2},
                                                      {"mediaType", kManifestType},
                                                      {"artifactType", type},
                                                      {"config", json_of(empty_config())},
                                                      {"layers", std::move(blobs)},
                                                      {"subject", json_of(subject)}});
}

void send_blob(RegistrySession& session, const oci::Descriptor& blob, std::span<const std::byte> bytes) {
    if (session.find_blob(blob.digest)) return;
    session.upload_blob(
        blob, [&] { return std::make_unique<MemorySource>(std::vector<std::byte>(bytes.begin(), bytes.end())); });
}

void publish_artifact(RegistrySession& session, const char* type, const std::string& text,
                      const oci::Descriptor& subject) {
    send_blob(session, empty_config(), as_bytes(kEmptyConfig));
    const auto bytes = as_bytes(text);
    oci::Descriptor artifact{.media_type = kManifestType, .digest = {Digest::of(bytes)}, .size_bytes = bytes.size()};
    const bool has_referrers = session.put_manifest(artifact.digest.digest.text(), kManifestType, bytes);
    if (has_referrers) return;
    if (bytes.size() <= kMaxInlineBytes) artifact.annotations = {{kManifestKey, text}};
    boost::json::object entry = json_of(artifact);
    entry["artifactType"] = type;
    add_to_fallback_tag(session, subject.digest, std::move(entry));
}

/// The manifest of what is published; from beside its descriptor where it stands there, which saves a start a request.
std::vector<std::byte> artifact_manifest(RegistrySession& session, const oci::Descriptor& published) {
    const auto found = published.annotations.find(kManifestKey);
    if (found != published.annotations.end()) {
        const auto bytes = as_bytes(found->second);
        if (Digest::of(bytes) == published.digest.digest) return {bytes.begin(), bytes.end()};
    }
    return session.manifest(published.digest.digest.text()).bytes;
}

}  // namespace

std::string LazyIndex::write(const oci::Descriptor& subject) const {
    boost::json::array blobs;
    for (const Layer& layer : layers) {
        for (oci::Descriptor blob : {layer.recipe, layer.points}) {
            blob.annotations = {{kDiffIdKey, layer.diff_id.digest.text()}};
            blobs.push_back(json_of(blob));
        }
    }
    return artifact_text(kArtifactType, std::move(blobs), subject);
}

LazyIndex LazyIndex::parse(std::span<const std::byte> manifest, const BlobDigest& subject) {
    const boost::json::value value = json::parse(manifest, {.document_bytes = oci::kMaxDocumentBytes});
    const json::Field root(value, "");
    const oci::Manifest document = oci::parse_manifest(manifest, kManifestType);
    if (root.text_or_empty("artifactType") != kArtifactType)
        root.fail("artifactType is not " + std::string(kArtifactType));
    if (root.member("subject").member("digest").text() != subject.digest.text()) root.fail("it is of another image");
    if (document.layers.size() % 2 != 0) root.fail("it has not two blobs for each layer");
    LazyIndex index;
    for (std::size_t i = 0; i < document.layers.size(); i += 2) {
        const oci::Descriptor& recipe = document.layers[i];
        const oci::Descriptor& points = document.layers[i + 1];
        const auto diff_id = recipe.annotations.find(kDiffIdKey);
        const bool is_pair = recipe.media_type == kRecipeMediaType && points.media_type == kAccessPointsMediaType &&
                             diff_id != recipe.annotations.end() && points.annotations == recipe.annotations;
        if (!is_pair) root.fail("its blobs are not recipe and access points of a layer");
        index.layers.push_back({.diff_id = {Digest::parse(diff_id->second)}, .recipe = recipe, .points = points});
    }
    return index;
}

PublishedBeside find_published(RegistrySession& session, const BlobDigest& subject) {
    const auto document = referrers(session, subject);
    if (!document) return {};
    return {.index = newest_in(*document, kArtifactType), .trace = newest_in(*document, kTraceType)};
}

LazyIndex read_lazy_index(RegistrySession& session, const oci::Descriptor& published, const BlobDigest& subject) {
    return LazyIndex::parse(artifact_manifest(session, published), subject);
}

PublishedTrace read_start_trace(RegistrySession& session, const oci::Descriptor& published) {
    const std::vector<oci::Descriptor> blobs =
        oci::parse_manifest(artifact_manifest(session, published), kManifestType).layers;
    const bool has_bundle = blobs.size() == 3 && blobs[1].media_type == kBundleDirectoryType &&
                            blobs[2].media_type == kStartBundleMediaType;
    if (blobs.size() != 1 && !has_bundle) throw Error(Errc::malformed, "start trace: not the blobs of one");
    const auto read = [&](const oci::Descriptor& blob) {
        if (blob.size_bytes > kMaxTraceBytes) throw Error(Errc::malformed, "start trace: too large");
        return session.read_blob(blob);
    };
    if (!has_bundle) return {.trace = StartTrace::parse(read(blobs[0])), .bundle = std::nullopt};
    auto directory = std::async(std::launch::async, read, blobs[1]);
    PublishedTrace found{.trace = StartTrace::parse(read(blobs[0])),
                         .bundle = PublishedBundle{StartBundle::parse(directory.get()), blobs[2]}};
    if (found.bundle->directory.blob_bytes() != found.bundle->blob.size_bytes)
        throw Error(Errc::malformed, "start bundle: its blob has another size than its frames");
    return found;
}

void publish_lazy_index(RegistrySession& session, const LazyIndex& index, const oci::Descriptor& subject) {
    publish_artifact(session, kArtifactType, index.write(subject), subject);
}

void publish_start_trace(RegistrySession& session, const PublishedTrace& trace, const oci::Descriptor& subject) {
    boost::json::array blobs;
    const auto send = [&](const char* media_type, const std::string& text) {
        const auto bytes = as_bytes(text);
        const oci::Descriptor blob{.media_type = media_type, .digest = {Digest::of(bytes)}, .size_bytes = bytes.size()};
        send_blob(session, blob, bytes);
        blobs.push_back(json_of(blob));
    };
    send(kTraceType, trace.trace.write());
    if (trace.bundle) {
        send(kBundleDirectoryType, trace.bundle->directory.write());
        blobs.push_back(json_of(trace.bundle->blob));
    }
    publish_artifact(session, kTraceType, artifact_text(kTraceType, std::move(blobs), subject), subject);
}

}  // namespace lamina::store
