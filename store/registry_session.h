#pragma once

#include "store/error.h"
#include "store/oci.h"
#include "store/registries_conf.h"
#include "store/registry_auth.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::store {

/// Bytes first to end - 1.
struct ByteRange {
    std::uint64_t first = 0;
    std::uint64_t end = 0;
};

/// One repository of one registry, over the OCI distribution API (distribution-spec 1.1). Thread-safe.
///
/// Each request is tried up to five times while the failure may pass (no connection, a broken one, no reply, 408, 429,
/// 5xx): after what Retry-After asks (up to five minutes), else after a pause that doubles, less a random part. At most
/// five redirects are followed, never from https to http; what belongs to the registry (Authorization, our certificate)
/// goes to its origin alone, and a request that has left the origin carries it no more. Only a registry that has a
/// private address itself may lead to one.
///
/// Errors: denied (401, 403), not_found (404), unavailable, timed_out, cancelled, malformed, corrupt (what a reply
/// promises is not what was asked for). No text holds a query, a header, or a secret that a server repeats.
class RegistrySession {
public:
    RegistrySession(HttpClient& http, const RegistryPlace& place, const RegistryAccess& access, std::stop_token stop);

    const RegistryPlace& place() const noexcept { return place_; }
    std::string describe(const BlobDigest& digest) const;  ///< For errors: "host/repository@sha256:..."

    struct Document {
        std::vector<std::byte> bytes;
        std::string media_type;  ///< Of the reply; without parameters.
    };
    /// A manifest or image index by tag or digest, at most 4 MiB; what a digest names is checked.
    Document manifest(const std::string& reference);
    /// Size of a manifest or blob that is there.
    std::optional<std::uint64_t> find_manifest(const std::string& reference);
    std::optional<std::uint64_t> find_blob(const BlobDigest& digest);

    /// All of a small blob; its size and digest are checked.
    std::vector<std::byte> read_blob(const oci::Descriptor& blob);
    /// Bytes of a blob, of one try: not checked, and they may end early.
    struct BlobBytes {
        std::unique_ptr<ByteSource> source;
        bool ends_at_range = true;  ///< false: the registry knows no ranges, and more may follow.
    };
    BlobBytes open_blob(const oci::Descriptor& blob, const ByteRange& range, const std::stop_token& stop);
    /// Whether the registry gives parts of blobs. Asks once.
    bool knows_ranges(const oci::Descriptor& blob, const std::stop_token& stop);

    /// Lets the registry take a blob from another of its repositories; false: it does not.
    bool mount_blob(const BlobDigest& digest, const std::string& from_repository);
    using OpenBody = std::function<std::unique_ptr<ByteSource>()>;  ///< Again for each try; must not wait when read.
    void upload_blob(const oci::Descriptor& blob, const OpenBody& open_body);
    /// Whether the registry keeps the manifest's subject, where it has one: find_referrers() then names it.
    bool put_manifest(const std::string& reference, const std::string& media_type, std::span<const std::byte> bytes);
    /// The image index of what names a manifest as its subject; nullopt: the registry has no referrers API.
    std::optional<std::vector<std::byte>> find_referrers(const BlobDigest& subject);

private:
    struct Call {
        std::string method;
        Url url;
        std::vector<std::string> fields = {};
        std::string scope;
        std::stop_token stop;
        OpenBody open_body = {};
        std::uint64_t body_bytes = 0;
    };
    struct Connected {
        Url root;
        std::unique_ptr<RegistryAuth> auth;
    };
    Connected& connected();
    Url choose_root();
    Call call(const std::string& method, const std::string& path, const char* actions);
    std::unique_ptr<HttpReply> perform(const Call& call);
    std::unique_ptr<HttpReply> send(const Call& call);
    struct Hop {
        Url url;
        std::string authorization;
        bool is_home = true;  ///< At the registry, and never elsewhere since the call began.
    };
    std::unique_ptr<HttpReply> send_once(const Call& call, const Hop& hop);
    Hop follow(const Call& call, const Hop& hop, const std::string& location);
    [[noreturn]] void fail(const Call& call, HttpReply& reply);
    void try_upload(const oci::Descriptor& blob, const OpenBody& open_body);

    HttpClient& http_;
    const RegistryPlace place_;
    const RegistryAccess access_;
    const std::shared_ptr<const TlsSettings> tls_;
    const std::shared_ptr<const TlsSettings> tls_elsewhere_;  ///< Without our certificate.
    const std::stop_token stop_;
    std::mutex mutex_;  // Guards the next; a leaf.
    std::unique_ptr<Connected> connected_;
    enum class Ranges { unknown, known, none };
    std::atomic<Ranges> ranges_ = Ranges::unknown;
    std::atomic<bool> is_private_ = false;  ///< The registry's address is.
};

/// Whether another try may help.
bool is_passing(const Error& error);
/// The pause before try number `attempt` + 1, from 1: doubles, at most 30 s, less up to half of it by chance.
std::chrono::milliseconds pause_after(unsigned attempt);
/// Waits; throws cancelled as soon as `stop` asks for it.
void pause(std::chrono::milliseconds time, const std::stop_token& stop);

/// Certificates for a registry: from `cert_dir`, else /etc/containers/certs.d/HOST, ~/.config/containers/certs.d/HOST,
/// /etc/docker/certs.d/HOST. Throws not_found when `cert_dir` is missing.
TlsSettings load_tls_settings(const std::string& host, const std::string& cert_dir);

}  // namespace lamina::store
