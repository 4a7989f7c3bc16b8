#include "store/image_writer.h"

#include "store/archive_source.h"
#include "store/error.h"
#include "store/json.h"
#include "store/oci.h"
#include "store/oci_layout_source.h"
#include "store/output_file.h"
#include "store/printable.h"
#include "store/reference.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <utility>

// A layer's bytes are checked and, for OCI targets, compressed on their way (outgoing_image.h). Names in an OCI target
// are digests that are known only at the end: in a folder the blob is renamed then, in a tar the member's header is
// filled in then. What makes the image exist is written last: index.json, or the archive's own name.
namespace lamina::store {

namespace {

constexpr std::string_view kRefName = "org.opencontainers.image.ref.name";
constexpr std::string_view kLayoutDocument = R"({"imageLayoutVersion":"1.0.0"})";
constexpr std::uint64_t kProgressBytes = 4 << 20;
constexpr std::size_t kMaxTagBytes = 255;

/// What reaches all parts of one write.
struct Job {
    const ImageToWrite& image;
    const ProgressFunction& progress;
    std::stop_token stop;
    std::uint64_t done_bytes = 0;
    std::uint64_t total_bytes = 0;
    std::uint64_t reported_bytes = 0;

    void check_stop() const {
        if (stop.stop_requested()) throw Error(Errc::cancelled, "save: cancelled");
    }
    OnTarBytes on_bytes_of(const LayerToWrite& layer) {
        return [this, &layer](std::size_t count) {
            check_stop();
            done_bytes += count;
            if (!progress || done_bytes < reported_bytes + kProgressBytes) return;
            reported_bytes = done_bytes;
            progress({.phase = "saving",
                      .item = layer.diff_id.digest.text(),
                      .done_bytes = done_bytes,
                      .total_bytes = total_bytes});
        };
    }
};

oci::Descriptor write_gzip_layer(Job& job, const LayerToWrite& layer, ByteSink& out) {
    return write_layer_blob(layer, Compression::gzip, out, job.on_bytes_of(layer));
}

OutgoingManifest manifest_for(const ImageToWrite& image, const std::vector<oci::Descriptor>& layers) {
    return choose_manifest({{image.manifest, image.manifest_media_type}}, image.config, layers);
}

boost::json::value index_entry(const oci::Descriptor& manifest, const std::string& tag) {
    boost::json::object entry{
        {"mediaType", manifest.media_type}, {"digest", manifest.digest.digest.text()}, {"size", manifest.size_bytes}};
    if (!tag.empty()) entry["annotations"] = boost::json::object{{kRefName.data(), tag}};
    return entry;
}

// What the new entry stands for is replaced; all else, known or not, stays as it was.
std::string index_with(const std::optional<std::vector<std::byte>>& existing, const oci::Descriptor& manifest,
                       const std::string& tag) {
    boost::json::value index = boost::json::object{{"schemaVersion", 2},
                                                   {"mediaType", "application/vnd.oci.image.index.v1+json"},
                                                   {"manifests", boost::json::array()}};
    if (existing) index = json::parse(*existing, {.document_bytes = oci::kMaxDocumentBytes});
    boost::json::array& entries = index.as_object().at("manifests").as_array();
    const auto is_replaced = [&](const boost::json::value& entry) {
        const json::Field field(entry, "manifests[]");
        const auto annotations = field.find_member("annotations");
        const std::string name = annotations ? annotations->text_or_empty(kRefName) : "";
        return name == tag && (!tag.empty() || field.member("digest").text() == manifest.digest.digest.text());
    };
    entries.erase(std::remove_if(entries.begin(), entries.end(), is_replaced), entries.end());
    entries.push_back(index_entry(manifest, tag));
    std::string text = boost::json::serialize(index);
    if (text.size() > oci::kMaxDocumentBytes) throw Error(Errc::malformed, "index.json: no room for another image");
    return text;
}

void check_tag(const std::string& tag) {
    const bool is_plain = std::all_of(tag.begin(), tag.end(), [](char c) { return c > 0x20 && c < 0x7f; });
    if (!is_plain || tag.size() > kMaxTagBytes) {
        throw Error(Errc::malformed, "tag " + quote(tag) + ": not 1 to 255 printable characters without spaces");
    }
}

void refuse_existing(const std::string& path) {
    if (exists(path)) throw Error(Errc::already_exists, path + ": exists already; an archive is not written over");
}

/// An OCI layout in a folder. Takes back what it wrote unless commit() was reached.
class LayoutFolder {
public:
    explicit LayoutFolder(std::string folder) : folder_(std::move(folder)) {
        try {
            make_output_folders(folder_, made_);
            prepare();
        } catch (...) {  // The destructor does not run for a constructor that throws.
            undo();
            throw;
        }
    }
    ~LayoutFolder() {
        if (!is_committed_) undo();
    }
    LayoutFolder(const LayoutFolder&) = delete;
    LayoutFolder& operator=(const LayoutFolder&) = delete;

    OutputFile begin_blob() const { return OutputFile(folder_); }
    void end_blob(OutputFile& blob, const oci::Descriptor& descriptor) {
        const std::string target = folder_ + "/" + blob_path(descriptor.digest);
        if (!exists(target)) made_.push_back(target);
        blob.publish(target);
    }
    void add_blob(const oci::Descriptor& descriptor, std::span<const std::byte> bytes) {
        OutputFile blob = begin_blob();
        blob.write(bytes);
        end_blob(blob, descriptor);
    }
    void commit(const oci::Descriptor& manifest, const std::string& tag) {
        OutputFile index(folder_);
        index.write(as_bytes(index_with(index_, manifest, tag)));
        try {
            index.publish(folder_ + "/index.json");
        } catch (...) {  // Once renamed it names the blobs, so that they must stay, whatever failed then.
            is_committed_ = index.is_renamed();
            throw;
        }
        is_committed_ = true;
    }

private:
    void prepare();
    void undo() noexcept;
    void make_real_folder(const std::string& path);

    std::string folder_;
    UniqueFd lock_;
    std::vector<std::string> made_;  ///< In the order of making.
    std::optional<std::vector<std::byte>> index_;
    bool is_committed_ = false;
};

void LayoutFolder::make_real_folder(const std::string& path) {
    struct stat st {};
    if (::lstat(path.c_str(), &st) == 0 && !S_ISDIR(st.st_mode)) throw Error(Errc::malformed, path + ": not a folder");
    make_output_folders(path, made_);
}

void LayoutFolder::prepare() {
    lock_ = UniqueFd(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!lock_) throw_errno(errno, "open " + folder_);
    if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
        throw Error(Errc::busy, folder_ + ": somebody else is writing into it");
    }
    const FolderFiles files(folder_);
    if (files.has("index.json")) {
        check_layout_version(files);
        index_ = files.read("index.json", oci::kMaxDocumentBytes);
        try {
            oci::parse_image_index(*index_);
        } catch (const Error& error) {  // Which document it was.
            throw with_context(error, files.describe("index.json"));
        }
    }
    for (const std::string& name : list_folder(folder_)) {
        const bool is_leftover = name.starts_with(kOutputPrefix) && name.ends_with(".tmp");
        if (is_leftover) {  // Of a save that was killed; we hold the lock.
            remove_file(folder_ + "/" + name);
        } else if (!index_ && name != "oci-layout" && name != "blobs") {
            throw Error(Errc::malformed, folder_ + ": neither empty nor an OCI image layout");
        }
    }
    make_real_folder(folder_ + "/blobs");
    make_real_folder(folder_ + "/blobs/sha256");
    if (!files.has("oci-layout")) {
        OutputFile layout(folder_);
        layout.write(as_bytes(kLayoutDocument));
        made_.push_back(folder_ + "/oci-layout");
        layout.publish(made_.back());
    }
}

void LayoutFolder::undo() noexcept {
    std::reverse(made_.begin(), made_.end());
    for (const std::string& path : made_) {
        if (::unlink(path.c_str()) != 0) ::rmdir(path.c_str());
    }
}

void write_layout(Job& job, const Location& target, const std::string& tag) {
    LayoutFolder layout(target.path);
    std::map<DiffId, oci::Descriptor> written;
    std::vector<oci::Descriptor> layers;
    for (const LayerToWrite& layer : job.image.layers) {
        auto found = written.find(layer.diff_id);
        if (found == written.end()) {
            OutputFile blob = layout.begin_blob();
            const oci::Descriptor descriptor = write_gzip_layer(job, layer, blob);
            layout.end_blob(blob, descriptor);
            found = written.emplace(layer.diff_id, descriptor).first;
        }
        layers.push_back(found->second);
    }
    const OutgoingManifest manifest = manifest_for(job.image, layers);
    layout.add_blob(config_descriptor(job.image.config), job.image.config);
    layout.add_blob(manifest.descriptor, manifest.bytes);
    job.check_stop();
    layout.commit(manifest.descriptor, tag);
}

void write_oci_archive(Job& job, const Location& target, const std::string& tag) {
    OutputArchive archive(folder_of(target.path));
    archive.add("oci-layout", as_bytes(kLayoutDocument));
    archive.add_folder("blobs");
    archive.add_folder("blobs/sha256");
    std::map<DiffId, oci::Descriptor> written;
    std::vector<oci::Descriptor> layers;
    for (const LayerToWrite& layer : job.image.layers) {
        auto found = written.find(layer.diff_id);
        if (found == written.end()) {
            archive.begin_member();
            const oci::Descriptor descriptor = write_gzip_layer(job, layer, archive);
            archive.end_member(blob_path(descriptor.digest));
            found = written.emplace(layer.diff_id, descriptor).first;
        }
        layers.push_back(found->second);
    }
    const OutgoingManifest manifest = manifest_for(job.image, layers);
    archive.add(blob_path(config_descriptor(job.image.config).digest), job.image.config);
    archive.add(blob_path(manifest.descriptor.digest), manifest.bytes);
    archive.add("index.json", as_bytes(index_with(std::nullopt, manifest.descriptor, tag)));
    job.check_stop();
    refuse_existing(target.path);
    archive.publish(target.path);
}

void write_docker_archive(Job& job, const Location& target, const std::string& tag) {
    const std::string name = tag.empty() ? "" : ImageName::parse(tag).text();
    OutputArchive archive(folder_of(target.path));
    std::string layer_names;
    std::map<DiffId, std::string> written;
    for (const LayerToWrite& layer : job.image.layers) {
        std::string& member = written[layer.diff_id];
        if (member.empty()) {
            member = layer.diff_id.digest.hex() + ".tar";
            archive.begin_member();
            write_checked_tar(layer, archive, job.on_bytes_of(layer));
            archive.end_member(member);
        }
        layer_names += (layer_names.empty() ? "" : ",") + json::quote(member);
    }
    const std::string config = Digest::of(job.image.config).hex() + ".json";
    archive.add(config, job.image.config);
    const std::string tags = name.empty() ? "" : json::quote(name);
    archive.add("manifest.json", as_bytes("[{\"Config\":" + json::quote(config) + ",\"RepoTags\":[" + tags +
                                          "],\"Layers\":[" + layer_names + "]}]"));
    job.check_stop();
    refuse_existing(target.path);
    archive.publish(target.path);
}

}  // namespace

void write_image(const ImageToWrite& image, const std::string& target, const ProgressFunction& progress,
                 std::stop_token stop) {
    const Location location = Location::of_target(target);
    const std::string tag = location.tag.empty() ? image.name : location.tag;
    check_tag(tag);
    if (location.kind != Location::Kind::oci) refuse_existing(location.path);
    Job job{.image = image, .progress = progress, .stop = std::move(stop)};
    for (const LayerToWrite& layer : image.layers) job.total_bytes += layer.tar_bytes;
    switch (location.kind) {
        case Location::Kind::oci:
            return write_layout(job, location, tag);
        case Location::Kind::oci_archive:
            return write_oci_archive(job, location, tag);
        case Location::Kind::docker_archive:
            return write_docker_archive(job, location, tag);
        case Location::Kind::folder:
            break;  // of_target() refuses it.
    }
    throw Error(Errc::internal, "no writer for " + target);
}

}  // namespace lamina::store
