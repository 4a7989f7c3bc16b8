#include "store/oci.h"

#include "store/error.h"
#include "store/json.h"
#include "store/printable.h"

#include <sys/utsname.h>

#include <algorithm>
#include <array>

// Reads the OCI documents into values. Two rules go beyond the specification's text, because one document must not mean
// two things to two readers: a known field in another spelling ("Layers") is refused, as some readers ignore case; and
// what a descriptor says of a document must be what the document says of itself.
namespace lamina::store::oci {

namespace {

using json::Field;

constexpr std::string_view kManifestType = "application/vnd.oci.image.manifest.v1+json";
constexpr std::string_view kDockerManifestType = "application/vnd.docker.distribution.manifest.v2+json";
constexpr std::string_view kImageIndexType = "application/vnd.oci.image.index.v1+json";
constexpr std::string_view kDockerListType = "application/vnd.docker.distribution.manifest.list.v2+json";
constexpr std::size_t kMaxImageIndexEntries = 10'000;
constexpr std::size_t kMaxMediaTypeBytes = 255;

struct LayerType {
    std::string_view media_type;
    Compression compression;
};
constexpr std::array kLayerTypes = {
    LayerType{"application/vnd.oci.image.layer.v1.tar", Compression::none},
    LayerType{"application/vnd.oci.image.layer.v1.tar+gzip", Compression::gzip},
    LayerType{"application/vnd.oci.image.layer.v1.tar+zstd", Compression::zstd},
    LayerType{"application/vnd.oci.image.layer.nondistributable.v1.tar", Compression::none},
    LayerType{"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Compression::gzip},
    LayerType{"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Compression::zstd},
    LayerType{"application/vnd.docker.image.rootfs.diff.tar", Compression::none},
    LayerType{"application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::gzip},
    LayerType{"application/vnd.docker.image.rootfs.diff.tar.zstd", Compression::zstd},
    LayerType{"application/vnd.docker.image.rootfs.foreign.diff.tar", Compression::none},
    LayerType{"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Compression::gzip},
};

bool equal_but_for_case(std::string_view a, std::string_view b) {
    const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; };
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [&](char left, char right) { return lower(left) == lower(right); });
}

void refuse_other_spellings(const Field& object, std::span<const std::string_view> known) {
    for (const auto& member : object.object()) {
        const std::string_view key(member.key().data(), member.key().size());
        for (const std::string_view name : known) {
            if (key != name && equal_but_for_case(key, name)) {
                object.fail("the field " + quote(key) + " differs from \"" + std::string(name) + "\" in case only");
            }
        }
    }
}

Platform read_platform(const Field& field) {
    return Platform{.os = field.text_or_empty("os"),
                    .architecture = field.text_or_empty("architecture"),
                    .variant = field.text_or_empty("variant")};
}

Digest read_digest(const Field& field) {
    const std::string text = field.text();
    try {
        return Digest::parse(text);
    } catch (const Error&) {  // Said again with the field that it is about.
        field.fail(quote(text) + " is not sha256:<64 lower-case hex digits>");
    }
}

Descriptor read_descriptor(const Field& field) {
    constexpr std::array<std::string_view, 3> known = {"mediaType", "digest", "size"};
    refuse_other_spellings(field, known);
    const Field media_type = field.member("mediaType");
    Descriptor descriptor{.media_type = media_type.text(),
                          .digest = {read_digest(field.member("digest"))},
                          .size_bytes = field.member("size").size_bytes()};
    if (descriptor.media_type.empty() || descriptor.media_type.size() > kMaxMediaTypeBytes) {
        media_type.fail("a media type has 1 to 255 bytes");
    }
    if (const auto platform = field.find_member("platform")) descriptor.platform = read_platform(*platform);
    if (const auto annotations = field.find_member("annotations")) {
        for (const auto& member : annotations->object()) {
            const std::string key(member.key().data(), member.key().size());
            descriptor.annotations.emplace(key, Field(member.value(), annotations->where() + "." + quote(key)).text());
        }
    }
    return descriptor;
}

void check_schema(const Field& root) {
    constexpr std::array<std::string_view, 5> known = {"schemaVersion", "mediaType", "config", "layers", "manifests"};
    root.object();
    refuse_other_spellings(root, known);
    const std::uint64_t version = root.member("schemaVersion").size_bytes();
    if (version != 2) {
        throw Error(version == 1 ? Errc::unsupported : Errc::malformed,
                    "schemaVersion: " + std::to_string(version) + ", only 2 can be read");
    }
    if (root.find_member("manifests") && (root.find_member("layers") || root.find_member("config"))) {
        root.fail("it has \"manifests\" and \"layers\" or \"config\": an image index or a manifest, not both");
    }
}

void append_descriptor(std::string& out, const Descriptor& descriptor) {
    out += "{\"mediaType\":" + json::quote(descriptor.media_type);
    out += ",\"digest\":" + json::quote(descriptor.digest.digest.text());
    out += ",\"size\":" + std::to_string(descriptor.size_bytes);
    if (!descriptor.annotations.empty()) {
        char separator = '{';
        out += ",\"annotations\":";
        for (const auto& [key, value] : descriptor.annotations) {
            out += separator + json::quote(key) + ":" + json::quote(value);
            separator = ',';
        }
        out += '}';
    }
    out += '}';
}

std::string platform_list(const ImageIndex& index) {
    std::string out;
    std::size_t shown = 0;
    for (const Descriptor& descriptor : index.manifests) {
        if (!descriptor.platform) continue;
        if (++shown > 16) return out + ", ...";
        if (!out.empty()) out += ", ";
        const std::string text = descriptor.platform->text();
        const std::string safe = quote(text, 60);
        out += safe.size() == text.size() + 2 ? text : safe;
    }
    return out.empty() ? "none that names its platform" : out;
}

}  // namespace

Platform Platform::parse(std::string_view text) {
    Platform platform;
    std::array<std::string*, 3> parts = {&platform.os, &platform.architecture, &platform.variant};
    std::size_t part = 0;
    for (const char c : text) {
        const bool is_word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
                             c == '_' || c == '-';
        if (c == '/' && part < 2 && !parts[part]->empty()) {
            ++part;
        } else if (is_word) {
            *parts[part] += c;
        } else {
            part = parts.size();
        }
        if (part == parts.size()) break;
    }
    if (part == 0 || part == parts.size() || parts[part]->empty() || text.size() > 100) {
        throw Error(Errc::malformed, "platform " + quote(text) + ": not OS/ARCHITECTURE[/VARIANT]");
    }
    return platform;
}

Platform Platform::host() {
    Platform platform{.os = "linux"};
    utsname names{};
    if (::uname(&names) != 0) throw Error(Errc::internal, "uname: fails");
    const std::string_view machine = names.machine;
    if (machine == "x86_64") {
        platform.architecture = "amd64";
    } else if (machine == "aarch64") {
        platform.architecture = "arm64";
    } else if (machine == "i686" || machine == "i386") {
        platform.architecture = "386";
    } else if (machine.starts_with("armv")) {
        platform.architecture = "arm";
        platform.variant = machine.substr(3, 2);
    } else {
        platform.architecture = machine;  // riscv64, ppc64le, s390x: the same word in both worlds.
    }
    return platform;
}

std::string Platform::text() const {
    return os + "/" + architecture + (variant.empty() ? "" : "/" + variant);
}

bool Platform::matches(const Platform& wanted) const {
    return os == wanted.os && architecture == wanted.architecture &&
           (variant.empty() || wanted.variant.empty() || variant == wanted.variant);
}

bool is_image_index(std::string_view media_type) {
    return media_type == kImageIndexType || media_type == kDockerListType;
}

bool is_manifest(std::string_view media_type) {
    return media_type == kManifestType || media_type == kDockerManifestType;
}

std::optional<Compression> layer_compression(std::string_view media_type) {
    const auto* const found = std::find_if(kLayerTypes.begin(), kLayerTypes.end(),
                                           [&](const LayerType& type) { return type.media_type == media_type; });
    if (found == kLayerTypes.end()) return std::nullopt;
    return found->compression;
}

Manifest parse_manifest(std::span<const std::byte> document, std::string_view expected_media_type) {
    const boost::json::value value = json::parse(document, {.document_bytes = kMaxDocumentBytes});
    const Field root(value, "");
    check_schema(root);
    if (root.find_member("manifests")) root.fail("an image index where a manifest is expected");
    Manifest manifest{.media_type = root.text_or_empty("mediaType"), .config = read_descriptor(root.member("config"))};
    if (manifest.media_type.empty())
        manifest.media_type = expected_media_type.empty() ? kManifestType : expected_media_type;
    if (!expected_media_type.empty() && manifest.media_type != expected_media_type) {
        root.fail("mediaType: " + quote(manifest.media_type) + ", its descriptor says " + quote(expected_media_type));
    }
    if (!is_manifest(manifest.media_type)) {
        root.fail("mediaType: " + quote(manifest.media_type) + " is no manifest's");
    }
    const Field layers = root.member("layers");
    const std::size_t count = layers.item_count();
    if (count > kMaxLayers) layers.fail(std::to_string(count) + " layers, at most " + std::to_string(kMaxLayers));
    for (std::size_t i = 0; i < count; ++i) manifest.layers.push_back(read_descriptor(layers.item(i)));
    return manifest;
}

ImageIndex parse_image_index(std::span<const std::byte> document) {
    const boost::json::value value = json::parse(document, {.document_bytes = kMaxDocumentBytes});
    const Field root(value, "");
    check_schema(root);
    if (root.find_member("layers")) root.fail("a manifest where an image index is expected");
    const std::string media_type = root.text_or_empty("mediaType");
    if (!media_type.empty() && !is_image_index(media_type)) {
        root.fail("mediaType: " + quote(media_type) + " is no image index's");
    }
    const Field manifests = root.member("manifests");
    const std::size_t count = manifests.item_count();
    if (count > kMaxImageIndexEntries) {
        manifests.fail(std::to_string(count) + " entries, at most " + std::to_string(kMaxImageIndexEntries));
    }
    ImageIndex index;
    for (std::size_t i = 0; i < count; ++i) index.manifests.push_back(read_descriptor(manifests.item(i)));
    return index;
}

Config parse_config(std::span<const std::byte> document) {
    const boost::json::value value = json::parse(document, {.document_bytes = kMaxDocumentBytes});
    const Field root(value, "");
    Config config{.platform = read_platform(root), .created = root.text_or_empty("created")};
    constexpr std::array<std::string_view, 1> known = {"rootfs"};
    refuse_other_spellings(root, known);
    const Field rootfs = root.member("rootfs");
    constexpr std::array<std::string_view, 2> rootfs_known = {"type", "diff_ids"};
    refuse_other_spellings(rootfs, rootfs_known);
    const Field type = rootfs.member("type");
    if (type.text() != "layers") type.fail(quote(type.text()) + ", only \"layers\" is known");
    const std::optional<Field> diff_ids = rootfs.find_member("diff_ids");
    const std::size_t count = diff_ids ? diff_ids->item_count() : 0;
    if (count > kMaxLayers) diff_ids->fail(std::to_string(count) + " layers, at most " + std::to_string(kMaxLayers));
    for (std::size_t i = 0; i < count; ++i) config.diff_ids.push_back({read_digest(diff_ids->item(i))});
    return config;
}

const Descriptor& choose_platform(const ImageIndex& index, const Platform& wanted) {
    const auto matches = [&](const Descriptor& entry) { return entry.platform && entry.platform->matches(wanted); };
    const auto found = std::find_if(index.manifests.begin(), index.manifests.end(), matches);
    if (found != index.manifests.end()) return *found;
    // An index of one image need not say what the image is for.
    if (index.manifests.size() == 1 && !index.manifests.front().platform) return index.manifests.front();
    throw Error(Errc::malformed, "no image for " + wanted.text() + "; there are: " + platform_list(index));
}

std::string write_manifest(const Descriptor& config, const std::vector<Descriptor>& layers) {
    std::string out = "{\"schemaVersion\":2,\"mediaType\":" + json::quote(kManifestType) + ",\"config\":";
    append_descriptor(out, config);
    out += ",\"layers\":[";
    for (std::size_t i = 0; i < layers.size(); ++i) {
        if (i > 0) out += ',';
        append_descriptor(out, layers[i]);
    }
    return out + "]}";
}

}  // namespace lamina::store::oci
