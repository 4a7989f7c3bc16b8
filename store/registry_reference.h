#pragma once

#include "store/digest.h"

#include <optional>
#include <string>
#include <string_view>

namespace lamina::store {

/// An image in a registry, as people type it: [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]. Where the first component is no
/// host ("debian", "library/debian") the name is short: `host` is empty, and registries.conf says what it means.
struct RegistryReference {
    std::string host;        ///< "docker.io", "localhost:5000", "[::1]:5000"; empty: a short name.
    std::string repository;  ///< "library/debian"
    std::string tag;         ///< "latest" where neither tag nor digest was given; empty: by digest alone.
    std::optional<BlobDigest> digest;

    /// malformed, saying which rule. "docker://" before it is allowed. One component at docker.io gets "library/".
    static RegistryReference parse(std::string_view text);
    /// The same image elsewhere.
    RegistryReference at(std::string_view host, std::string_view repository) const;
    std::string name() const;       ///< "host/repository"
    std::string text() const;       ///< With tag and digest.
    std::string reference() const;  ///< What the distribution API calls so: the digest, else the tag.
};

inline constexpr const char* kDockerHub = "docker.io";

}  // namespace lamina::store
