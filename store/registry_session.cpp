#include "store/registry_session.h"

#include "store/error.h"
#include "store/file.h"
#include "store/http_fields.h"
#include "store/json.h"
#include "store/memory_source.h"
#include "store/printable.h"

#include <sys/random.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <ctime>

// Three layers, each a function: send_once() is one request; send() follows redirects and proves who we are when asked;
// perform() tries again what may pass. What comes back from perform() has the status that the registry means.
namespace lamina::store {

namespace {

constexpr unsigned kTries = 5;
constexpr unsigned kMaxRedirects = 5;
constexpr unsigned kMaxRenewals = 2;
constexpr std::chrono::milliseconds kFirstPause{400};
constexpr std::chrono::milliseconds kLongestPause{30'000};
constexpr std::chrono::seconds kLongestRetryAfter{300};
constexpr std::uint64_t kMaxErrorBytes = 64 << 10;
constexpr const char* kPull = "pull";
constexpr const char* kPush = "pull,push";
constexpr std::string_view kDockerHubHost = "registry-1.docker.io";

bool is_redirect(int status) {
    return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

bool is_passing_status(int status) {
    return status == 408 || status == 429 || status == 500 || status == 502 || status == 503 || status == 504;
}

std::string without_parameters(std::string_view media_type) {
    media_type = media_type.substr(0, media_type.find(';'));
    while (media_type.ends_with(' ')) media_type.remove_suffix(1);
    return std::string(media_type);
}

// {"errors":[{"code":"DENIED","message":"..."}]}: as one line; empty when it is something else.
std::string first_error_in(std::span<const std::byte> body) {
    try {
        const boost::json::value document = json::parse(body, {.document_bytes = kMaxErrorBytes});
        const json::Field errors = json::Field(document, "").member("errors");
        if (errors.item_count() == 0) return "";
        const json::Field first = errors.item(0);
        const std::string code = first.text_or_empty("code");
        const std::string message = first.text_or_empty("message");
        return quote(code.empty() ? message : code + ": " + message);
    } catch (const Error&) {  // A page of HTML, most likely: the status must do.
        return "";
    }
}

Errc code_of(int status) {
    if (status == 401 || status == 403) return Errc::denied;
    if (status == 404) return Errc::not_found;
    if (status >= 500 || status == 429 || status == 408) return Errc::unavailable;
    return Errc::malformed;
}

std::string text_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void read_cert_folder(const std::string& folder, TlsSettings& settings) {
    for (const std::string& name : list_folder(folder)) {
        const std::string path = folder + "/" + name;
        if (name.ends_with(".crt")) settings.authorities_pem += text_of(read_file(path, 1 << 20)) + "\n";
        if (!name.ends_with(".cert")) continue;
        settings.certificate_path = path;
        settings.key_path = path.substr(0, path.size() - 4) + "key";
    }
}

std::shared_ptr<const TlsSettings> tls_for(const RegistryPlace& place, const RegistryAccess& access) {
    TlsSettings settings = load_tls_settings(place.reference.host, place.is_mirror ? "" : access.cert_dir);
    settings.is_verified = !place.is_insecure && (access.verifies_tls || place.is_mirror);
    return std::make_shared<const TlsSettings>(std::move(settings));
}

std::shared_ptr<const TlsSettings> without_certificate(TlsSettings settings) {
    settings.certificate_path.clear();
    settings.key_path.clear();
    return std::make_shared<const TlsSettings>(std::move(settings));
}

std::uint32_t random_number() {
    std::uint32_t number = 0;
    static_cast<void>(::getrandom(&number, sizeof number, 0));
    return number;
}

std::vector<std::string> manifest_fields() {
    return {
        "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, "
        "application/vnd.docker.distribution.manifest.v2+json, "
        "application/vnd.docker.distribution.manifest.list.v2+json"};
}

/// Leaves out what comes before an offset, where the registry began at the front although it was asked for a part.
class SkippingSource : public ByteSource {
public:
    SkippingSource(std::unique_ptr<HttpReply> reply, std::uint64_t skip_bytes)
        : reply_(std::move(reply)), skip_bytes_(skip_bytes) {}
    std::size_t read(std::span<std::byte> out) override {
        std::vector<std::byte> ignored(skip_bytes_ > 0 ? 64 << 10 : 0);
        while (skip_bytes_ > 0) {
            const std::size_t want = std::min<std::uint64_t>(skip_bytes_, ignored.size());
            const std::size_t count = reply_->read(std::span(ignored).first(want));
            if (count == 0) return 0;
            skip_bytes_ -= count;
        }
        return reply_->read(out);
    }

private:
    std::unique_ptr<HttpReply> reply_;
    std::uint64_t skip_bytes_;
};

}  // namespace

bool is_passing(const Error& error) {
    return error.code() == Errc::unavailable || error.code() == Errc::timed_out;
}

std::chrono::milliseconds pause_after(unsigned attempt) {
    const auto whole = std::min(kFirstPause * (1u << std::min(attempt - 1, 10u)), kLongestPause);
    return whole - whole / 2 * static_cast<int>(random_number() % 1000) / 1000;
}

void pause(std::chrono::milliseconds time, const std::stop_token& stop) {
    std::mutex mutex;
    std::condition_variable_any never;
    std::unique_lock lock(mutex);
    never.wait_for(lock, stop, time, [] { return false; });
    if (stop.stop_requested()) throw Error(Errc::cancelled, "cancelled");
}

TlsSettings load_tls_settings(const std::string& host, const std::string& cert_dir) {
    TlsSettings settings;
    if (!cert_dir.empty()) {
        if (!exists(cert_dir)) throw Error(Errc::not_found, cert_dir + ": no such folder of certificates");
        read_cert_folder(cert_dir, settings);
        return settings;
    }
    const char* const home = std::getenv("HOME");
    std::vector<std::string> folders = {"/etc/containers/certs.d/" + host, "/etc/docker/certs.d/" + host};
    if (home) folders.insert(folders.begin(), std::string(home) + "/.config/containers/certs.d/" + host);
    for (const std::string& folder : folders) {
        if (!exists(folder)) continue;
        read_cert_folder(folder, settings);
        break;
    }
    return settings;
}

RegistrySession::RegistrySession(HttpClient& http, const RegistryPlace& place, const RegistryAccess& access,
                                 std::stop_token stop)
    : http_(http),
      place_(place),
      access_(access),
      tls_(tls_for(place, access)),
      tls_elsewhere_(without_certificate(*tls_)),
      stop_(std::move(stop)) {}

std::string RegistrySession::describe(const BlobDigest& digest) const {
    return place_.reference.name() + "@" + digest.digest.text();
}

Url RegistrySession::choose_root() {
    const std::string& host = place_.reference.host;
    const std::string address = host == kDockerHub ? std::string(kDockerHubHost) : host;
    const Url https = Url::parse("https://" + address + "/");
    if (tls_->is_verified) return https;
    const Call ping{.method = "GET", .url = https.resolve("/v2/"), .scope = "", .stop = stop_};
    try {
        send_once(ping, {.url = ping.url, .authorization = {}});
        return https;
    } catch (const Error& error) {  // No TLS there: what the caller said is that plain HTTP will do then.
        if (!is_passing(error) && error.code() != Errc::malformed) throw;
    }
    return Url::parse("http://" + address + "/");
}

RegistrySession::Connected& RegistrySession::connected() {
    {
        const std::lock_guard lock(mutex_);
        if (connected_) return *connected_;
    }
    const Url root = choose_root();
    RegistryAuth::Setup setup{.registry = root,
                              .key = {place_.reference.host, place_.reference.repository},
                              .access = access_,
                              .tls = tls_elsewhere_};
    if (place_.is_mirror) {  // What was said for the registry that was named is no mirror's business.
        setup.access.credentials.reset();
    }
    auto auth = std::make_unique<RegistryAuth>(http_, std::move(setup));
    const std::lock_guard lock(mutex_);
    if (!connected_) connected_ = std::make_unique<Connected>(Connected{root, std::move(auth)});
    return *connected_;
}

RegistrySession::Call RegistrySession::call(const std::string& method, const std::string& path, const char* actions) {
    const std::string& repository = place_.reference.repository;
    return {.method = method,
            .url = connected().root.resolve("/v2/" + repository + "/" + path),
            .scope = "repository:" + repository + ":" + actions,
            .stop = stop_};
}

std::unique_ptr<HttpReply> RegistrySession::send_once(const Call& call, const Hop& hop) {
    HttpRequest request{.method = call.method,
                        .url = hop.url,
                        .fields = call.fields,
                        .tls = hop.is_home ? tls_ : tls_elsewhere_,
                        .proxy = access_.proxy};
    request.may_be_private = hop.is_home || is_private_;
    if (!hop.authorization.empty()) request.fields.push_back("Authorization: " + hop.authorization);
    if (call.open_body) {
        request.body = call.open_body();
        request.body_bytes = call.body_bytes;
    }
    auto reply = http_.send(std::move(request), call.stop);
    if (hop.is_home) is_private_ = is_private_address(reply->peer_address());
    return reply;
}

RegistrySession::Hop RegistrySession::follow(const Call& call, const Hop& hop, const std::string& location) {
    Hop next{.url = hop.url.resolve(location), .authorization = {}, .is_home = false};
    if (hop.url.is_https() && !next.url.is_https()) {
        throw Error(Errc::malformed, call.url.shown() + ": leads from https to " + next.url.shown());
    }
    next.is_home = hop.is_home && next.url.origin() == connected().root.origin();
    return next;
}

std::unique_ptr<HttpReply> RegistrySession::send(const Call& call) {
    const Connected& registry = connected();
    const Hop first{.url = call.url, .authorization = {}, .is_home = call.url.origin() == registry.root.origin()};
    Hop hop = first;
    bool is_second_walk = false;
    unsigned renewals = 0;
    unsigned redirects = 0;
    while (true) {
        if (hop.is_home) hop.authorization = registry.auth->value(call.scope);
        auto reply = send_once(call, hop);
        const int status = reply->status();
        if (status == 401 && hop.is_home && renewals < kMaxRenewals) {
            ++renewals;
            const RegistryAuth::Refusal refusal{.challenge = reply->field("WWW-Authenticate"),
                                                .scope = call.scope,
                                                .rejected = hop.authorization,
                                                .is_private = is_private_};
            if (registry.auth->renew(refusal, call.stop)) continue;
        }
        if ((status == 401 || status == 403) && !hop.is_home && !is_second_walk) {
            is_second_walk = true;  // A signed address that ran out: the registry gives another.
            hop = first;
            continue;
        }
        const std::string location = is_redirect(status) ? reply->field("Location") : "";
        if (location.empty()) return reply;
        if (++redirects > kMaxRedirects) {
            throw Error(Errc::malformed, call.url.shown() + ": leads through more than five redirects");
        }
        hop = follow(call, hop, location);
    }
}

std::unique_ptr<HttpReply> RegistrySession::perform(const Call& call) {
    for (unsigned attempt = 1;; ++attempt) {
        std::chrono::milliseconds wait = pause_after(attempt);
        try {
            auto reply = send(call);
            if (!is_passing_status(reply->status()) || attempt == kTries) return reply;
            if (const auto asked = parse_retry_after(reply->field("Retry-After"), std::time(nullptr))) {
                if (*asked > kLongestRetryAfter) return reply;
                wait = *asked + pause_after(1);
            }
        } catch (const Error& error) {  // Another try may help.
            if (!is_passing(error) || attempt == kTries) throw;
        }
        pause(wait, call.stop);
    }
}

void RegistrySession::fail(const Call& call, HttpReply& reply) {
    std::string what = "status " + std::to_string(reply.status());
    if (call.method != "HEAD") {
        std::string said;
        try {
            said = first_error_in(reply.read_all(kMaxErrorBytes));
        } catch (const Error&) {  // The status alone says enough.
        }
        const bool may_be_shown = !said.empty() && !connected().auth->is_secret_in(said);
        if (may_be_shown) what += " " + said;
    }
    const std::string address = call.url.shown();
    if (reply.status() == 401) what += "; it wants credentials, or others: --creds, --authfile, or podman login";
    throw Error(code_of(reply.status()), call.method + " " + address + ": " + what);
}

RegistrySession::Document RegistrySession::manifest(const std::string& reference) {
    Call get = call("GET", "manifests/" + reference, kPull);
    get.fields = manifest_fields();
    const auto reply = perform(get);
    if (reply->status() != 200) fail(get, *reply);
    Document document{.bytes = reply->read_all(oci::kMaxDocumentBytes),
                      .media_type = without_parameters(reply->field("Content-Type"))};
    const std::string found = Digest::of(document.bytes).text();
    const bool is_by_digest = reference.find(':') != std::string::npos;
    if (is_by_digest && reference != found) {
        throw Error(Errc::corrupt, get.url.shown() + ": the bytes that came have the digest " + found);
    }
    const std::string promised = reply->field("Docker-Content-Digest");
    if (promised.starts_with("sha256:") && promised != found) {
        throw Error(Errc::corrupt,
                    get.url.shown() + ": promised as " + quote(promised) + ", but its bytes have the digest " + found);
    }
    return document;
}

std::optional<std::uint64_t> RegistrySession::find_manifest(const std::string& reference) {
    Call head = call("HEAD", "manifests/" + reference, kPull);
    head.fields = manifest_fields();
    const auto reply = perform(head);
    if (reply->status() == 404) return std::nullopt;
    if (reply->status() != 200) fail(head, *reply);
    return parse_decimal(reply->field("Content-Length")).value_or(0);
}

std::optional<std::uint64_t> RegistrySession::find_blob(const BlobDigest& digest) {
    const Call head = call("HEAD", "blobs/" + digest.digest.text(), kPush);
    const auto reply = perform(head);
    if (reply->status() == 404) return std::nullopt;
    if (reply->status() != 200) fail(head, *reply);
    return parse_decimal(reply->field("Content-Length")).value_or(0);
}

std::vector<std::byte> RegistrySession::read_blob(const oci::Descriptor& blob) {
    const Call get = call("GET", "blobs/" + blob.digest.digest.text(), kPull);
    const auto reply = perform(get);
    if (reply->status() != 200) fail(get, *reply);
    std::vector<std::byte> bytes = reply->read_all(oci::kMaxDocumentBytes);
    if (bytes.size() != blob.size_bytes) {
        throw Error(Errc::corrupt, get.url.shown() + ": " + std::to_string(bytes.size()) + " bytes instead of " +
                                       std::to_string(blob.size_bytes));
    }
    if (const Digest found = Digest::of(bytes); found != blob.digest.digest) {
        throw Error(Errc::corrupt, get.url.shown() + ": the bytes that came have the digest " + found.text());
    }
    return bytes;
}

RegistrySession::BlobBytes RegistrySession::open_blob(const oci::Descriptor& blob, const ByteRange& range,
                                                      const std::stop_token& stop) {
    Call get = call("GET", "blobs/" + blob.digest.digest.text(), kPull);
    get.stop = stop;
    const bool is_part = range.first > 0 || range.end < blob.size_bytes;
    if (is_part) {
        const bool is_to_end = range.end == blob.size_bytes;
        get.fields.push_back("Range: bytes=" + std::to_string(range.first) + "-" +
                             (is_to_end ? "" : std::to_string(range.end - 1)));
    }
    auto reply = perform(get);
    const std::string where = get.url.shown();
    if (reply->status() == 206 && is_part) {
        const auto sent = parse_content_range(reply->field("Content-Range"));
        const bool is_meant = sent && sent->first == range.first && sent->last < range.end &&
                              sent->total_bytes.value_or(blob.size_bytes) == blob.size_bytes;
        if (!is_meant) throw Error(Errc::corrupt, where + ": sends another range than the one asked for");
        return {.source = std::move(reply)};
    }
    if (reply->status() != 200) fail(get, *reply);
    const auto promised = parse_decimal(reply->field("Content-Length"));
    if (promised && *promised != blob.size_bytes) {
        throw Error(Errc::corrupt, where + ": has " + std::to_string(*promised) + " bytes, the manifest promises " +
                                       std::to_string(blob.size_bytes));
    }
    return {.source = std::make_unique<SkippingSource>(std::move(reply), range.first),
            .ends_at_range = range.end == blob.size_bytes};
}

bool RegistrySession::knows_ranges(const oci::Descriptor& blob, const std::stop_token& stop) {
    if (ranges_ == Ranges::unknown) {
        const BlobBytes first = open_blob(blob, {0, 1}, stop);
        ranges_ = first.ends_at_range ? Ranges::known : Ranges::none;
    }
    return ranges_ == Ranges::known;
}

bool RegistrySession::mount_blob(const BlobDigest& digest, const std::string& from_repository) {
    Call post = call("POST", "blobs/uploads/", kPush);
    post.url = post.url.with_parameter("mount", digest.digest.text()).with_parameter("from", from_repository);
    post.scope += " repository:" + from_repository + ":" + kPull;
    const auto reply = perform(post);
    if (reply->status() == 201) return true;
    // 202 began an upload, which runs out by itself when nobody goes on with it; a refusal means no as well.
    return false;
}

void RegistrySession::try_upload(const oci::Descriptor& blob, const OpenBody& open_body) {
    const Call post = call("POST", "blobs/uploads/", kPush);
    const auto begun = perform(post);
    if (begun->status() != 202) fail(post, *begun);
    const std::string location = begun->field("Location");
    if (location.empty()) throw Error(Errc::malformed, post.url.shown() + ": the reply names no place to upload to");
    const Url target = post.url.resolve(location).with_parameter("digest", blob.digest.digest.text());
    if (post.url.is_https() && !target.is_https()) {
        throw Error(Errc::malformed, post.url.shown() + ": wants the upload by plain HTTP, at " + target.shown());
    }
    const Call put{.method = "PUT",
                   .url = target,
                   .fields = {"Content-Type: application/octet-stream"},
                   .scope = post.scope,
                   .stop = post.stop,
                   .open_body = open_body,
                   .body_bytes = blob.size_bytes};
    const auto reply = send(put);
    if (is_passing_status(reply->status())) {
        throw Error(Errc::unavailable, "PUT " + target.shown() + ": status " + std::to_string(reply->status()));
    }
    if (reply->status() != 201) fail(put, *reply);
}

void RegistrySession::upload_blob(const oci::Descriptor& blob, const OpenBody& open_body) {
    for (unsigned attempt = 1;; ++attempt) {
        try {
            return try_upload(blob, open_body);
        } catch (const Error& error) {  // A new upload may do better.
            if (!is_passing(error) || attempt == kTries) throw;
        }
        pause(pause_after(attempt), stop_);
        if (find_blob(blob.digest)) return;  // It had arrived; only the reply was lost.
    }
}

bool RegistrySession::put_manifest(const std::string& reference, const std::string& media_type,
                                   std::span<const std::byte> bytes) {
    Call put = call("PUT", "manifests/" + reference, kPush);
    put.fields = {"Content-Type: " + media_type};
    put.open_body = [&] { return std::make_unique<MemorySource>(std::vector<std::byte>(bytes.begin(), bytes.end())); };
    put.body_bytes = bytes.size();
    const auto reply = perform(put);
    if (reply->status() != 201) fail(put, *reply);
    const std::string stored = reply->field("Docker-Content-Digest");
    const std::string ours = Digest::of(bytes).text();
    if (stored.starts_with("sha256:") && stored != ours) {
        throw Error(Errc::corrupt,
                    put.url.shown() + ": the registry keeps it as " + quote(stored) + " instead of " + ours);
    }
    return !reply->field("OCI-Subject").empty();
}

std::optional<std::vector<std::byte>> RegistrySession::find_referrers(const BlobDigest& subject) {
    Call get = call("GET", "referrers/" + subject.digest.text(), kPull);
    get.fields = {"Accept: application/vnd.oci.image.index.v1+json"};
    const auto reply = perform(get);
    const bool is_index = oci::is_image_index(without_parameters(reply->field("Content-Type")));
    // Some registries lead to a page for people instead.
    if (reply->status() == 404 || (reply->status() == 200 && !is_index)) return std::nullopt;
    if (reply->status() != 200) fail(get, *reply);
    return reply->read_all(oci::kMaxDocumentBytes);
}

}  // namespace lamina::store
