#pragma once

#include <boost/describe.hpp>
#include <boost/json.hpp>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

/// The messages of the API (client/API.md) as types; what daemon/ includes too. A message is a JSON object with exactly
/// the members that are described here, in this order. Golden files in tests/golden/api pin them.
namespace lamina::api {

inline constexpr std::string_view kVersion = "0.1.0";

/// An error as it travels: `code` is a word of store::Errc, or "usage", "connection".
struct Failure {
    std::string code;
    std::string message;
};
BOOST_DESCRIBE_STRUCT(Failure, (), (code, message))

/// A Failure that is thrown: by the client for an error reply, by the daemon's handlers for a bad request.
class FailureError : public std::runtime_error {
public:
    explicit FailureError(Failure failure) : std::runtime_error(failure.message), failure_(std::move(failure)) {}
    const Failure& failure() const noexcept { return failure_; }

private:
    Failure failure_;
};

struct Ping {
    std::string version;
    std::int64_t pid = 0;
    std::string store;
    std::string mount_namespace;  ///< As readlink /proc/self/ns/mnt gives it.
    std::string mount_program;    ///< The lamina-fuse that goes with this daemon.
};
BOOST_DESCRIBE_STRUCT(Ping, (), (version, pid, store, mount_namespace, mount_program))

struct Progress {
    std::string phase;
    std::string item;
    std::uint64_t done_bytes = 0;
    std::uint64_t total_bytes = 0;  ///< 0: not known.
    std::uint64_t item_done_bytes = 0;
    std::uint64_t item_total_bytes = 0;  ///< 0: not known, or not told.
};
BOOST_DESCRIBE_STRUCT(Progress, (), (phase, item, done_bytes, total_bytes, item_done_bytes, item_total_bytes))

struct Image {
    std::vector<std::string> names;
    std::string id;  ///< Digest of the config.
    std::string manifest_digest;
    std::string tree_digest;
    std::vector<std::string> layers;  ///< Diff IDs, bottom first.
    std::string platform;
    std::string created;
    std::int64_t imported_at = 0;  ///< Unix seconds.
    std::int64_t used_at = 0;      ///< Of the last import, mount or save.
    bool pinned = false;
    std::uint64_t logical_bytes = 0;
    std::uint64_t inode_count = 0;
    bool lazy = false;       ///< Layers are missing, or not compared with their digests yet.
    std::string state;       ///< "verified", "complete" (all is here, not compared yet), "lazy", "quarantined"
    std::string quarantine;  ///< Why it is quarantined.
};
BOOST_DESCRIBE_STRUCT(Image, (),
                      (names, id, manifest_digest, tree_digest, layers, platform, created, imported_at, used_at, pinned,
                       logical_bytes, inode_count, lazy, state, quarantine))

struct Images {
    std::vector<Image> images;
};
BOOST_DESCRIBE_STRUCT(Images, (), (images))

struct Layer {
    std::string diff_id;
    std::uint64_t tar_bytes = 0;
    std::uint64_t entry_count = 0;
};
BOOST_DESCRIBE_STRUCT(Layer, (), (diff_id, tar_bytes, entry_count))

struct ImageDetails {
    Image image;
    std::vector<Layer> layers;
    boost::json::value manifest;
    boost::json::value config;
};
BOOST_DESCRIBE_STRUCT(ImageDetails, (), (image, layers, manifest, config))

struct ListedName {
    std::string path;
    std::string type;  ///< "file", "directory", "symlink", "char", "block", "fifo", "socket"
    std::uint32_t mode = 0;
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::uint32_t nlink = 0;
    std::uint64_t inode = 0;
    std::uint64_t size_bytes = 0;
    std::int64_t mtime_seconds = 0;
    std::uint32_t mtime_nanoseconds = 0;
    std::uint32_t device_major = 0;
    std::uint32_t device_minor = 0;
    std::string link_target;
};
BOOST_DESCRIBE_STRUCT(ListedName, (),
                      (path, type, mode, uid, gid, nlink, inode, size_bytes, mtime_seconds, mtime_nanoseconds,
                       device_major, device_minor, link_target))

struct Listing {
    std::vector<ListedName> entries;
};
BOOST_DESCRIBE_STRUCT(Listing, (), (entries))

struct ImportRequest {
    std::string source;
    std::string name;      ///< Empty: the source's own.
    std::string platform;  ///< Empty: the host's.
};
BOOST_DESCRIBE_STRUCT(ImportRequest, (), (source, name, platform))

/// How registries are to be reached; docs/man/lamina-pull.1 says what each means.
struct RegistryAccess {
    std::string credentials;  ///< "USER:PASSWORD"
    std::string authfile;     ///< Absolute, like the next.
    std::string cert_dir;
    bool tls_verify = true;
    std::string http_proxy;  ///< These three as the variables of these names; all empty: the daemon's own.
    std::string https_proxy;
    std::string no_proxy;
};
BOOST_DESCRIBE_STRUCT(RegistryAccess, (),
                      (credentials, authfile, cert_dir, tls_verify, http_proxy, https_proxy, no_proxy))

struct PullRequest {
    std::string image;     ///< [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]
    std::string name;      ///< Empty: as `image` says.
    std::string platform;  ///< Empty: the host's.
    std::string lazy;      ///< "never" (also when empty), "auto", "always"
    RegistryAccess access;
};
BOOST_DESCRIBE_STRUCT(PullRequest, (), (image, name, platform, lazy, access))

struct CompleteRequest {
    std::string image;
    std::uint64_t bytes_per_second = 0;  ///< 0: no limit.
};
BOOST_DESCRIBE_STRUCT(CompleteRequest, (), (image, bytes_per_second))

struct PushRequest {
    std::string image;
    std::string target;       ///< Empty: the image's name.
    std::string compression;  ///< Of layers that must be sent: "gzip" (also when empty), "zstd".
    bool index = false;       ///< Beside the image, what a lazy pull needs.
    RegistryAccess access;
};
BOOST_DESCRIBE_STRUCT(PushRequest, (), (image, target, compression, index, access))

struct PushResult {
    std::string reference;
    std::string manifest_digest;
    std::uint64_t layers_there = 0;
    std::uint64_t layers_mounted = 0;
    std::uint64_t layers_sent = 0;
    std::uint64_t sent_bytes = 0;
};
BOOST_DESCRIBE_STRUCT(PushResult, (),
                      (reference, manifest_digest, layers_there, layers_mounted, layers_sent, sent_bytes))

struct SaveRequest {
    std::string image;
    std::string target;
};
BOOST_DESCRIBE_STRUCT(SaveRequest, (), (image, target))

struct TagRequest {
    std::string image;
    std::string name;
};
BOOST_DESCRIBE_STRUCT(TagRequest, (), (image, name))

struct PinRequest {
    std::string image;
};
BOOST_DESCRIBE_STRUCT(PinRequest, (), (image))

struct CommitRequest {
    std::string mount;
    std::string name;
};
BOOST_DESCRIBE_STRUCT(CommitRequest, (), (mount, name))

/// What a mount's server asks for: a chunk of its lazy layers.
struct FetchRequest {
    std::string mount;  ///< The mount's ID.
    std::string chunk;  ///< "sha256:..."
    bool bytes = false;
};
BOOST_DESCRIBE_STRUCT(FetchRequest, (), (mount, chunk, bytes))

/// What was fetched of a layer for one purpose from one source. Times are microseconds, here and below.
struct ExplainedFetch {
    std::string kind;  ///< "waited", "ahead", "trace", "rest"
    std::string source;
    std::uint64_t requests = 0;
    std::uint64_t failures = 0;
    std::uint64_t bytes = 0;
    std::int64_t first_byte_us = 0;  ///< Until a reply begins, on an average.
    std::int64_t transfer_us = 0;    ///< From first bytes to last ones, in all.
};
BOOST_DESCRIBE_STRUCT(ExplainedFetch, (), (kind, source, requests, failures, bytes, first_byte_us, transfer_us))

struct ExplainedShare {
    std::string image;
    std::uint64_t bytes = 0;
};
BOOST_DESCRIBE_STRUCT(ExplainedShare, (), (image, bytes))

struct ExplainedLayer {
    std::string diff_id;
    std::string state;  ///< As of an image.
    std::string why;    ///< Why it is not lazy, or quarantined.
    std::uint64_t blob_bytes = 0;
    std::uint64_t chunk_bytes = 0;  ///< The sum of the next five: of files, each chunk once.
    std::uint64_t missing_bytes = 0;
    std::uint64_t waited_bytes = 0;
    std::uint64_t prefetched_bytes = 0;
    std::uint64_t rest_bytes = 0;
    std::uint64_t local_bytes = 0;
    std::uint64_t shared_bytes = 0;
    std::vector<ExplainedShare> shares;
    std::vector<ExplainedFetch> fetched;
};
BOOST_DESCRIBE_STRUCT(ExplainedLayer, (),
                      (diff_id, state, why, blob_bytes, chunk_bytes, missing_bytes, waited_bytes, prefetched_bytes,
                       rest_bytes, local_bytes, shared_bytes, shares, fetched))

struct ExplainedRequest {
    std::string layer;
    std::string kind;
    std::string source;
    std::uint64_t blob_first = 0;
    std::uint64_t blob_end = 0;
    std::int64_t sent_us = 0;  ///< Unix time, like the next.
    std::int64_t first_byte_us = 0;
    std::int64_t end_us = 0;
    std::uint64_t bytes = 0;
    std::uint64_t failures = 0;
    std::string error;
};
BOOST_DESCRIBE_STRUCT(ExplainedRequest, (),
                      (layer, kind, source, blob_first, blob_end, sent_us, first_byte_us, end_us, bytes, failures,
                       error))

struct ExplainedWait {
    std::string layer;
    std::string chunk;
    std::uint64_t size_bytes = 0;
    std::vector<std::string> paths;
    std::int64_t begin_us = 0;
    std::int64_t end_us = 0;
    std::int64_t request_us = 0;  ///< When that was sent which brought it; 0: nothing did.
    std::string kind;             ///< Of that.
    std::string error;
};
BOOST_DESCRIBE_STRUCT(ExplainedWait, (), (layer, chunk, size_bytes, paths, begin_us, end_us, request_us, kind, error))

struct ExplainedStart {
    std::string mount;  ///< ID; empty: no start is known.
    std::int64_t begun_us = 0;
    std::int64_t end_us = 0;
    std::int64_t last_wait_us = 0;
    std::int64_t wait_us = 0;
    std::uint64_t wait_count = 0;
    std::uint64_t waited_bytes = 0;
    std::uint64_t prefetched_bytes = 0;
    std::uint64_t rest_bytes = 0;
    std::uint64_t fetched_bytes = 0;
    std::uint64_t request_count = 0;
    bool reads_known = false;
    std::uint64_t read_bytes = 0;
    std::uint64_t unread_bytes = 0;
    std::vector<ExplainedRequest> requests;
    std::vector<ExplainedWait> waits;
    std::vector<ExplainedWait> longest_waits;
};
BOOST_DESCRIBE_STRUCT(ExplainedStart, (),
                      (mount, begun_us, end_us, last_wait_us, wait_us, wait_count, waited_bytes, prefetched_bytes,
                       rest_bytes, fetched_bytes, request_count, reads_known, read_bytes, unread_bytes, requests, waits,
                       longest_waits))

struct Explanation {
    std::string image;
    std::string id;
    std::string path;  ///< Empty: all of the image.
    std::uint64_t size_bytes = 0;
    std::vector<ExplainedLayer> layers;
    std::vector<ExplainedFetch> bundles;  ///< What was fetched of start bundles: it is of any layer.
    ExplainedStart start;
    std::vector<std::string> hints;
};
BOOST_DESCRIBE_STRUCT(Explanation, (), (image, id, path, size_bytes, layers, bundles, start, hints))

struct GcRequest {
    bool dry_run = false;
};
BOOST_DESCRIBE_STRUCT(GcRequest, (), (dry_run))

struct VerifyRequest {
    bool data = false;
    bool repair = false;               ///< Mend what can be mended, then check every byte.
    std::vector<std::string> sources;  ///< For repair: as of an import.
};
BOOST_DESCRIBE_STRUCT(VerifyRequest, (), (data, repair, sources))

struct MountRequest {
    std::string image;  ///< May be empty when `name` is a mount that exists: its image.
    std::string mountpoint;
    std::string
        name;  ///< Empty: the mount's id. A name that exists and is not mounted is mounted again, with its changes.
    bool read_only = false;
    bool start = true;    ///< false: only id and base are made; the caller starts the mount program itself.
    std::string options;  ///< For lamina-fuse's -o, this time; empty: none.
};
BOOST_DESCRIBE_STRUCT(MountRequest, (), (image, mountpoint, name, read_only, start, options))

struct Mount {
    std::string id;
    std::string name;
    std::string image;
    std::string mountpoint;
    std::string folder;  ///< Below the store: base, log, extents.
    bool read_only = false;
    bool running = false;
    boost::json::value
        server;  ///< What the mount's server says of itself: requests by kind and more; null when it does not run.
};
BOOST_DESCRIBE_STRUCT(Mount, (), (id, name, image, mountpoint, folder, read_only, running, server))

struct Mounts {
    std::vector<Mount> mounts;
};
BOOST_DESCRIBE_STRUCT(Mounts, (), (mounts))

/// What the changes of a mount may take, and what they take. 0: no limit.
struct QuotaRequest {
    std::string mount;
    std::uint64_t bytes = 0;
    std::uint64_t inodes = 0;
};
BOOST_DESCRIBE_STRUCT(QuotaRequest, (), (mount, bytes, inodes))

struct Quota {
    std::uint64_t bytes = 0;
    std::uint64_t inodes = 0;
    std::uint64_t used_bytes = 0;
    std::uint64_t used_inodes = 0;
};
BOOST_DESCRIBE_STRUCT(Quota, (), (bytes, inodes, used_bytes, used_inodes))

struct MountUpgrade {
    std::string name;
    bool upgraded = false;
    std::string error;  ///< Why not; its old server goes on.
};
BOOST_DESCRIBE_STRUCT(MountUpgrade, (), (name, upgraded, error))

struct MountUpgrades {
    std::vector<MountUpgrade> mounts;
};
BOOST_DESCRIBE_STRUCT(MountUpgrades, (), (mounts))

struct Changed {
    std::string kind;  ///< "A" added, "C" changed, "D" deleted.
    std::string path;
    std::string type;
};
BOOST_DESCRIBE_STRUCT(Changed, (), (kind, path, type))

struct ImageUsage {
    std::string name;
    std::string id;
    std::uint64_t logical_bytes = 0;
    std::uint64_t stored_bytes = 0;
    std::uint64_t unique_bytes = 0;
};
BOOST_DESCRIBE_STRUCT(ImageUsage, (), (name, id, logical_bytes, stored_bytes, unique_bytes))

/// What some images have in the packs and all others have not.
struct ShareUsage {
    std::vector<std::uint32_t> images;  ///< Places in Usage::images; none: various ones.
    std::uint64_t stored_bytes = 0;
};
BOOST_DESCRIBE_STRUCT(ShareUsage, (), (images, stored_bytes))

struct Usage {
    std::uint64_t logical_bytes = 0;
    std::uint64_t tar_bytes = 0;
    std::uint64_t pack_bytes = 0;
    std::uint64_t index_bytes = 0;
    std::uint64_t recipe_bytes = 0;
    std::uint64_t tree_bytes = 0;
    std::uint64_t mount_bytes = 0;
    std::uint64_t other_bytes = 0;
    std::uint64_t reclaimable_bytes = 0;
    std::uint64_t max_bytes = 0;  ///< What the store may have; 0: no limit.
    std::vector<ImageUsage> images;
    std::vector<ShareUsage> shares;  ///< The largest first. What is left of pack_bytes no image needs.
};
BOOST_DESCRIBE_STRUCT(Usage, (),
                      (logical_bytes, tar_bytes, pack_bytes, index_bytes, recipe_bytes, tree_bytes, mount_bytes,
                       other_bytes, reclaimable_bytes, max_bytes, images, shares))

struct GcResult {
    bool dry_run = false;
    std::uint64_t freed_bytes = 0;
    std::uint64_t images_removed = 0;  ///< That had neither name nor pin.
    std::uint64_t packs_removed = 0;
    std::uint64_t packs_rewritten = 0;
    std::uint64_t layers_removed = 0;
    std::uint64_t trees_removed = 0;
    std::uint64_t packs_waiting = 0;  ///< Partly dead, and the disk has no room to write what is needed anew.
};
BOOST_DESCRIBE_STRUCT(GcResult, (),
                      (dry_run, freed_bytes, images_removed, packs_removed, packs_rewritten, layers_removed,
                       trees_removed, packs_waiting))

struct VerifyResult {
    std::uint64_t chunks_checked = 0;
    std::uint64_t bytes_checked = 0;
    std::vector<std::string> repaired;  ///< What a repair did.
    std::vector<std::string> problems;
};
BOOST_DESCRIBE_STRUCT(VerifyResult, (), (chunks_checked, bytes_checked, repaired, problems))

struct UpkeepRequest {
    bool scrub = false;  ///< Also reads and checks every byte of the packs.
    std::uint64_t bytes_per_second = 0;
};
BOOST_DESCRIBE_STRUCT(UpkeepRequest, (), (scrub, bytes_per_second))

struct UpkeepResult {
    std::uint64_t compressed_bytes = 0;  ///< Content, unpacked, that was compressed anew.
    std::int64_t freed_bytes = 0;
    std::uint64_t packs_written = 0;
    std::uint64_t packs_removed = 0;
    std::uint64_t read_bytes = 0;  ///< By the scrub.
    std::vector<std::string> problems;
};
BOOST_DESCRIBE_STRUCT(UpkeepResult, (),
                      (compressed_bytes, freed_bytes, packs_written, packs_removed, read_bytes, problems))

/// A line for people in the reply of what takes long.
struct Notice {
    std::string text;
};
BOOST_DESCRIBE_STRUCT(Notice, (), (text))

template <class T>
std::string to_text(const T& message) {
    return boost::json::serialize(boost::json::value_from(message));
}

/// The members that `text` gives, over T's defaults, also within members that are objects. Throws FailureError "usage"
/// for what is no JSON object, an unknown member, a member of another type.
boost::json::value merged_request(std::string_view text, const boost::json::value& defaults);

template <class T>
T parse_request(std::string_view text) {
    return boost::json::value_to<T>(merged_request(text, boost::json::value_from(T{})));
}

/// A reply of the daemon. Throws FailureError "connection" when it is not what this version expects.
boost::json::value parse_reply_value(std::string_view text);
[[noreturn]] void bad_reply(std::string_view why);

// GCC 14 takes the result of a T of numbers alone for one that may lack a value.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
template <class T>
T parse_reply(const boost::json::value& value) {
    try {
        return boost::json::value_to<T>(value);
    } catch (const std::exception& error) {
        bad_reply(error.what());
    }
}
#pragma GCC diagnostic pop

/// Paths of the endpoints, relative to the server's root.
namespace path {
inline constexpr std::string_view kPing = "/v1/ping";
inline constexpr std::string_view kStop = "/v1/stop";
inline constexpr std::string_view kImages = "/v1/images";
inline constexpr std::string_view kImage = "/v1/image";
inline constexpr std::string_view kImageList = "/v1/image/list";
inline constexpr std::string_view kImageFile = "/v1/image/file";
inline constexpr std::string_view kTag = "/v1/tag";
inline constexpr std::string_view kPin = "/v1/pin";
inline constexpr std::string_view kImport = "/v1/import";
inline constexpr std::string_view kSave = "/v1/save";
inline constexpr std::string_view kPull = "/v1/pull";
inline constexpr std::string_view kPush = "/v1/push";
inline constexpr std::string_view kComplete = "/v1/complete";
inline constexpr std::string_view kFetch = "/v1/fetch";
inline constexpr std::string_view kCommit = "/v1/commit";
inline constexpr std::string_view kExplain = "/v1/explain";
inline constexpr std::string_view kUsage = "/v1/usage";
inline constexpr std::string_view kGc = "/v1/gc";
inline constexpr std::string_view kVerify = "/v1/verify";
inline constexpr std::string_view kUpkeep = "/v1/upkeep";
inline constexpr std::string_view kMounts = "/v1/mounts";
inline constexpr std::string_view kMountUpgrade = "/v1/mounts/upgrade";
inline constexpr std::string_view kMountChanges = "/v1/mounts/changes";
inline constexpr std::string_view kMountQuota = "/v1/mounts/quota";
}  // namespace path

std::string percent_encode(std::string_view text);
std::string percent_decode(std::string_view text);  ///< FailureError "usage" on a bad escape.

/// Where socket and store are when nothing is said: as root /var/lib/lamina and /run/lamina/lamina.sock, else below
/// $XDG_DATA_HOME/lamina and $XDG_RUNTIME_DIR/lamina. A store that is named has its socket inside.
struct Places {
    std::string store;
    std::string socket;
};
Places default_places(const std::string& store_option, const std::string& socket_option);

/// Fills a Unix socket address; throws FailureError "usage" when the path is longer than the kernel takes (107 bytes).
void check_socket_path(const std::string& path);

/// "10G": bytes, or with a K, M, G or T powers of 1024; below 2^62. Throws FailureError "usage".
std::uint64_t parse_size(std::string_view text);

/// Path of a program that belongs with this one: $LAMINA_<NAME> if set, else beside this executable, or in
/// `build_folder` beside its folder (a build tree), else found through PATH.
std::string companion_program(std::string_view name, std::string_view build_folder);

}  // namespace lamina::api
