#include "store/registry_source.h"

#include "store/error.h"
#include "store/json.h"
#include "store/printable.h"
#include "store/registry_blob.h"

#include <algorithm>
#include <utility>

namespace lamina::store {

namespace {

// What a document says of itself counts; a Content-Type that says otherwise is a lie of one of the two.
std::string media_type_of(const RegistrySession::Document& document, const std::string& name) {
    std::string own;
    try {
        const boost::json::value value = json::parse(document.bytes, {.document_bytes = oci::kMaxDocumentBytes});
        own = json::Field(value, "").text_or_empty("mediaType");
    } catch (const Error& error) {  // Which document it was.
        throw with_context(error, name);
    }
    const bool is_typed = oci::is_manifest(document.media_type) || oci::is_image_index(document.media_type);
    if (own.empty()) return document.media_type;
    if (is_typed && own != document.media_type) {
        throw Error(Errc::malformed,
                    name + ": came as " + quote(document.media_type) + ", and says of itself " + quote(own));
    }
    return own;
}

}  // namespace

/// Documents from one place and those after it.
class RegistrySource::Reader : public DocumentReader {
public:
    Reader(const RegistrySource& source, std::size_t first_place) : source_(source), first_place_(first_place) {}

    WantedImage find() {
        const RegistryReference& reference = source_.sessions_[first_place_]->place().reference;
        const std::string name = reference.text();
        first_ = source_.sessions_[first_place_]->manifest(reference.reference());
        first_descriptor_ = oci::Descriptor{.media_type = media_type_of(first_, name),
                                            .digest = {Digest::of(first_.bytes)},
                                            .size_bytes = first_.bytes.size()};
        return {.descriptor = *first_descriptor_, .platform = source_.pull_.platform, .name = {}};
    }

    std::vector<std::byte> read(const oci::Descriptor& document) override {
        const bool is_manifest = oci::is_manifest(document.media_type);
        if (is_manifest) manifest_ = document.digest;
        if (!is_manifest && manifest_ && source_.pull_.on_manifest) {
            source_.pull_.on_manifest(source_.sessions_[first_place_], *std::exchange(manifest_, std::nullopt));
        }
        if (document.digest == first_descriptor_->digest) return first_.bytes;
        for (std::size_t place = first_place_;; ++place) {
            try {
                return read_from(*source_.sessions_[place], document);
            } catch (const Error& error) {  // The next place may have it, or have it right.
                if (error.code() == Errc::cancelled || place + 1 == source_.sessions_.size()) throw;
            }
        }
    }
    SourceLayer describe_layer(const oci::Descriptor& layer, const DiffId& diff_id) override {
        layers.push_back(layer);
        check_layer_type(layer);
        return {.diff_id = diff_id,
                .blob = LayerStream::Expected{layer.digest, layer.size_bytes},
                .compression = std::nullopt};
    }
    std::string document_name(const BlobDigest& digest) const override {
        return source_.sessions_[first_place_]->describe(digest);
    }

    std::vector<oci::Descriptor> layers;

private:
    std::vector<std::byte> read_from(RegistrySession& session, const oci::Descriptor& document) const {
        if (document.size_bytes > oci::kMaxDocumentBytes) {
            throw Error(Errc::malformed, session.describe(document.digest) + ": its descriptor promises " +
                                             std::to_string(document.size_bytes) + " bytes, a document has at most " +
                                             std::to_string(oci::kMaxDocumentBytes));
        }
        const bool is_manifest = oci::is_manifest(document.media_type) || oci::is_image_index(document.media_type);
        if (!is_manifest) return session.read_blob(document);
        RegistrySession::Document found = session.manifest(document.digest.digest.text());
        if (found.bytes.size() == document.size_bytes) return std::move(found.bytes);
        throw Error(Errc::corrupt, session.describe(document.digest) + ": " + std::to_string(found.bytes.size()) +
                                       " bytes, its descriptor promises " + std::to_string(document.size_bytes));
    }

    const RegistrySource& source_;
    const std::size_t first_place_;
    RegistrySession::Document first_;
    std::optional<oci::Descriptor> first_descriptor_;
    std::optional<BlobDigest> manifest_;  ///< The last one that was read, until it is told.
};

RegistrySource::RegistrySource(HttpClient& http, const RegistryPull& pull, const RegistriesConf& conf,
                               const std::stop_token& stop)
    : pull_(pull), stop_(stop) {
    const std::vector<RegistryPlace> places = conf.places(pull.reference);
    const auto count = std::count_if(places.begin(), places.end(), [](const auto& place) { return !place.is_mirror; });
    if (pull.access.credentials && pull.reference.host.empty() && count > 1) {
        throw Error(Errc::malformed, "image name " + quote(pull.reference.text()) +
                                         ": may be of several registries, and credentials belong to one: name it");
    }
    for (const RegistryPlace& place : places) {
        sessions_.push_back(std::make_shared<RegistrySession>(http, place, pull.access, stop));
    }
}

SourceImage RegistrySource::load_from(std::size_t first_place) {
    Reader reader(*this, first_place);
    WantedImage wanted = reader.find();
    if (!pull_.reference.tag.empty()) {
        const RegistryReference& typed = pull_.reference;
        wanted.name = typed.name() + ":" + typed.tag;
    }
    SourceImage image = load_source_image(reader, wanted).value();
    layers_ = std::move(reader.layers);
    best_place_ = first_place;
    distrusted_ = std::make_unique<std::atomic<std::size_t>[]>(layers_.size());
    return image;
}

std::vector<SourceImage> RegistrySource::images() {
    for (std::size_t place = 0; images_.empty(); ++place) {
        try {
            images_.push_back(load_from(place));
        } catch (const Error& error) {  // The next place may have it.
            if (error.code() == Errc::cancelled || place + 1 == sessions_.size()) throw;
        }
    }
    return images_;
}

std::unique_ptr<ByteSource> RegistrySource::open_layer(std::size_t image, std::size_t layer) {
    return open_layer_until(image, layer, stop_);
}

std::unique_ptr<ByteSource> RegistrySource::open_layer_until(std::size_t, std::size_t layer,
                                                             const std::stop_token& stop) {
    const std::size_t first = std::min(best_place_ + distrusted_[layer].load(), sessions_.size() - 1);
    const RegistryPlaces places(sessions_.begin() + static_cast<std::ptrdiff_t>(first), sessions_.end());
    return open_registry_blob(places, layers_.at(layer), stop);
}

bool RegistrySource::distrust(std::size_t, std::size_t layer) {
    return best_place_ + distrusted_[layer].fetch_add(1) + 1 < sessions_.size();
}

RegistryPlaces RegistrySource::places() const {
    return {sessions_.begin() + static_cast<std::ptrdiff_t>(best_place_), sessions_.end()};
}

}  // namespace lamina::store
