#pragma once

#include "store/registry_reference.h"

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::store {

/// One place where an image may be: what to ask, and how.
struct RegistryPlace {
    RegistryReference reference;
    bool is_insecure = false;  ///< TLS is not verified, and plain HTTP is used where there is none.
    bool is_mirror = false;    ///< Another host than was named: it gets only credentials that are its own.
};

/// What containers-registries.conf(5), version 2, says: mirrors, other locations, blocked registries, short names.
class RegistriesConf {
public:
    /// $CONTAINERS_REGISTRIES_CONF, else ~/.config/containers/registries.conf, else /etc/containers/registries.conf;
    /// then the files *.conf of registries.conf.d beside the last two, which win; then the aliases that podman keeps in
    /// ~/.cache/containers/short-name-aliases.conf. Missing files are fine. malformed, naming file and line.
    static RegistriesConf load();
    /// Adds what `text` says over what was there; `path` is for errors.
    void add(std::string_view text, const std::string& path);

    /// The places of an image for reading, in the order in which to try them: mirrors first. A short name may mean
    /// several registries; where none is configured it means docker.io. Throws read_only for a blocked registry.
    std::vector<RegistryPlace> places(const RegistryReference& reference) const;
    /// Where an image is written: never a mirror, and a short name's alias, else docker.io.
    RegistryPlace place_for_push(const RegistryReference& reference) const;

private:
    struct Location {
        std::string location;
        bool is_insecure = false;
        enum class Use { all, digest_only, tag_only } use = Use::all;
    };
    struct Registry {
        Location own;
        bool is_blocked = false;
        bool is_mirror_by_digest_only = false;
        std::vector<Location> mirrors;
    };
    struct Reader;
    const std::pair<const std::string, Registry>* find(const RegistryReference& reference) const;
    std::vector<RegistryReference> meanings(const RegistryReference& reference) const;
    void add_places(const RegistryReference& reference, std::vector<RegistryPlace>& places) const;

    std::map<std::string, Registry> registries_;  ///< By prefix.
    std::map<std::string, std::string> aliases_;  ///< Short name to "host/repository".
    std::vector<std::string> search_;
};

}  // namespace lamina::store
