#include "store/pusher.h"

#include "store/access_points.h"
#include "store/error.h"
#include "store/guarded.h"
#include "store/lazy_index.h"
#include "store/memory_source.h"
#include "store/meter.h"
#include "store/ordered_tasks.h"
#include "store/outgoing_image.h"
#include "store/printable.h"
#include "store/recipe.h"
#include "store/registry_blob.h"
#include "store/registry_session.h"
#include "store/source_files.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <set>
#include <utility>

// Layers are sent side by side, each in four steps that end at the first that does: a blob that the store knows it by
// is there; the registry takes such a blob from another repository; compressed anew it is there; it is sent. Compressed
// blobs lie in the job's staging folder, because a registry must be told a blob's digest and may want it twice.
namespace lamina::store {

namespace {

constexpr unsigned kLayersAtOnce = 3;
constexpr std::size_t kMostKnownBlobs = 4;    ///< Of a layer that are asked for.
constexpr std::size_t kMostRepositories = 3;  ///< From which a blob is asked for.
constexpr std::size_t kBufferBytes = 256 << 10;
constexpr std::uint64_t kMaxRecipeBytes = 512ull << 20;
constexpr std::uint64_t kBundleShare = 4;  ///< Part of an image that its start bundle may be as large as.

/// A blob under construction in staging.
class BlobFile : public ByteSink {
public:
    explicit BlobFile(const std::string& path) : file_(File::create(path)) { buffer_.reserve(kBufferBytes); }
    ~BlobFile() override { ::unlink(file_.path().c_str()); }
    BlobFile(const BlobFile&) = delete;
    BlobFile& operator=(const BlobFile&) = delete;

    void write(std::span<const std::byte> data) override {
        buffer_.insert(buffer_.end(), data.begin(), data.end());
        if (buffer_.size() >= kBufferBytes) flush();
    }
    void flush() {
        file_.append(buffer_);
        buffer_.clear();
    }
    std::unique_ptr<ByteSource> open() const {
        return std::make_unique<FileRangeSource>(open_read(file_.path()), 0, file_.size_bytes(), file_.path());
    }

private:
    File file_;
    std::vector<std::byte> buffer_;
};

/// Tells how much of a file was read.
class MeteredSource : public ByteSource {
public:
    MeteredSource(std::unique_ptr<ByteSource> source, std::function<void(std::uint64_t read_bytes)> tell)
        : source_(std::move(source)), tell_(std::move(tell)) {}
    std::size_t read(std::span<std::byte> out) override {
        const std::size_t count = source_->read(out);
        tell_(read_bytes_ += count);
        return count;
    }

private:
    std::unique_ptr<ByteSource> source_;
    const std::function<void(std::uint64_t)> tell_;
    std::uint64_t read_bytes_ = 0;
};

// What is said of a blob in a Docker manifest, as an OCI manifest says it.
oci::Descriptor as_oci(oci::Descriptor blob) {
    const auto compression = oci::layer_compression(blob.media_type);
    if (compression && blob.media_type.starts_with("application/vnd.docker.")) {
        blob.media_type = layer_media_type(*compression);
    }
    return blob;
}

RegistryPlace target_of(const PushRequest& request, const FoundImage& image) {
    std::string target = request.target;
    if (target.empty()) {
        if (!image.by_name)
            throw Error(Errc::malformed, "push: the image is named by its digest: say where to push it to");
        target = image.by_name->text();
    }
    const RegistryReference reference = RegistryReference::parse(target);
    if (reference.digest) {
        throw Error(Errc::malformed,
                    "image name " + quote(target) + ": a push names a tag, the digest follows from it");
    }
    return RegistriesConf::load().place_for_push(reference);
}

class Push {
public:
    Push(StoreCore& core, const PushRequest& request, const std::stop_token& stop)
        : core_(core),
          request_(request),
          stop_(stop),
          lease_(core.leases.take()),
          image_(keep_image(core, lease_, request.image)),
          session_(core.http(), target_of(request, image_), request.access, stop),
          folder_(core),
          meter_(request.progress) {
        for (const ImageDocuments& documents : core.index->all_documents(image_.row.id)) {
            known_.push_back({documents.manifest, documents.manifest_media_type});
            config_ = documents.config;
        }
        for (const DiffId& layer : image_.row.layers) core.lazy.complete(layer, {.progress = request.progress}, stop);
        plan_layers();
    }

    PushReport run() {
        const auto send = [this](std::size_t layer, const std::stop_token& stop) { send_layer(layers_[layer], stop); };
        {
            OrderedTasks tasks(layers_.size(), kLayersAtOnce, send, stop_);
            for (std::size_t layer = 0; layer < layers_.size(); ++layer) tasks.wait(layer);
        }
        send_config();
        std::vector<oci::Descriptor> blobs;
        for (const DiffId& layer : image_.row.layers) {
            const auto found = std::find_if(layers_.begin(), layers_.end(),
                                            [&](const Layer& other) { return other.tar.diff_id == layer; });
            blobs.push_back(found->blob.value());
        }
        const OutgoingManifest manifest = choose_manifest(known_, config_, blobs);
        const RegistryReference& target = session_.place().reference;
        session_.put_manifest(target.tag, manifest.descriptor.media_type, manifest.bytes);
        if (request_.publishes_index) {
            publish_index(manifest.descriptor);
            publish_trace(manifest.descriptor);
        }
        if (manifest.is_new) {
            core_.index->add_manifest(image_.row.id, {manifest.bytes, manifest.descriptor.media_type, config_});
        }
        return counts_.with_lock([&](const Counts& counts) {
            return PushReport{.reference = target.text(),
                              .manifest = manifest.descriptor.digest,
                              .layers_there = counts.there,
                              .layers_mounted = counts.mounted,
                              .layers_sent = counts.sent,
                              .sent_bytes = counts.sent_bytes};
        });
    }

private:
    struct Layer {
        LayerToWrite tar;
        std::vector<oci::Descriptor> known;   ///< Blobs that hold it.
        std::optional<oci::Descriptor> blob;  ///< The one that the registry has in the end.
    };

    void plan_layers();
    void add_known_blobs(Layer& layer) const;
    std::set<std::string> repositories_with(const DiffId& layer) const;
    void send_layer(Layer& layer, const std::stop_token& stop);
    bool is_there(Layer& layer);
    bool is_mounted(Layer& layer);
    void send_config();
    void publish_index(const oci::Descriptor& manifest);
    void publish_trace(const oci::Descriptor& manifest);
    void send_bundle(PublishedTrace& trace);
    LazyIndex::Layer send_index_of(const Layer& layer);
    oci::Descriptor send_bytes(const char* media_type, std::vector<std::byte> bytes);

    StoreCore& core_;
    const PushRequest& request_;
    const std::stop_token& stop_;
    Leases::Lease lease_;
    const FoundImage image_;
    RegistrySession session_;
    JobFolder folder_;
    Meter meter_;
    std::vector<KnownManifest> known_;
    std::vector<std::byte> config_;
    std::vector<Layer> layers_;  ///< Each once.
    struct Counts {
        std::uint64_t there = 0;
        std::uint64_t mounted = 0;
        std::uint64_t sent = 0;
        std::uint64_t sent_bytes = 0;
    };
    Guarded<Counts> counts_;
};

void Push::plan_layers() {
    std::uint64_t total_bytes = 0;
    for (const DiffId& layer : image_.row.layers) {
        const bool is_planned =
            std::any_of(layers_.begin(), layers_.end(), [&](const Layer& other) { return other.tar.diff_id == layer; });
        if (is_planned) continue;
        const auto row = core_.index->find_layer(layer);
        if (!row) throw Error(Errc::corrupt, "layer " + layer.digest.text() + ": not in the index");
        LayerToWrite tar{.diff_id = layer,
                         .tar_bytes = row->tar_bytes,
                         .write_tar = [this, path = core_.paths.recipe(layer)](ByteSink& out) {
                             Recipe::open(path)->write_tar(*core_.chunks, out);
                         }};
        Layer planned{.tar = std::move(tar), .known = {}, .blob = std::nullopt};
        add_known_blobs(planned);
        layers_.push_back(std::move(planned));
        total_bytes += row->tar_bytes;
    }
    meter_.expect(total_bytes);
}

void Push::add_known_blobs(Layer& layer) const {
    const auto is_wanted = [&](const oci::Descriptor& blob) {
        const bool is_known = std::any_of(layer.known.begin(), layer.known.end(),
                                          [&](const auto& other) { return other.digest == blob.digest; });
        const auto compression = oci::layer_compression(blob.media_type);
        // Gzip is what everybody reads, so that any blob will do; another compression was asked for on purpose.
        return !is_known && compression &&
               (request_.compression == Compression::gzip || *compression == request_.compression);
    };
    for (const KnownManifest& known : known_) {
        const oci::Manifest manifest = oci::parse_manifest(known.bytes, known.media_type);
        for (std::size_t i = 0; i < manifest.layers.size() && i < image_.row.layers.size(); ++i) {
            const bool is_ours = image_.row.layers[i] == layer.tar.diff_id && layer.known.size() < kMostKnownBlobs;
            if (is_ours && is_wanted(manifest.layers[i])) layer.known.push_back(as_oci(manifest.layers[i]));
        }
    }
}

// Repositories of the same registry that images with this layer are named after.
std::set<std::string> Push::repositories_with(const DiffId& layer) const {
    std::set<std::string> repositories;
    const RegistryReference& target = session_.place().reference;
    for (const ImageRow& image : core_.index->images()) {
        if (std::find(image.layers.begin(), image.layers.end(), layer) == image.layers.end()) continue;
        for (const std::string& name : image.names) {
            const RegistryReference reference = RegistryReference::parse(name);
            const bool is_near = reference.host == target.host && reference.repository != target.repository;
            if (is_near && repositories.size() < kMostRepositories) repositories.insert(reference.repository);
        }
    }
    return repositories;
}

bool Push::is_there(Layer& layer) {
    for (const oci::Descriptor& blob : layer.known) {
        if (session_.find_blob(blob.digest) != blob.size_bytes) continue;
        layer.blob = blob;
        counts_.with_lock([](Counts& counts) { ++counts.there; });
        return true;
    }
    return false;
}

bool Push::is_mounted(Layer& layer) {
    if (layer.known.empty()) return false;
    for (const std::string& repository : repositories_with(layer.tar.diff_id)) {
        for (const oci::Descriptor& blob : layer.known) {
            if (!session_.mount_blob(blob.digest, repository)) continue;
            layer.blob = blob;
            counts_.with_lock([](Counts& counts) { ++counts.mounted; });
            return true;
        }
    }
    return false;
}

void Push::send_layer(Layer& layer, const std::stop_token& stop) {
    const std::uint64_t tar_bytes = layer.tar.tar_bytes;
    Meter::Part part(meter_,
                     {.phase = "sending", .item = layer.tar.diff_id.digest.text(), .item_total_bytes = tar_bytes});
    if (is_there(layer) || is_mounted(layer)) return part.reach(tar_bytes);
    BlobFile file(folder_.path() + "/" + layer.tar.diff_id.digest.hex());
    std::uint64_t done_bytes = 0;
    const oci::Descriptor blob = write_layer_blob(layer.tar, request_.compression, file, [&](std::size_t count) {
        if (stop.stop_requested()) throw Error(Errc::cancelled, "push: cancelled");
        part.reach((done_bytes += count) / 2);  // The other half is the sending.
    });
    file.flush();
    if (session_.find_blob(blob.digest)) {
        counts_.with_lock([](Counts& counts) { ++counts.there; });
    } else {
        // The meter counts the tar's bytes: its second half in the blob's proportion.
        const auto tell = [&, half = tar_bytes / 2](std::uint64_t read_bytes) {
            const double share = static_cast<double>(read_bytes) / static_cast<double>(blob.size_bytes);
            part.reach(half + static_cast<std::uint64_t>(share * static_cast<double>(half)));
        };
        session_.upload_blob(blob, [&] { return std::make_unique<MeteredSource>(file.open(), tell); });
        counts_.with_lock([&](Counts& counts) {
            ++counts.sent;
            counts.sent_bytes += blob.size_bytes;
        });
    }
    layer.blob = blob;
    part.reach(tar_bytes);
}

void Push::send_config() {
    const oci::Descriptor blob = config_descriptor(config_);
    if (session_.find_blob(blob.digest)) return;
    session_.upload_blob(blob, [&] { return std::make_unique<MemorySource>(config_); });
    counts_.with_lock([&](Counts& counts) { counts.sent_bytes += blob.size_bytes; });
}

oci::Descriptor Push::send_bytes(const char* media_type, std::vector<std::byte> bytes) {
    const oci::Descriptor blob{.media_type = media_type, .digest = {Digest::of(bytes)}, .size_bytes = bytes.size()};
    if (session_.find_blob(blob.digest)) return blob;
    session_.upload_blob(blob, [&] { return std::make_unique<MemorySource>(bytes); });
    counts_.with_lock([&](Counts& counts) { counts.sent_bytes += blob.size_bytes; });
    return blob;
}

// The access points are those of the blob that the registry has, so they are made from that: it is read once more.
LazyIndex::Layer Push::send_index_of(const Layer& layer) {
    const oci::Descriptor& blob = layer.blob.value();
    const RegistryPlaces place{std::shared_ptr<RegistrySession>(&session_, [](RegistrySession*) {})};
    const auto source = open_registry_blob(place, blob, stop_);
    AccessPointsMaker maker(oci::layer_compression(blob.media_type).value());
    std::vector<std::byte> buffer(kBufferBytes);
    while (const std::size_t count = source->read(buffer)) maker.take(std::span(buffer).first(count));
    const AccessPoints points = maker.finish();
    if (points.blob != blob.digest || points.tar_bytes != layer.tar.tar_bytes) {
        throw Error(Errc::corrupt,
                    session_.describe(blob.digest) + ": the registry gives other bytes than it was sent");
    }
    return {.diff_id = layer.tar.diff_id,
            .recipe = send_bytes(kRecipeMediaType, read_file(core_.paths.recipe(layer.tar.diff_id), kMaxRecipeBytes)),
            .points = send_bytes(kAccessPointsMediaType, points.write())};
}

void Push::publish_index(const oci::Descriptor& manifest) {
    if (const auto published = find_published(session_, manifest.digest).index) {
        static_cast<void>(read_lazy_index(session_, *published, manifest.digest));
        return;
    }
    meter_.begin("sending index", image_.by_name ? image_.by_name->text() : request_.image);
    LazyIndex index;
    for (const Layer& layer : layers_) index.layers.push_back(send_index_of(layer));
    publish_lazy_index(session_, index, manifest);
}

/// With what others have published before, so that their runs are not lost.
void Push::publish_trace(const oci::Descriptor& manifest) {
    core_.traces.flush();
    std::optional<StartTrace> ours = core_.traces.find(image_.row.config);
    if (!ours) return;
    PublishedTrace all;
    try {
        const auto published = find_published(session_, manifest.digest).trace;
        if (published) all = read_start_trace(session_, *published);
    } catch (const Error& error) {  // One that is none is replaced.
        if (error.code() != Errc::malformed) throw;
    }
    const bool has_grown = all.trace.merge(ours->chunks);
    if (!has_grown && all.bundle) return;
    all.trace.repository.clear();  // It is another one there.
    send_bundle(all);
    publish_start_trace(session_, all, manifest);
}

void Push::send_bundle(PublishedTrace& trace) {
    trace.bundle.reset();
    std::uint64_t image_bytes = 0;
    for (const Layer& layer : layers_) image_bytes += layer.blob.value().size_bytes;
    BlobFile file(folder_.path() + "/start-bundle");
    WrittenBundle written = write_start_bundle(*core_.chunks, trace.trace.chunks, image_bytes / kBundleShare, file);
    if (written.directory.frames.empty()) return;
    file.flush();
    const oci::Descriptor blob{
        .media_type = kStartBundleMediaType, .digest = written.blob, .size_bytes = written.directory.blob_bytes()};
    if (!session_.find_blob(blob.digest)) {
        session_.upload_blob(blob, [&] { return file.open(); });
        counts_.with_lock([&](Counts& counts) { counts.sent_bytes += blob.size_bytes; });
    }
    trace.bundle = PublishedBundle{std::move(written.directory), blob};
}

}  // namespace

PushReport push_image(StoreCore& core, const PushRequest& request, const std::stop_token& stop) {
    return Push(core, request, stop).run();
}

}  // namespace lamina::store
