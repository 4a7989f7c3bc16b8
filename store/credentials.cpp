#include "store/credentials.h"

#include "store/digest.h"
#include "store/error.h"
#include "store/file.h"
#include "store/helper_program.h"
#include "store/json.h"
#include "store/printable.h"

#include <unistd.h>

#include <openssl/evp.h>

#include <algorithm>
#include <cstdlib>

namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxAuthFileBytes = 1 << 20;
constexpr std::size_t kMaxSecretBytes = 64 << 10;
constexpr std::string_view kDockerHubKey = "https://index.docker.io/v1/";
constexpr std::chrono::seconds kHelperLimit{30};

std::string environment(const char* name) {
    const char* const value = std::getenv(name);
    return value ? value : "";
}

// Docker writes "https://index.docker.io/v1/" and "https://host/v2/", podman "host" and "host/path".
std::string normal_key(std::string_view key) {
    for (const std::string_view scheme : {"https://", "http://"}) {
        if (key.starts_with(scheme)) key.remove_prefix(scheme.size());
    }
    while (key.ends_with('/')) key.remove_suffix(1);
    for (const std::string_view version : {"/v1", "/v2"}) {
        if (key.ends_with(version) && key.find('/') == key.size() - version.size()) key.remove_suffix(version.size());
    }
    if (key == "index.docker.io" || key == "registry-1.docker.io") return "docker.io";
    return std::string(key);
}

// "host/a/b", "host/a", "host": what an entry may be called that is for host/a/b.
std::vector<std::string> accepted_keys(const CredentialKey& key) {
    std::vector<std::string> keys;
    std::string name = normal_key(key.host) + "/" + key.repository;
    while (true) {
        keys.push_back(name);
        const std::size_t slash = name.rfind('/');
        if (slash == std::string::npos) return keys;
        name.resize(slash);
    }
}

const boost::json::value* find_entry(const std::optional<json::Field>& table, const CredentialKey& key) {
    if (!table) return nullptr;
    for (const std::string& wanted : accepted_keys(key)) {
        for (const auto& member : table->object()) {
            if (normal_key({member.key().data(), member.key().size()}) == wanted) return &member.value();
        }
    }
    return nullptr;
}

std::optional<Credentials> read_entry(const boost::json::value& value) {
    const json::Field entry(value, "auths entry");
    Credentials credentials{.user = entry.text_or_empty("username"),
                            .password = entry.text_or_empty("password"),
                            .identity_token = entry.text_or_empty("identitytoken")};
    if (const std::string encoded = entry.text_or_empty("auth"); !encoded.empty()) {
        const std::optional<std::string> pair = decode_base64(encoded);
        const std::size_t colon = pair ? pair->find(':') : std::string::npos;
        if (colon == std::string::npos) throw Error(Errc::malformed, "an \"auth\" is no base64 of USER:PASSWORD");
        credentials.user = pair->substr(0, colon);
        credentials.password = pair->substr(colon + 1);
        while (credentials.password.ends_with('\0')) credentials.password.pop_back();
    }
    if (credentials.user.empty() && credentials.identity_token.empty()) return std::nullopt;
    return credentials;
}

bool is_helper_name(std::string_view name) {
    return !name.empty() && name.size() < 100 && std::all_of(name.begin(), name.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
               c == '.';
    });
}

std::optional<Credentials> ask_helper(const std::string& name, const CredentialKey& key) {
    if (!is_helper_name(name)) throw Error(Errc::malformed, "credential helper " + quote(name) + ": not a name");
    const std::string program = "docker-credential-" + name;
    const std::string host = normal_key(key.host);
    const HelperResult result =
        run_helper({program, "get"}, (host == "docker.io" ? std::string(kDockerHubKey) : host) + "\n", kHelperLimit);
    if (result.exit_status != 0) {
        if (result.output.find("credentials not found") != std::string::npos) return std::nullopt;
        throw Error(Errc::unavailable, program + ": exit status " + std::to_string(result.exit_status));
    }
    try {
        const boost::json::value value = json::parse(as_bytes(result.output), {.document_bytes = kMaxSecretBytes});
        const json::Field reply(value, program);
        Credentials credentials{.user = reply.text_or_empty("Username"), .password = reply.text_or_empty("Secret")};
        if (credentials.user == "<token>") credentials = {.identity_token = credentials.password};
        if (credentials.user.empty() && credentials.identity_token.empty()) return std::nullopt;
        return credentials;
    } catch (const Error&) {  // Its text may quote what was printed.
        throw Error(Errc::malformed, program + ": its reply is not understood");
    }
}

std::optional<Credentials> ask_file(const std::string& path, const CredentialKey& key) {
    AuthFileAnswer answer;
    try {
        answer = find_in_auth_file(read_file(path, kMaxAuthFileBytes), key);
    } catch (const Error& error) {  // Which file it was.
        if (error.code() != Errc::malformed) throw;
        throw with_context(error, path);
    }
    if (!answer.helper.empty()) return ask_helper(answer.helper, key);
    return answer.credentials;
}

std::vector<std::string> default_files() {
    if (const std::string chosen = environment("REGISTRY_AUTH_FILE"); !chosen.empty()) return {chosen};
    const std::string runtime = environment("XDG_RUNTIME_DIR");
    const std::string home = environment("HOME");
    std::string docker = environment("DOCKER_CONFIG");
    if (docker.empty()) docker = home + "/.docker";
    return {
        (runtime.empty() ? "/run/containers/" + std::to_string(::geteuid()) : runtime + "/containers") + "/auth.json",
        home + "/.config/containers/auth.json", docker + "/config.json"};
}

}  // namespace

Credentials Credentials::parse(std::string_view text) {
    const std::size_t colon = text.find(':');
    if (colon == std::string_view::npos || colon == 0) {
        throw Error(Errc::malformed, "credentials: not USER:PASSWORD");
    }
    return {.user = std::string(text.substr(0, colon)), .password = std::string(text.substr(colon + 1))};
}

AuthFileAnswer find_in_auth_file(std::span<const std::byte> file, const CredentialKey& key) {
    boost::json::value value;
    try {
        value = json::parse(file, {.document_bytes = kMaxAuthFileBytes});
    } catch (const Error&) {  // Its text may quote the file.
        throw Error(Errc::malformed, "not JSON, or a key twice");
    }
    AuthFileAnswer answer;
    try {
        const json::Field root(value, "");
        if (const auto* const helper = find_entry(root.find_member("credHelpers"), key)) {
            answer.helper = json::Field(*helper, "credHelpers").text();
            return answer;
        }
        if (const auto* const entry = find_entry(root.find_member("auths"), key))
            answer.credentials = read_entry(*entry);
        if (!answer.credentials) answer.helper = root.text_or_empty("credsStore");
    } catch (const Error&) {
        throw Error(Errc::malformed, "not as Docker's config.json or podman's auth.json");
    }
    return answer;
}

std::optional<Credentials> find_credentials(const CredentialKey& key, const std::string& auth_file) {
    if (!auth_file.empty()) return ask_file(auth_file, key);
    for (const std::string& path : default_files()) {
        if (!exists(path)) continue;
        if (auto credentials = ask_file(path, key)) return credentials;
    }
    return std::nullopt;
}

std::string encode_base64(std::string_view text) {
    std::string out(4 * ((text.size() + 2) / 3) + 1, '\0');
    const int size =
        ::EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                          reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
    out.resize(static_cast<std::size_t>(size));
    return out;
}

std::optional<std::string> decode_base64(std::string_view text) {
    if (text.size() > kMaxSecretBytes || text.size() % 4 != 0) return std::nullopt;
    std::size_t padding = 0;
    while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
    const auto is_plain = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '+' || c == '/';
    };
    if (!std::all_of(text.begin(), text.end() - static_cast<std::ptrdiff_t>(padding), is_plain)) return std::nullopt;
    std::string out(text.size() / 4 * 3, '\0');
    const int size =
        ::EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                          reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
    if (size < 0) return std::nullopt;
    out.resize(out.size() - padding);
    return out;
}

}  // namespace lamina::store
