#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::store {

/// What proves to a registry who asks. Never in a message, a log, or another program's arguments.
struct Credentials {
    std::string user;
    std::string password;
    std::string identity_token;  ///< In place of a password: exchanged for access tokens (OAuth 2).
    bool operator==(const Credentials&) const = default;
    /// "USER:PASSWORD"; malformed without a colon or a user.
    static Credentials parse(std::string_view text);
};

/// Whom they are for.
struct CredentialKey {
    std::string host;        ///< "docker.io", "localhost:5000"
    std::string repository;  ///< "library/debian"
};

/// What one auth file says of a registry: credentials, or the name of a helper that knows them, or nothing.
/// Docker's config.json and podman's auth.json: "auths" (by host, by host and part of the path, or by Docker's URLs;
/// the longest counts), "credHelpers", "credsStore". malformed, without a byte of the file in the message.
struct AuthFileAnswer {
    std::optional<Credentials> credentials;
    std::string helper;
};
AuthFileAnswer find_in_auth_file(std::span<const std::byte> file, const CredentialKey& key);

/// The credentials for a registry from `auth_file`; when that is empty, from the first of these that has some:
/// $REGISTRY_AUTH_FILE alone; else $XDG_RUNTIME_DIR/containers/auth.json (/run/containers/UID/auth.json),
/// ~/.config/containers/auth.json, $DOCKER_CONFIG/config.json (~/.docker/config.json). Helpers are programs
/// docker-credential-NAME. nullopt: none. Throws not_found when `auth_file` is missing, malformed, and what a helper
/// fails with.
std::optional<Credentials> find_credentials(const CredentialKey& key, const std::string& auth_file);

std::string encode_base64(std::string_view text);
std::optional<std::string> decode_base64(std::string_view text);  ///< RFC 4648, padded; nullopt: it is none.

}  // namespace lamina::store
