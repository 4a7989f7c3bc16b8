// What overlayfs' attributes say, and the search that a redirect or a metacopy asks for: the names of a path, from the
// roots of the sources below or from the parts of one directory, one source after the other. A redirect found on the
// way changes the path for the sources further down; a whiteout, an opaque directory or something that is no directory
// ends the search. It only ever goes down, so it ends.
#include "fuse/stack_view_impl.h"

#include <sys/stat.h>

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace lamina::unionfs {
namespace {

/// overlay.metacopy is empty, or version, length of all, flags, digest algorithm, digest.
bool is_sound_metacopy(std::string_view value) {
    if (value.empty()) return true;
    return value.size() >= 4 && value[0] == 0 && static_cast<unsigned char>(value[1]) == value.size();
}

/// An attribute of overlayfs' family. One with a further dot in its name is another union's, kept as data.
bool is_mark(std::string_view key) {
    for (const std::string_view prefix : {OverlayXattrs::kTrusted, OverlayXattrs::kUser})
        if (key.starts_with(prefix)) return key.find('.', prefix.size()) == key.npos;
    return false;
}

}  // namespace

Result<StackView::Impl::Marks> StackView::Impl::marks_of(int folder_fd, std::string_view name, const Source& source,
                                                         bool is_root) {
    Marks marks;
    const auto names = layer::xattr_names(folder_fd, name);
    if (!names) return std::unexpected(names.error());
    const std::string_view active = options.xattrs.prefix();
    for (const std::string& key : *names) {
        if (!is_mark(key) && key != kFuseOverlayOpaque && key != kFuseOverlayOrigin) continue;
        auto value = layer::xattr(folder_fd, name, key);
        if (!value) return std::unexpected(value.error());
        if (!*value) continue;
        const std::string& text = **value;
        const std::string_view suffix = std::string_view(key).substr(key.rfind('.') + 1);
        if (suffix == kOpaqueSuffix && name.empty()) {
            const bool counts = key == kFuseOverlayOpaque || !is_root;  // The kernel merges all roots.
            if (text.starts_with('y') && counts) marks.is_opaque = true;
            if (text == "x") marks.has_whiteout_xattrs = true;
        }
        if (key == kFuseOverlayOrigin) marks.fuse_overlay_origin = text;
        if (!key.starts_with(active)) continue;
        if (suffix == kRedirectSuffix) marks.redirect = text;
        if (suffix == kOriginSuffix) marks.origin = text;
        if (suffix == kNlinkSuffix) marks.nlink = text;
        if (suffix != kMetacopySuffix || name.empty()) continue;
        marks.is_metacopy = true;
        if (is_sound_metacopy(text)) continue;
        report(fmt::format("{}: {}: {}: malformed", source.name, name, key));
        return fail(EIO);
    }
    if (name.empty() && !marks.is_opaque) {
        const auto mark = is_aufs_mark(folder_fd, kAufsOpaque);
        if (!mark && mark.error() != Errno{EACCES}) return std::unexpected(mark.error());
        marks.is_opaque = mark && *mark;
    }
    return marks;
}

/// `left`: how many names of the path come behind the one that has the redirect.
Result<void> StackView::Impl::apply_redirect(Search& search, std::size_t left, const std::string& value) {
    if (!options.xattrs.follows_redirects) {
        report(fmt::format("{}: a redirect, which this mount does not follow", path_of(search.parent)));
        return fail(EPERM);
    }
    const auto redirect = parse_redirect(value);
    if (!redirect) {
        report(fmt::format("{}: {}: malformed", path_of(search.parent), options.xattrs.name(kRedirectSuffix)));
        return fail(EIO);
    }
    std::vector<std::string> names;
    const std::size_t before = search.names.size() - left - 1;
    if (!redirect->is_absolute) names.assign(search.names.begin(), search.names.begin() + static_cast<long>(before));
    names.insert(names.end(), redirect->names.begin(), redirect->names.end());
    names.insert(names.end(), search.names.end() - static_cast<long>(left), search.names.end());
    search.names = std::move(names);
    if (redirect->is_absolute) {
        search.from_root = true;
        search.is_stopped = false;  // An opaque directory on the old way has no say about the new one.
    }
    return {};
}

Result<std::optional<StackView::Impl::Found>> StackView::Impl::next_below(Search& search, std::uint32_t node) {
    while (!search.is_stopped) {
        const NodeId from = search.from_root ? kRootNode : search.parent;
        std::uint32_t base = 0;
        records.for_each_part(records.directories[records.nodes[from].detail].parts, [&](std::uint32_t folder) {
            if (records.folders[folder].source <= search.source) return true;
            base = folder;
            return false;
        });
        if (base == 0) return std::nullopt;
        search.source = records.folders[base].source;
        auto found = is_image(base) ? search_in_image(base, search, node) : search_in(base, search, node);
        if (!found || *found) return found;
    }
    return std::nullopt;
}

Result<std::optional<StackView::Impl::Found>> StackView::Impl::search_in(std::uint32_t base, Search& search,
                                                                         std::uint32_t node) {
    const std::vector<std::string> names = search.names;  // A redirect counts from the next source on.
    std::uint32_t at = base;
    for (std::size_t position = 0; position < names.size(); ++position) {
        auto found = look_at(at, names, position, search);
        if (!found || !*found) return found;
        const std::size_t left = names.size() - position - 1;
        Found& here = **found;
        if (here.marks.is_opaque) {
            search.is_stopped = true;
        } else if (here.marks.redirect) {
            if (const auto applied = apply_redirect(search, left, *here.marks.redirect); !applied)
                return std::unexpected(applied.error());
        }
        if (here.as_folder != 0 && left == 0) records.folders[here.as_folder].node = node;
        if (left == 0) return found;
        at = here.as_folder;
    }
    return std::nullopt;
}

/// One name of a path in a folder. Says in the search when nothing further down counts.
Result<std::optional<StackView::Impl::Found>> StackView::Impl::look_at(std::uint32_t folder,
                                                                       const std::vector<std::string>& names,
                                                                       std::size_t position, Search& search) {
    const std::string& name = names[position];
    const Source& source = sources[records.folders[folder].source];
    const auto fd = folder_fd(folder);
    if (!fd) return std::unexpected(stale(fd.error()));
    const auto hidden = is_aufs_mark((*fd)->get(), std::string(kAufsPrefix).append(name));
    if (!hidden) return std::unexpected(hidden.error());
    if (*hidden) search.is_stopped = true;
    const auto stat = layer::stat_of((*fd)->get(), name);
    if (!stat && stat.error() == Errno{ENOENT}) return std::nullopt;
    if (!stat) return std::unexpected(stat.error());
    bool is_whiteout = stat->is_whiteout();
    if (!is_whiteout && (records.folders[folder].flags & FolderRecord::kHasWhiteoutXattrs) != 0) {
        const auto by_attribute = is_whiteout_file((*fd)->get(), name);
        if (!by_attribute) return std::unexpected(by_attribute.error());
        is_whiteout = *by_attribute;
    }
    const bool wants_file = search.wants_file && position + 1 == names.size();
    if (is_whiteout || (wants_file ? !S_ISREG(stat->mode) : !S_ISDIR(stat->mode))) {
        search.is_stopped = true;
        return std::nullopt;
    }
    Found found{.folder = folder, .name = name, .stat = *stat, .marks = {}, .as_folder = 0};
    if (wants_file) {
        auto marks = marks_of((*fd)->get(), name, source, false);
        if (!marks) return std::unexpected(marks.error());
        found.marks = std::move(*marks);
        if (!found.marks.is_metacopy) {
            found.marks.redirect.reset();
            search.is_stopped = true;
        }
        return found;
    }
    const auto opened = open_part(folder, name, 0, found.marks);
    if (!opened) return std::unexpected(opened.error());
    found.as_folder = *opened;
    return found;
}

Result<std::optional<StackView::Impl::Found>> StackView::Impl::search_in_image(std::uint32_t base, Search& search,
                                                                               std::uint32_t node) {
    const ImageView& tree = image(base);
    std::uint32_t at = base;
    for (std::size_t position = 0; position < search.names.size(); ++position) {
        const std::string& name = search.names[position];
        const bool is_last = position + 1 == search.names.size();
        const auto entry = tree.lookup(records.folders[at].identity.inode, name);
        if (!entry) return std::unexpected(entry.error());
        if (!*entry) return std::nullopt;
        const bool wants_file = search.wants_file && is_last;
        if (wants_file ? !S_ISREG((*entry)->type) : !S_ISDIR((*entry)->type)) {
            search.is_stopped = true;
            return std::nullopt;
        }
        Found found{.folder = at, .name = name, .stat = {}, .marks = {}, .as_folder = 0};
        found.stat.device = records.folders[at].identity.device;
        found.stat.inode = (*entry)->node;
        found.stat.nlink = 1;
        if (wants_file) {
            search.is_stopped = true;
            return found;
        }
        found.as_folder = add_image_folder(at, name, (*entry)->node, is_last ? node : 0);
        if (is_last) return found;
        at = found.as_folder;
    }
    return std::nullopt;
}

}  // namespace lamina::unionfs
