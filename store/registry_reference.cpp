#include "store/registry_reference.h"

#include "store/error.h"
#include "store/printable.h"
#include "store/reference.h"

#include <algorithm>

namespace lamina::store {

namespace {

constexpr std::string_view kTransport = "docker://";
constexpr std::string_view kOldDockerHub = "index.docker.io";

// As every client decides it: a dot, a colon, or the one name without them.
bool is_host(std::string_view component) {
    return component == "localhost" || component.find_first_of(".:[") != std::string_view::npos ||
           std::any_of(component.begin(), component.end(), [](char c) { return c >= 'A' && c <= 'Z'; });
}

}  // namespace

RegistryReference RegistryReference::parse(std::string_view text) {
    const std::string_view whole = text;
    if (text.starts_with(kTransport)) text.remove_prefix(kTransport.size());
    RegistryReference reference;
    if (const std::size_t at = text.find('@'); at != std::string_view::npos) {
        try {
            reference.digest = BlobDigest{Digest::parse(text.substr(at + 1))};
        } catch (const Error&) {  // Said again with the name that it is about.
            throw Error(Errc::malformed,
                        "image name " + quote(whole) + ": behind \"@\" stands no sha256:<64 hex digits>");
        }
        text = text.substr(0, at);
    }
    const std::string checked = ImageName::parse(text).text();  // The grammar; always with a tag.
    const std::size_t colon = checked.rfind(':');
    const bool has_tag = checked.size() == text.size();
    if (has_tag || !reference.digest) reference.tag = checked.substr(colon + 1);
    const std::string name = checked.substr(0, colon);
    const std::size_t slash = name.find('/');
    const bool has_host = slash != std::string::npos && is_host(name.substr(0, slash));
    if (!has_host) {
        reference.repository = name;
        return reference;
    }
    return reference.at(name.substr(0, slash), name.substr(slash + 1));
}

RegistryReference RegistryReference::at(std::string_view new_host, std::string_view new_repository) const {
    RegistryReference reference = *this;
    reference.host = new_host == kOldDockerHub ? kDockerHub : new_host;
    reference.repository = new_repository;
    if (reference.host == kDockerHub && reference.repository.find('/') == std::string::npos) {
        reference.repository = "library/" + reference.repository;
    }
    return reference;
}

std::string RegistryReference::name() const {
    return host.empty() ? repository : host + "/" + repository;
}

std::string RegistryReference::text() const {
    return name() + (tag.empty() ? "" : ":" + tag) + (digest ? "@" + digest->digest.text() : "");
}

std::string RegistryReference::reference() const {
    return digest ? digest->digest.text() : tag;
}

}  // namespace lamina::store
