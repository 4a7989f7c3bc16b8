#include "store/registry_auth.h"

#include "store/digest.h"
#include "store/error.h"
#include "store/http_fields.h"
#include "store/json.h"
#include "store/memory_source.h"
#include "store/printable.h"

#include <algorithm>

namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxTokenReplyBytes = 1 << 20;
constexpr std::size_t kMaxTokenBytes = 64 << 10;
constexpr std::size_t kLeastSecretBytes = 4;

std::string form_encoded(std::string_view text) {
    constexpr std::string_view kHex = "0123456789ABCDEF";
    std::string out;
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
                              c == '.' || c == '_' || c == '~';
        if (is_plain) {
            out += c;
        } else {
            out += {'%', kHex[byte >> 4], kHex[byte & 15]};
        }
    }
    return out;
}

std::vector<std::string> scopes_of(std::string_view scope) {
    std::vector<std::string> scopes;
    while (!scope.empty()) {
        const std::size_t end = scope.find(' ');
        scopes.emplace_back(scope.substr(0, end));
        scope.remove_prefix(end == std::string_view::npos ? scope.size() : end + 1);
    }
    return scopes;
}

std::string basic_value(const Credentials& credentials) {
    return "Basic " + encode_base64(credentials.user + ":" + credentials.password);
}

std::string parameter(const std::map<std::string, std::string>& parameters, const std::string& name) {
    const auto found = parameters.find(name);
    return found == parameters.end() ? "" : found->second;
}

// A token goes into a header line: only what may stand there (RFC 6750 and more than that).
bool is_token(std::string_view text) {
    return !text.empty() && text.size() <= kMaxTokenBytes &&
           std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

}  // namespace

std::string RegistryAuth::value(const std::string& scope) const {
    const std::lock_guard lock(mutex_);
    const auto found = values_.find(scope);
    return found == values_.end() ? "" : found->second;
}

bool RegistryAuth::is_secret_in(std::string_view text) const {
    const std::lock_guard lock(mutex_);
    const auto is_in = [&](std::string_view secret) {
        return secret.size() >= kLeastSecretBytes && text.find(secret) != std::string_view::npos;
    };
    const bool has_value = std::any_of(values_.begin(), values_.end(), [&](const auto& entry) {
        return is_in(std::string_view(entry.second).substr(entry.second.find(' ') + 1));
    });
    if (has_value || !credentials_ || !*credentials_) return has_value;
    const Credentials& known = **credentials_;
    return is_in(known.password) || is_in(known.identity_token) || is_in(basic_value(known).substr(6));
}

bool RegistryAuth::renew(const Refusal& refusal, const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    const bool is_free = changed_.wait(lock, stop, [&] { return !fetching_.contains(refusal.scope); });
    if (!is_free) throw Error(Errc::cancelled, "authentication: cancelled");
    if (const auto found = values_.find(refusal.scope); found != values_.end() && found->second != refusal.rejected) {
        return true;  // Somebody else has fetched it meanwhile.
    }
    fetching_.insert(refusal.scope);
    lock.unlock();
    std::string fetched;
    try {
        fetched = fetch(refusal, stop);
    } catch (...) {  // Whatever it was: those who wait must try for themselves.
        lock.lock();
        fetching_.erase(refusal.scope);
        changed_.notify_all();
        throw;
    }
    lock.lock();
    fetching_.erase(refusal.scope);
    if (!fetched.empty()) values_[refusal.scope] = fetched;
    changed_.notify_all();
    return !fetched.empty() && fetched != refusal.rejected;
}

std::optional<Credentials> RegistryAuth::credentials() {
    {
        const std::lock_guard lock(mutex_);
        if (credentials_) return *credentials_;
    }
    std::optional<Credentials> found = setup_.access.credentials;
    if (!found) found = find_credentials(setup_.key, setup_.access.auth_file);
    const std::lock_guard lock(mutex_);
    credentials_ = found;
    return found;
}

std::string RegistryAuth::fetch(const Refusal& refusal, const std::stop_token& stop) {
    for (const Challenge& challenge : parse_challenges(refusal.challenge)) {
        if (challenge.scheme == "bearer") return fetch_token(challenge.parameters, refusal, stop);
        if (challenge.scheme != "basic") continue;
        const std::optional<Credentials> known = credentials();
        if (known && !known->user.empty()) return basic_value(*known);
    }
    return "";
}

HttpRequest RegistryAuth::token_request(const std::map<std::string, std::string>& challenge, const Refusal& refusal) {
    Url realm = Url::parse(parameter(challenge, "realm"));
    if (!realm.is_https() && setup_.registry.is_https()) {
        throw Error(Errc::malformed,
                    setup_.registry.shown() + ": its tokens come from " + realm.shown() + ", which is not https");
    }
    const std::string service = parameter(challenge, "service");
    const std::optional<Credentials> known = credentials();
    HttpRequest request{.method = "GET", .url = realm, .fields = {}, .tls = setup_.tls, .proxy = setup_.access.proxy};
    request.may_be_private = refusal.is_private;
    if (known && !known->identity_token.empty()) {
        std::string form = "grant_type=refresh_token&client_id=lamina&service=" + form_encoded(service) +
                           "&scope=" + form_encoded(refusal.scope) +
                           "&refresh_token=" + form_encoded(known->identity_token);
        request.method = "POST";
        request.fields.emplace_back("Content-Type: application/x-www-form-urlencoded");
        request.body_bytes = form.size();
        const auto bytes = as_bytes(form);
        request.body = std::make_unique<MemorySource>(std::vector<std::byte>(bytes.begin(), bytes.end()));
        return request;
    }
    if (!service.empty()) realm = realm.with_parameter("service", service);
    for (const std::string& scope : scopes_of(refusal.scope)) realm = realm.with_parameter("scope", scope);
    request.url = realm;
    if (known) request.fields.push_back("Authorization: " + basic_value(*known));
    return request;
}

std::string RegistryAuth::fetch_token(const std::map<std::string, std::string>& challenge, const Refusal& refusal,
                                      const std::stop_token& stop) {
    HttpRequest request = token_request(challenge, refusal);
    const std::string realm = request.url.shown();
    const auto reply = http_.send(std::move(request), stop);
    const int status = reply->status();
    if (status == 429 || status >= 500) {
        throw Error(Errc::unavailable, "token from " + realm + ": status " + std::to_string(status));
    }
    if (status != 200) {
        const bool is_known = credentials().has_value();
        throw Error(Errc::denied, setup_.key.host + ": no access: " + realm + " gives no token (status " +
                                      std::to_string(status) + ")" +
                                      (is_known ? "; the credentials may be wrong" : "; no credentials are known"));
    }
    const std::vector<std::byte> body = reply->read_all(kMaxTokenReplyBytes);
    std::string token;
    try {
        const boost::json::value document = json::parse(body, {.document_bytes = kMaxTokenReplyBytes});
        const json::Field root(document, "");
        token = root.text_or_empty("token");
        if (token.empty()) token = root.text_or_empty("access_token");
    } catch (const Error&) {  // Its text may quote the token.
        throw Error(Errc::malformed, "token from " + realm + ": the reply is not understood");
    }
    if (!is_token(token)) throw Error(Errc::malformed, "token from " + realm + ": there is none in the reply");
    return "Bearer " + token;
}

}  // namespace lamina::store
