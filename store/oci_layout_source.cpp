#include "store/oci_layout_source.h"

#include "store/error.h"
#include "store/json.h"
#include "store/printable.h"

#include <algorithm>
#include <map>

// An image is found in four steps: the entries of index.json that the tag means; image indexes among them resolved to
// one manifest by platform; manifest and config read, their size and digest checked; each layer's blob looked at
// (there, a regular file, of the promised size, of a type that can be unpacked), so that an import which cannot end
// well fails before it has begun. The layers' digests are checked by who reads them.
namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxAllDocumentBytes = 64ull << 20;
constexpr std::size_t kMaxImages = 1000;
constexpr std::string_view kRefName = "org.opencontainers.image.ref.name";
constexpr std::string_view kContainerdName = "io.containerd.image.name";

std::string annotation(const oci::Descriptor& descriptor, std::string_view key) {
    const auto found = descriptor.annotations.find(std::string(key));
    return found == descriptor.annotations.end() ? std::string() : found->second;
}

// containerd and Docker write the whole name beside a ref.name that is only the tag.
std::string name_of(const oci::Descriptor& descriptor) {
    const std::string whole = annotation(descriptor, kContainerdName);
    return whole.empty() ? annotation(descriptor, kRefName) : whole;
}

}  // namespace

void check_layout_version(const SourceFiles& files) {
    if (!files.has("oci-layout")) {
        throw Error(Errc::malformed, files.describe("oci-layout") + ": missing, so this is no OCI image layout");
    }
    const std::vector<std::byte> document = files.read("oci-layout", 64 * 1024);
    try {
        const boost::json::value value = json::parse(document, {});
        const std::string version = json::Field(value, "").member("imageLayoutVersion").text();
        if (version != "1.0.0") {
            throw Error(Errc::unsupported, "imageLayoutVersion " + quote(version) + ", only \"1.0.0\" can be read");
        }
    } catch (const Error& error) {  // Which file it was.
        throw with_context(error, files.describe("oci-layout"));
    }
}

std::string blob_path(const BlobDigest& digest) {
    return "blobs/sha256/" + digest.digest.hex();
}

OciLayoutSource::OciLayoutSource(std::unique_ptr<SourceFiles> files, std::string tag, oci::Platform platform)
    : files_(std::move(files)), tag_(std::move(tag)), platform_(std::move(platform)) {}

std::string OciLayoutSource::document_name(const BlobDigest& digest) const {
    return files_->describe(blob_path(digest));
}

std::vector<std::byte> OciLayoutSource::read(const oci::Descriptor& descriptor) {
    const std::string name = files_->describe(blob_path(descriptor.digest));
    if (descriptor.size_bytes > oci::kMaxDocumentBytes) {
        throw Error(Errc::malformed, name + ": its descriptor promises " + std::to_string(descriptor.size_bytes) +
                                         " bytes, a document has at most " + std::to_string(oci::kMaxDocumentBytes));
    }
    document_bytes_ += descriptor.size_bytes;
    if (document_bytes_ > kMaxAllDocumentBytes) {
        throw Error(Errc::malformed, name + ": with it all documents are larger than " +
                                         std::to_string(kMaxAllDocumentBytes) + " bytes");
    }
    std::vector<std::byte> data = files_->read(blob_path(descriptor.digest), oci::kMaxDocumentBytes);
    if (data.size() != descriptor.size_bytes) {
        throw Error(Errc::corrupt, name + ": " + std::to_string(data.size()) + " bytes, its descriptor promises " +
                                       std::to_string(descriptor.size_bytes));
    }
    const Digest found = Digest::of(data);
    if (found != descriptor.digest.digest) {
        throw Error(Errc::corrupt, name + ": wrong digest, its bytes have " + found.text());
    }
    return data;
}

std::vector<OciLayoutSource::Named> OciLayoutSource::chosen_entries() {
    check_layout_version(*files_);
    const std::string where = files_->describe("index.json");
    if (!files_->has("index.json")) throw Error(Errc::malformed, where + ": missing");
    const std::vector<std::byte> document = files_->read("index.json", oci::kMaxDocumentBytes);
    const oci::ImageIndex index = parse_naming(where, [&] { return oci::parse_image_index(document); });

    std::map<std::string, oci::ImageIndex> by_name;
    std::vector<Named> chosen;
    for (const oci::Descriptor& entry : index.manifests) {
        const std::string name = name_of(entry);
        const bool is_wanted = tag_.empty() || name == tag_ || annotation(entry, kRefName) == tag_;
        if (!is_wanted) continue;
        if (name.empty() && !entry.platform) {
            chosen.push_back({name, entry});
            continue;
        }
        std::vector<oci::Descriptor>& same = by_name[name].manifests;
        const bool is_known = std::any_of(same.begin(), same.end(), [&](const oci::Descriptor& other) {
            return other.digest == entry.digest && other.media_type == entry.media_type;
        });
        if (!is_known) same.push_back(entry);
    }
    for (const auto& [name, same] : by_name) {
        const bool has_platforms = std::all_of(same.manifests.begin(), same.manifests.end(),
                                               [](const oci::Descriptor& entry) { return entry.platform.has_value(); });
        if (same.manifests.size() == 1) {
            chosen.push_back({name, same.manifests.front()});
        } else if (has_platforms) {
            chosen.push_back(
                {name, parse_naming(where, [&, &entries = same] { return oci::choose_platform(entries, platform_); })});
        } else {
            throw Error(Errc::malformed,
                        where + ": " + quote(name) + " names " + std::to_string(same.manifests.size()) + " images");
        }
    }
    if (chosen.empty() && !tag_.empty()) throw Error(Errc::not_found, where + ": no image named " + quote(tag_));
    if (chosen.size() > kMaxImages) {
        throw Error(Errc::malformed, where + ": " + std::to_string(chosen.size()) + " images, at most " +
                                         std::to_string(kMaxImages) + "; name one of them");
    }
    return chosen;
}

SourceLayer OciLayoutSource::describe_layer(const oci::Descriptor& descriptor, const DiffId& diff_id) {
    const std::string path = blob_path(descriptor.digest);
    check_layer_type(descriptor);
    if (!files_->has(path)) throw Error(Errc::not_found, files_->describe(path) + ": missing layer");
    const SourceFiles::OpenFile file = files_->open(path);
    if (file.size_bytes != descriptor.size_bytes) {
        throw Error(Errc::corrupt, files_->describe(path) + ": " + std::to_string(file.size_bytes) +
                                       " bytes, the manifest promises " + std::to_string(descriptor.size_bytes));
    }
    // What the bytes say counts, as for every other reader: media types of mixed-up compression are common.
    return SourceLayer{.diff_id = diff_id,
                       .blob = LayerStream::Expected{descriptor.digest, descriptor.size_bytes},
                       .compression = compression_of(file.first_bytes)};
}

void OciLayoutSource::load_once() {
    if (is_loaded_) return;
    images_.clear();
    const std::vector<Named> chosen = chosen_entries();
    for (const Named& named : chosen) {
        // Signatures and attestations lie nameless beside the images.
        const bool may_be_no_image = named.name.empty() && chosen.size() > 1;
        const WantedImage wanted{named.descriptor, platform_, named.name, may_be_no_image};
        if (std::optional<SourceImage> image = load_source_image(*this, wanted)) {
            images_.push_back(*std::move(image));
        }
    }
    if (images_.empty()) throw Error(Errc::malformed, files_->describe("index.json") + ": no image in it");
    is_loaded_ = true;
}

std::vector<SourceImage> OciLayoutSource::images() {
    load_once();
    return images_;
}

std::unique_ptr<ByteSource> OciLayoutSource::open_layer(std::size_t image, std::size_t layer) {
    load_once();
    const SourceLayer& wanted = images_.at(image).layers.at(layer);
    return files_->open(blob_path(wanted.blob->digest)).bytes;
}

}  // namespace lamina::store
