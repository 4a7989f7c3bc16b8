#include "fuse/stack_options.h"

#include "store/error.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace lamina::unionfs {
namespace {

constexpr std::size_t kMostLowers = 4096;
constexpr std::size_t kMostRanges = 340;  // What the kernel has for a user namespace.

[[noreturn]] void refuse(const std::string& why) {
    throw store::Error(store::Errc::malformed, why + " (try --help)");
}

std::string without_escapes(std::string_view text) {
    std::string plain;
    for (std::size_t at = 0; at < text.size(); ++at) {
        if (text[at] == '\\' && at + 1 < text.size()) ++at;
        plain += text[at];
    }
    return plain;
}

/// "A:B", with "\:" for a colon in a name. Empty parts are left out.
std::vector<std::string> split_lowers(std::string_view text) {
    std::vector<std::string> lowers;
    std::size_t begin = 0;
    for (std::size_t at = 0; at <= text.size(); ++at) {
        if (at < text.size() && text[at] == '\\') {
            ++at;
            continue;
        }
        if (at < text.size() && text[at] != ':') continue;
        if (at > begin) lowers.push_back(without_escapes(text.substr(begin, at - begin)));
        begin = at + 1;
    }
    if (lowers.empty()) refuse("-o lowerdir: no folder is named");
    if (lowers.size() > kMostLowers) refuse(fmt::format("-o lowerdir: more than {} folders", kMostLowers));
    return lowers;
}

std::uint32_t id_of(std::string_view option, std::string_view text) {
    std::uint32_t id = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), id);
    if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size()) {
        refuse(fmt::format("-o {}: \"{}\" is not a number of a user or group", option, text));
    }
    return id;
}

/// Triples, all apart at colons; one in front of them is taken too.
std::vector<IdRange> id_ranges(std::string_view option, std::string_view text) {
    std::vector<std::uint32_t> numbers;
    while (!text.empty()) {
        const auto end = std::min(text.find(':'), text.size());
        if (end > 0) numbers.push_back(id_of(option, text.substr(0, end)));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    if (numbers.empty() || numbers.size() % 3 != 0 || numbers.size() > 3 * kMostRanges) {
        refuse(fmt::format("-o {}: not of the form ID:SHOWN:COUNT", option));
    }
    std::vector<IdRange> ranges;
    for (std::size_t at = 0; at < numbers.size(); at += 3) {
        ranges.push_back({.kept = numbers[at], .shown = numbers[at + 1], .count = numbers[at + 2]});
    }
    return ranges;
}

OverrideStat override_stat_of(std::string_view text) {
    if (text == "0") return OverrideStat::automatic;
    if (text == "1") return OverrideStat::privileged;
    if (text == "2") return OverrideStat::containers;
    refuse("-o xattr_permissions: 0, 1 or 2");
}

/// Options of the two others that change nothing here: what they ask for is always so, or never needed.
bool is_without_effect(std::string_view name) {
    constexpr std::array kNames = {
        "index",    "nfs_export",       "xino",        "uuid",         "context",    "noacl",       "threaded",
        "clone_fd", "max_idle_threads", "max_threads", "static_nlink", "noxattrs",   "timeout",     "plugins",
        "subtype",  "auto_unmount",     "allow_root",  "fscontext",    "defcontext", "rootcontext", "verity"};
    return std::ranges::find(kNames, name) != kNames.end();
}

}  // namespace

std::vector<std::string> split_options(std::string_view list) {
    std::vector<std::string> options{""};
    bool is_quoted = false;
    for (std::size_t at = 0; at < list.size(); ++at) {
        const char letter = list[at];
        if (letter == '\\' && at + 1 < list.size()) {
            options.back() += letter;
            options.back() += list[++at];
            continue;
        }
        if (letter == '"') is_quoted = !is_quoted && options.back().ends_with('=');
        if (letter == ',' && !is_quoted) {
            options.emplace_back();
        } else {
            options.back() += letter;
        }
    }
    std::erase(options, "");
    return options;
}

bool apply_stack_option(StackMountOptions& options, std::string_view name, const std::optional<std::string>& value) {
    if (is_without_effect(name)) return true;
    if (!value) {
        if (name == "volatile") {
            options.is_volatile = true;
        } else if (name == "userxattr") {
            options.has_user_xattrs = true;
        } else if (name == "squash_to_root") {
            options.squash_uid = options.squash_gid = 0;
        } else {
            return false;
        }
        return true;
    }
    if (name == "lowerdir") {
        options.lowers = split_lowers(*value);
    } else if (name == "upperdir" || name == "workdir") {
        if (value->empty()) refuse(fmt::format("-o {}: no folder is named", name));
        (name == "upperdir" ? options.upper : options.work) = without_escapes(*value);
    } else if (name == "image") {
        if (!value->starts_with('/')) {
            refuse(fmt::format("-o image={}: a mount's folder is wanted; names are found by mount -t lamina", *value));
        }
        (options.lowers.empty() ? options.images_above : options.images_below).push_back(without_escapes(*value));
    } else if (name == "fsname") {
        options.source_name = without_escapes(*value);
    } else if (name == "uidmapping") {
        options.uids = id_ranges(name, *value);
    } else if (name == "gidmapping") {
        options.gids = id_ranges(name, *value);
    } else if (name == "squash_to_uid") {
        options.squash_uid = id_of(name, *value);
    } else if (name == "squash_to_gid") {
        options.squash_gid = id_of(name, *value);
    } else if (name == "xattr_permissions") {
        options.override_stat = override_stat_of(*value);
    } else if (name == "redirect_dir") {
        options.follows_redirects = *value != "nofollow";
    } else if (name == "metacopy") {
        options.follows_metacopy = *value != "off";
        options.makes_metacopy = *value == "on";
    } else if (name == "fsync") {
        options.is_volatile = options.is_volatile || *value == "0";
    } else {
        return false;
    }
    return true;
}

}  // namespace lamina::unionfs
