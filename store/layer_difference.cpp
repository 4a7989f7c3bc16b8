#include "store/layer_difference.h"

#include "store/printable.h"

#include <fmt/format.h>

#include <array>
#include <set>

namespace lamina::store {

namespace {

constexpr std::string_view kWhiteout = ".wh.";

std::string_view type_word(FileType type) {
    static constexpr std::array<std::string_view, 7> kWords{"file",         "folder", "symlink", "character device",
                                                            "block device", "fifo",   "socket"};
    return kWords.at(static_cast<std::size_t>(type));
}

std::string named(const LayerEntry& entry) {
    const auto slash = entry.path.rfind('/');
    const std::string_view name = std::string_view(entry.path).substr(slash == std::string::npos ? 0 : slash + 1);
    return (name.starts_with(kWhiteout) ? "whiteout " : "") + quote(entry.path.empty() ? "/" : entry.path);
}

std::string differs(const LayerEntry& entry, std::string_view field, const std::string& is, const std::string& said) {
    return fmt::format("{}: its {} is {}, the index says {}", named(entry), field, is, said);
}

std::string time_text(const Timestamp& time) {
    return fmt::format("{}.{:09}", time.seconds, time.nanoseconds);
}

std::optional<std::string> xattr_difference(const LayerEntry& is, const LayerEntry& said) {
    std::set<std::string> names;
    for (const LayerEntry* const entry : {&is, &said}) {
        for (const auto& [name, value] : entry->metadata.xattrs) names.insert(name);
    }
    for (const std::string& name : names) {
        const auto text = [&](const LayerEntry& entry) {
            const auto found = entry.metadata.xattrs.find(name);
            return found == entry.metadata.xattrs.end() ? std::string("missing") : quote(found->second);
        };
        if (text(is) != text(said)) return differs(is, "xattr " + quote(name), text(is), text(said));
    }
    return std::nullopt;
}

std::optional<std::string> metadata_difference(const LayerEntry& is, const LayerEntry& said) {
    const Metadata& a = is.metadata;
    const Metadata& b = said.metadata;
    const auto number = [&](std::string_view field, std::uint64_t x, std::uint64_t y) {
        return differs(is, field, std::to_string(x), std::to_string(y));
    };
    if (a.type != b.type) return differs(is, "type", std::string(type_word(a.type)), std::string(type_word(b.type)));
    if (a.mode != b.mode) return differs(is, "mode", fmt::format("{:04o}", a.mode), fmt::format("{:04o}", b.mode));
    if (a.uid != b.uid) return number("owner", a.uid, b.uid);
    if (a.gid != b.gid) return number("group", a.gid, b.gid);
    if (is.size_bytes != said.size_bytes) return number("size", is.size_bytes, said.size_bytes);
    if (a.link_target != b.link_target) return differs(is, "link target", quote(a.link_target), quote(b.link_target));
    if (a.mtime != b.mtime) return differs(is, "time", time_text(a.mtime), time_text(b.mtime));
    if (a.device_major != b.device_major || a.device_minor != b.device_minor)
        return differs(is, "device", fmt::format("{}:{}", a.device_major, a.device_minor),
                       fmt::format("{}:{}", b.device_major, b.device_minor));
    return xattr_difference(is, said);
}

std::optional<std::string> entry_difference(const LayerEntry& is, const LayerEntry& said) {
    if (is.is_hardlink != said.is_hardlink) {
        const auto word = [](bool is_link) { return std::string(is_link ? "a hard link" : "no hard link"); };
        return differs(is, "kind", word(is.is_hardlink), word(said.is_hardlink));
    }
    if (is.hardlink_target != said.hardlink_target)
        return differs(is, "hard link's target", quote(is.hardlink_target), quote(said.hardlink_target));
    if (is.is_hardlink) return std::nullopt;
    if (auto found = metadata_difference(is, said)) return found;
    if (is.content != said.content) return named(is) + ": its content is not what the index says";
    return std::nullopt;
}

std::set<std::string> paths_of(const Recipe& recipe) {
    std::set<std::string> paths;
    const auto entries = recipe.entries();
    while (const auto entry = entries->next()) paths.insert(entry->path);
    return paths;
}

}  // namespace

std::optional<std::string> first_difference(const Recipe& layer, const Recipe& said) {
    const auto is_entries = layer.entries();
    const auto said_entries = said.entries();
    while (true) {
        const auto is = is_entries->next();
        const auto claim = said_entries->next();
        if (!is && !claim) return std::nullopt;
        if (is && claim && is->path == claim->path) {
            if (auto found = entry_difference(*is, *claim)) return found;
            continue;
        }
        if (is && !paths_of(said).contains(is->path)) return named(*is) + ": the index lacks this entry";
        if (claim && !paths_of(layer).contains(claim->path)) return named(*claim) + ": the layer has no such entry";
        if (!is || !claim)
            return named(is ? *is : *claim) + ": the layer and the index have it a different number of times";
        return named(*is) + ": its place in the order is another one in the index, which has " + named(*claim) +
               " there";
    }
}

}  // namespace lamina::store
