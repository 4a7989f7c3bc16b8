#include "store/registries_conf.h"

#include "store/error.h"
#include "store/file.h"
#include "store/printable.h"

#include <toml++/toml.h>

#include <algorithm>
#include <cstdlib>

// A registry's table applies to all images whose name begins with its prefix; the longest prefix counts. In the name
// the prefix is then replaced: by each mirror's location, and by the registry's own.
namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxFileBytes = 1 << 20;

std::string environment(const char* name) {
    const char* const value = std::getenv(name);
    return value ? value : "";
}

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
    throw Error(Errc::malformed, path + ": " + why);
}

std::string text_of(const toml::table& table, std::string_view key, const std::string& path) {
    const toml::node* const node = table.get(key);
    if (!node) return "";
    const auto text = node->value_exact<std::string>();
    if (!text) refuse(path, std::string(key) + " is no string");
    return *text;
}

bool flag_of(const toml::table& table, std::string_view key, const std::string& path) {
    const toml::node* const node = table.get(key);
    if (!node) return false;
    const auto flag = node->value_exact<bool>();
    if (!flag) refuse(path, std::string(key) + " is neither true nor false");
    return *flag;
}

// "docker.io/library" of "docker.io/library/debian", not of "docker.io/library2".
bool is_prefix(std::string_view prefix, const RegistryReference& reference) {
    const std::string name = reference.name();
    if (prefix.starts_with("*.")) {
        std::string_view host = reference.host;
        host = host.substr(0, host.find(':'));
        return host.size() > prefix.size() - 1 && host.ends_with(prefix.substr(1));
    }
    if (!name.starts_with(prefix)) return false;
    return name.size() == prefix.size() || name[prefix.size()] == '/';
}

RegistryReference relocated(const RegistryReference& reference, std::string_view prefix, const std::string& location) {
    if (location.empty()) return reference;
    const std::size_t cut = prefix.starts_with("*.") ? reference.host.size() : prefix.size();
    const std::string name = location + reference.name().substr(cut);
    const std::size_t slash = name.find('/');
    if (slash == std::string::npos)
        throw Error(Errc::malformed, "registries.conf: " + quote(name) + " names no image");
    RegistryReference moved = RegistryReference::parse(name);
    if (moved.host.empty()) moved = moved.at(name.substr(0, slash), name.substr(slash + 1));
    moved.tag = reference.tag;
    moved.digest = reference.digest;
    return moved;
}

RegistryPlace own_place(const RegistryReference& reference, std::string_view prefix, const std::string& location,
                        bool is_insecure) {
    RegistryPlace place{.reference = relocated(reference, prefix, location), .is_insecure = is_insecure};
    place.is_mirror = place.reference.host != reference.host;
    return place;
}

std::vector<std::string> conf_files_in(const std::string& folder) {
    std::vector<std::string> paths;
    if (!exists(folder)) return paths;
    for (const std::string& name : list_folder(folder)) {
        if (name.ends_with(".conf")) paths.push_back(folder + "/" + name);
    }
    return paths;
}

}  // namespace

RegistriesConf RegistriesConf::load() {
    const std::string home = environment("HOME");
    const std::string user = home + "/.config/containers/registries.conf";
    const std::string system = "/etc/containers/registries.conf";
    std::vector<std::string> paths;
    if (const std::string chosen = environment("CONTAINERS_REGISTRIES_CONF"); !chosen.empty()) {
        paths.push_back(chosen);
    } else if (!home.empty() && exists(user)) {
        paths.push_back(user);
    } else if (exists(system)) {
        paths.push_back(system);
    }
    for (const std::string& path : conf_files_in(system + ".d")) paths.push_back(path);
    if (!home.empty()) {
        for (const std::string& path : conf_files_in(user + ".d")) paths.push_back(path);
        const std::string kept = home + "/.cache/containers/short-name-aliases.conf";
        if (exists(kept)) paths.push_back(kept);
    }
    RegistriesConf conf;
    for (const std::string& path : paths) {
        const std::vector<std::byte> text = store::read_file(path, kMaxFileBytes);
        conf.add({reinterpret_cast<const char*>(text.data()), text.size()}, path);
    }
    return conf;
}

struct RegistriesConf::Reader {
    const std::string& path;

    Location location(const toml::table& table) const {
        Location location{.location = text_of(table, "location", path),
                          .is_insecure = flag_of(table, "insecure", path)};
        const std::string use = text_of(table, "pull-from-mirror", path);
        if (use == "digest-only") location.use = Location::Use::digest_only;
        if (use == "tag-only") location.use = Location::Use::tag_only;
        while (location.location.ends_with('/')) location.location.pop_back();
        return location;
    }

    std::pair<std::string, Registry> registry(const toml::table& table) const {
        Registry registry{.own = location(table),
                          .is_blocked = flag_of(table, "blocked", path),
                          .is_mirror_by_digest_only = flag_of(table, "mirror-by-digest-only", path)};
        std::string prefix = text_of(table, "prefix", path);
        if (prefix.empty()) prefix = registry.own.location;
        if (prefix.empty()) refuse(path, "a [[registry]] has neither prefix nor location");
        if (const toml::array* const mirrors = table["mirror"].as_array()) {
            for (const toml::node& mirror : *mirrors) {
                if (!mirror.is_table()) refuse(path, "a mirror is no table");
                registry.mirrors.push_back(location(*mirror.as_table()));
                if (registry.mirrors.back().location.empty()) {
                    refuse(path, "a mirror of " + quote(prefix) + " has no location");
                }
            }
        }
        return {std::move(prefix), std::move(registry)};
    }
};

void RegistriesConf::add(std::string_view text, const std::string& path) {
    toml::table document;
    try {
        document = toml::parse(text, path);
    } catch (const toml::parse_error& error) {  // Of the library: here it becomes ours.
        refuse(path + ":" + std::to_string(error.source().begin.line), quote(error.description()));
    }
    if (document["registries"].is_table()) {
        refuse(path, "version 1 of the format; registries.conf(5) says how to write version 2");
    }
    if (const toml::array* const search = document["unqualified-search-registries"].as_array()) {
        search_.clear();
        for (const toml::node& host : *search) search_.push_back(host.value_or<std::string>(""));
    }
    if (const toml::array* const registries = document["registry"].as_array()) {
        for (const toml::node& registry : *registries) {
            if (!registry.is_table()) refuse(path, "a registry is no table");
            auto [prefix, read] = Reader{path}.registry(*registry.as_table());
            registries_.insert_or_assign(std::move(prefix), std::move(read));
        }
    }
    if (const toml::table* const aliases = document["aliases"].as_table()) {
        for (const auto& [name, target] : *aliases) {
            const std::string text_of_target = target.value_or<std::string>("");
            if (text_of_target.empty()) {
                aliases_.erase(std::string(name.str()));
            } else {
                aliases_.insert_or_assign(std::string(name.str()), text_of_target);
            }
        }
    }
}

const std::pair<const std::string, RegistriesConf::Registry>* RegistriesConf::find(
    const RegistryReference& reference) const {
    const std::pair<const std::string, Registry>* best = nullptr;
    for (const auto& entry : registries_) {
        if (is_prefix(entry.first, reference) && (!best || entry.first.size() > best->first.size())) best = &entry;
    }
    return best;
}

std::vector<RegistryReference> RegistriesConf::meanings(const RegistryReference& reference) const {
    if (!reference.host.empty()) return {reference};
    if (const auto alias = aliases_.find(reference.repository); alias != aliases_.end()) {
        const RegistryReference target = RegistryReference::parse(alias->second);
        return {reference.at(target.host.empty() ? kDockerHub : target.host, target.repository)};
    }
    std::vector<RegistryReference> all;
    for (const std::string& host : search_) all.push_back(reference.at(host, reference.repository));
    if (all.empty()) all.push_back(reference.at(kDockerHub, reference.repository));
    return all;
}

void RegistriesConf::add_places(const RegistryReference& reference, std::vector<RegistryPlace>& places) const {
    const auto* const entry = find(reference);
    if (!entry) return places.push_back({.reference = reference});
    const Registry& registry = entry->second;
    if (registry.is_blocked) {
        throw Error(Errc::read_only,
                    reference.text() + ": registry " + quote(entry->first) + " is blocked in registries.conf");
    }
    for (const Location& mirror : registry.mirrors) {
        const bool is_by_digest = reference.digest.has_value();
        const bool is_left_out = (!is_by_digest && registry.is_mirror_by_digest_only) ||
                                 (!is_by_digest && mirror.use == Location::Use::digest_only) ||
                                 (is_by_digest && mirror.use == Location::Use::tag_only);
        if (is_left_out) continue;
        places.push_back({.reference = relocated(reference, entry->first, mirror.location),
                          .is_insecure = mirror.is_insecure,
                          .is_mirror = true});
    }
    places.push_back(own_place(reference, entry->first, registry.own.location, registry.own.is_insecure));
}

std::vector<RegistryPlace> RegistriesConf::places(const RegistryReference& reference) const {
    std::vector<RegistryPlace> places;
    for (const RegistryReference& meaning : meanings(reference)) add_places(meaning, places);
    return places;
}

RegistryPlace RegistriesConf::place_for_push(const RegistryReference& reference) const {
    RegistryReference meaning = reference;
    if (reference.host.empty()) {
        const bool has_alias = aliases_.contains(reference.repository);
        meaning = has_alias ? meanings(reference).front() : reference.at(kDockerHub, reference.repository);
    }
    const auto* const entry = find(meaning);
    if (!entry) return {.reference = meaning};
    if (entry->second.is_blocked) {
        throw Error(Errc::read_only,
                    meaning.text() + ": registry " + quote(entry->first) + " is blocked in registries.conf");
    }
    const Location& own = entry->second.own;
    return own_place(meaning, entry->first, own.location, own.is_insecure);
}

}  // namespace lamina::store
