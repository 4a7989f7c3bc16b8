#pragma once

#include "store/digest.h"
#include "store/oci.h"
#include "store/registry_session.h"
#include "store/start_bundle.h"
#include "store/start_trace.h"

#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lamina::store {

/// What one node publishes beside an image so that others can mount it before its layers are there: for each layer its
/// recipe (where its bytes are in its tar, by chunk) and its access points. An OCI artifact whose subject is the
/// image's manifest; found through the referrers API, or where a registry has none, under the tag that stands in for it
/// (distribution-spec 1.1, "Listing Referrers"). Whoever may write to the repository may write one: what it says of a
/// layer is believed only as far as digests show it (LazyFetcher).
struct LazyIndex {
    struct Layer {
        DiffId diff_id;
        oci::Descriptor recipe;
        oci::Descriptor points;
    };
    std::vector<Layer> layers;

    std::string write(const oci::Descriptor& subject) const;
    /// malformed: not a whole index of this version for this subject.
    static LazyIndex parse(std::span<const std::byte> manifest, const BlobDigest& subject);
};

inline constexpr const char* kRecipeMediaType = "application/vnd.lamina.recipe.v1";
inline constexpr const char* kAccessPointsMediaType = "application/vnd.lamina.access-points.v1";
inline constexpr const char* kStartBundleMediaType = "application/vnd.lamina.start-bundle.v1";

/// What the registry has beside a manifest, the newest of each.
struct PublishedBeside {
    std::optional<oci::Descriptor> index;
    std::optional<oci::Descriptor> trace;
};
PublishedBeside find_published(RegistrySession& session, const BlobDigest& subject);
LazyIndex read_lazy_index(RegistrySession& session, const oci::Descriptor& published, const BlobDigest& subject);
/// What programs want first when the image is mounted, and, as a rule, those bytes.
struct PublishedBundle {
    StartBundle directory;
    oci::Descriptor blob;
};
struct PublishedTrace {
    StartTrace trace;
    std::optional<PublishedBundle> bundle;
};
PublishedTrace read_start_trace(RegistrySession& session, const oci::Descriptor& published);

/// Makes the registry have it. Its blobs must be there.
void publish_lazy_index(RegistrySession& session, const LazyIndex& index, const oci::Descriptor& subject);

/// The bundle's blob must be there.
void publish_start_trace(RegistrySession& session, const PublishedTrace& trace, const oci::Descriptor& subject);

}  // namespace lamina::store
