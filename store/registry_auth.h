#pragma once

#include "store/credentials.h"
#include "store/http_client.h"

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <string>

namespace lamina::store {

/// How whoever asks wants registries to be reached: options of pull and push.
struct RegistryAccess {
    std::optional<Credentials> credentials;  ///< For the registry that was named alone; in place of any auth file's.
    std::string auth_file;                   ///< Empty: the default ones (credentials.h).
    std::string cert_dir;      ///< *.crt: authorities; *.cert with *.key: our own. Empty: the default ones.
    bool verifies_tls = true;  ///< false: any certificate will do, and plain HTTP where there is no TLS.
    ProxySettings proxy;
};

/// What we know to prove to one registry who we are: basic authentication, or tokens from where it says (distribution,
/// token authentication; OAuth 2 for identity tokens). Thread-safe; of many who need the same token one fetches it.
///
/// The owner sends what value() gives to `registry` and to no other origin. A realm is asked over https only, unless
/// the registry itself is reached without, and never at a private address, unless the registry has one too.
class RegistryAuth {
public:
    struct Setup {
        Url registry;       ///< Its root.
        CredentialKey key;  ///< Whose credentials.
        RegistryAccess access;
        std::shared_ptr<const TlsSettings> tls;
    };
    RegistryAuth(HttpClient& http, Setup setup) : http_(http), setup_(std::move(setup)) {}

    /// Of the Authorization field; empty: nothing known yet. `scope`: "repository:NAME:pull", several with blanks.
    std::string value(const std::string& scope) const;
    /// After a reply of 401 to `rejected`: fetches what its WWW-Authenticate field asks for. False: nothing new to try.
    struct Refusal {
        std::string challenge;
        std::string scope;
        std::string rejected;
        bool is_private = false;  ///< The registry's address is.
    };
    bool renew(const Refusal& refusal, const std::stop_token& stop);
    /// Whether a text of the other side repeats a secret of ours.
    bool is_secret_in(std::string_view text) const;

private:
    std::string fetch(const Refusal& refusal, const std::stop_token& stop);
    std::string fetch_token(const std::map<std::string, std::string>& challenge, const Refusal& refusal,
                            const std::stop_token& stop);
    HttpRequest token_request(const std::map<std::string, std::string>& challenge, const Refusal& refusal);
    std::optional<Credentials> credentials();

    HttpClient& http_;
    const Setup setup_;
    mutable std::mutex mutex_;  // Guards what follows; not held across requests.
    std::condition_variable_any changed_;
    std::map<std::string, std::string> values_;              ///< By scope.
    std::set<std::string> fetching_;                         ///< Scopes.
    std::optional<std::optional<Credentials>> credentials_;  ///< Once they were looked for.
};

}  // namespace lamina::store
