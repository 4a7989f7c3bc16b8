// Listing a directory's parts into one. Going from the top down, the first part that has a name decides what it is; a
// directory goes on collecting the directories of the same name further down, until something else, or a whiteout, ends
// it. Whether those become parts of it (opaque marks, redirects) is found out when it is looked up itself.
#include "fuse/stack_view_impl.h"

#include <sys/stat.h>

#include <algorithm>
#include <climits>
#include <unordered_map>
#include <utility>

namespace lamina::unionfs {
namespace {

/// What is under a name, as far as the parts have been listed.
struct Merged {
    std::uint32_t folder = 0;  ///< In which it lies on top; 0: hidden by a whiteout.
    std::uint32_t type = 0;
    std::uint64_t number = 0;
    bool is_closed = false;  ///< Nothing further down belongs to it.
    bool is_below_decided = false;
    bool shows_below = false;  ///< Without the upper there would be something.
    std::vector<std::uint32_t> candidates;
};

struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>()(text); }
};

}  // namespace

struct StackView::Impl::Merge {
    std::unordered_map<std::string, Merged, TextHash, std::equal_to<>> names;
    std::vector<std::string> hidden_beside;  ///< Names that AUFS' whiteouts of the part in hand hide further down.
    bool has_upper = false;                  ///< The part in hand is the upper's.

    Merged& at(std::string_view name) {
        const auto found = names.find(name);
        return found != names.end() ? found->second : names.emplace(name, Merged{}).first->second;
    }
    void hide(std::string_view name) {
        Merged& merged = at(name);
        merged.is_closed = true;
        if (!has_upper) merged.is_below_decided = true;
    }
    void add(std::string_view name, std::uint32_t folder, std::uint32_t type, std::uint64_t number) {
        Merged& merged = at(name);
        if (!has_upper && !merged.is_below_decided) merged.is_below_decided = merged.shows_below = true;
        if (merged.is_closed) return;
        if (merged.folder == 0) {
            merged.folder = folder;
            merged.type = type;
            merged.number = number;
            merged.is_closed = !S_ISDIR(type);
        } else if (S_ISDIR(type)) {
            merged.candidates.push_back(folder);
        } else {
            merged.is_closed = true;
        }
    }
};

Result<bool> StackView::Impl::is_aufs_mark(int folder_fd, std::string_view name) {
    if (name.size() > NAME_MAX) return false;  // What it would hide has too long a name to be hidden so.
    const auto stat = layer::stat_of(folder_fd, name);
    if (!stat && stat.error() == Errno{ENOENT}) return false;
    if (!stat) return std::unexpected(stat.error());
    if (!S_ISREG(stat->mode) || stat->size_bytes != 0) return false;
    for (const std::string_view prefix : {OverlayXattrs::kTrusted, OverlayXattrs::kUser}) {
        const auto plain = layer::xattr(folder_fd, name, std::string(prefix).append(kPlainSuffix));
        if (!plain && plain.error() != Errno{EACCES}) return std::unexpected(plain.error());
        if (plain && *plain) return false;
    }
    return true;
}

Result<bool> StackView::Impl::is_whiteout_file(int folder_fd, std::string_view name) {
    const auto stat = layer::stat_of(folder_fd, name);
    if (!stat) return std::unexpected(stat.error());
    if (!S_ISREG(stat->mode) || stat->size_bytes != 0) return false;
    for (const std::string_view prefix : {OverlayXattrs::kTrusted, OverlayXattrs::kUser}) {
        const auto mark = layer::xattr(folder_fd, name, std::string(prefix).append(kWhiteoutSuffix));
        if (!mark && mark.error() != Errno{EACCES}) return std::unexpected(mark.error());
        if (mark && *mark) return true;
    }
    return false;
}

Result<void> StackView::Impl::merge_entry(Merge& merge, std::uint32_t folder, int fd, const layer::Listed& entry) {
    const FolderRecord& record = records.folders[folder];
    const Source& source = sources[record.source];
    std::uint32_t type = entry.type;
    if (S_ISCHR(type)) {
        const auto stat = layer::stat_of(fd, entry.name);
        if (!stat) return std::unexpected(stat.error());
        if (stat->is_whiteout()) {
            merge.hide(entry.name);
            return {};
        }
    }
    if (S_ISREG(type) && has_aufs_prefix(entry.name)) {
        const auto is_mark = is_aufs_mark(fd, entry.name);
        if (!is_mark) return std::unexpected(is_mark.error());
        if (*is_mark) {
            if (entry.name != kAufsOpaque) merge.hidden_beside.emplace_back(entry.name.substr(kAufsPrefix.size()));
            return {};
        }
    }
    if (S_ISREG(type) && (record.flags & FolderRecord::kHasWhiteoutXattrs) != 0) {
        const auto is_whiteout = is_whiteout_file(fd, entry.name);
        if (!is_whiteout) return std::unexpected(is_whiteout.error());
        if (*is_whiteout) {
            merge.hide(entry.name);
            return {};
        }
    }
    if (S_ISREG(type) && !source.override_stat.empty()) {
        Attributes attributes;
        attributes.mode = type;
        if (const auto applied = apply_override(attributes, source, fd, entry.name); applied)
            type = attributes.mode & S_IFMT;
    }
    // In the upper a number may depend on where a copy came from: found out when it is asked for.
    const std::uint64_t number = merge.has_upper ? 0 : number_of(record.identity.device, entry.inode);
    merge.add(entry.name, folder, type, number);
    return {};
}

Result<void> StackView::Impl::merge_image(Merge& merge, std::uint32_t folder) {
    const FolderRecord& record = records.folders[folder];
    const auto count = image(folder).entry_count(record.identity.inode);
    if (!count) return std::unexpected(count.error());
    for (std::uint32_t position = 0; position < *count; ++position) {
        const auto entry = image(folder).entry(record.identity.inode, position);
        if (!entry) return std::unexpected(entry.error());
        merge.add(entry->name, folder, entry->type, number_of(record.identity.device, entry->node));
    }
    return {};
}

Result<void> StackView::Impl::merge_part(Merge& merge, std::uint32_t folder) {
    merge.hidden_beside.clear();
    merge.has_upper = is_upper(records.folders[folder].source);
    if (is_image(folder)) return merge_image(merge, folder);
    const auto fd = folder_fd(folder);
    if (!fd) return std::unexpected(stale(fd.error()));
    const auto listed = layer::list_folder((*fd)->get(), [&](const layer::Listed& entry) -> Result<void> {
        const auto merged = merge_entry(merge, folder, (*fd)->get(), entry);
        if (!merged && merged.error() == Errno{ENOENT}) return {};  // Gone while it was listed.
        return merged;
    });
    if (!listed) return listed;
    for (const std::string& name : merge.hidden_beside) merge.hide(name);
    return {};
}

Result<void> StackView::Impl::load(NodeId node) {
    const auto found = directory(node);
    if (!found) return std::unexpected(found.error());
    if (*found != node) return fail(ENOENT);
    const DirectoryRecord& record = records.directories[records.nodes[node].detail];
    if (record.is_loaded) return {};
    Merge merge;
    Result<void> done;
    records.for_each_part(record.parts, [&](std::uint32_t folder) {
        done = merge_part(merge, folder);
        return done.has_value();
    });
    if (!done) return done;
    append_entries(merge, node);
    return {};
}

/// The visible names in order, then those that only the upper hides.
void StackView::Impl::append_entries(Merge& merge, NodeId node) {
    std::vector<std::pair<std::string_view, const Merged*>> shown;
    std::vector<std::string_view> hidden;
    for (const auto& [name, merged] : merge.names) {
        if (merged.folder != 0) {
            shown.emplace_back(name, &merged);
        } else if (merged.shows_below) {
            hidden.push_back(name);
        }
    }
    std::ranges::sort(shown, {}, [](const auto& one) { return one.first; });
    std::ranges::sort(hidden);
    DirectoryRecord loaded = records.directories[records.nodes[node].detail];
    loaded.first_entry = records.nodes.size();
    loaded.entry_count = static_cast<std::uint32_t>(shown.size());
    loaded.hidden_count = static_cast<std::uint32_t>(hidden.size());
    loaded.is_loaded = 1;
    for (const auto& [name, merged] : shown) {
        const std::uint32_t candidates = merged->candidates.empty() ? 0 : records.chain(merged->candidates);
        // A directory whose parts begin in the upper has the number of what is below, if that belongs to it.
        records.nodes.add({.number = merged->number,
                           .parent = static_cast<std::uint32_t>(node),
                           .folder = merged->folder,
                           .candidates = candidates,
                           .type = static_cast<std::uint16_t>(merged->type),
                           .flags = merged->shows_below ? NodeRecord::kShowsBelow : std::uint8_t{0},
                           .name = records.texts.add(name)});
        if (S_ISDIR(merged->type)) ++loaded.subdirectory_count;
    }
    for (const std::string_view name : hidden)
        records.nodes.add({.parent = static_cast<std::uint32_t>(node), .name = records.texts.add(name)});
    records.directories[records.nodes[node].detail] = loaded;
}

std::uint32_t StackView::Impl::find_entry(const DirectoryRecord& directory, std::string_view name, bool hidden) const {
    std::uint32_t first = directory.first_entry + (hidden ? directory.entry_count : 0);
    const std::uint32_t end = first + (hidden ? directory.hidden_count : directory.entry_count);
    for (std::uint32_t count = end - first; count > 0;) {
        const std::uint32_t half = count / 2;
        if (records.name(first + half) < name) {
            first += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return first < end && records.name(first) == name ? first : 0;
}

}  // namespace lamina::unionfs
