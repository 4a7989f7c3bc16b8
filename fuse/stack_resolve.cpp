// What a name stands for, found out when it is looked up first: of a directory, which parts it has; of a file, which
// inode it is, where its bytes are, how many names it has and by which number programs know it.
#include "fuse/stack_view_impl.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace lamina::unionfs {

Result<NodeId> StackView::Impl::resolve(NodeId node) {
    if (node == 0 || node >= records.nodes.size()) return fail(ENOENT);
    const auto index = static_cast<std::uint32_t>(node);
    NodeRecord& record = records.nodes[index];
    if (record.type == 0) return fail(ENOENT);  // A hidden name.
    if (!record.is_resolved()) {
        const auto resolved = record.is_directory() ? resolve_directory(index) : resolve_file(index);
        if (!resolved) return std::unexpected(resolved.error());
        record.flags |= NodeRecord::kIsResolved;
    }
    return record.canonical != 0 ? record.canonical : node;
}

// Directories.

std::uint32_t StackView::Impl::add_image_folder(std::uint32_t parent, std::string_view name, NodeId inode,
                                                std::uint32_t node) {
    const std::uint32_t folder = add_folder(parent, name, node);
    records.folders[folder].identity = {.device = records.folders[parent].identity.device, .inode = inode};
    return folder;
}

/// Opens a directory in a folder, for the first time, and reads its marks.
Result<std::uint32_t> StackView::Impl::open_part(std::uint32_t parent, std::string_view name, std::uint32_t node,
                                                 Marks& marks) {
    const auto parent_fd = folder_fd(parent);
    if (!parent_fd) return std::unexpected(stale(parent_fd.error()));
    const std::uint32_t folder = add_folder(parent, name, node);
    FolderRecord& record = records.folders[folder];
    auto opened = open_known((*parent_fd)->get(), name, record);
    if (!opened) return std::unexpected(opened.error());
    auto read = marks_of(opened->get(), {}, sources[record.source], false);
    if (!read) return std::unexpected(read.error());
    if (read->has_whiteout_xattrs) record.flags |= FolderRecord::kHasWhiteoutXattrs;
    marks = std::move(*read);
    remember_folder(folder, std::move(*opened));
    return folder;
}

Result<void> StackView::Impl::resolve_root(std::uint32_t root) {
    std::vector<std::uint32_t> folders;
    for (const Source& source : sources) {
        folders.push_back(source.folder);
        if (source.image) continue;
        const auto marks = marks_of(source.root->get(), {}, source, true);
        if (!marks) return std::unexpected(marks.error());
        if (marks->has_whiteout_xattrs) records.folders[source.folder].flags |= FolderRecord::kHasWhiteoutXattrs;
        if (marks->is_opaque) break;
    }
    finish_directory(root, folders, {});
    return {};
}

Result<void> StackView::Impl::resolve_directory(std::uint32_t node) {
    const NodeRecord record = records.nodes[node];
    const std::string name(records.text(record.name));
    std::vector<std::uint32_t> holders{record.folder};
    records.for_each_part(record.candidates, [&](std::uint32_t folder) {
        holders.push_back(folder);
        return true;
    });
    std::vector<std::uint32_t> folders;
    TextRef upper_redirect;
    Search search{.names = {name}, .parent = record.parent, .wants_directory = true, .is_stopped = true};
    for (const std::uint32_t holder : holders) {
        const std::uint32_t source = records.folders[holder].source;
        if (is_image(holder)) {
            const auto entry = image(holder).lookup(records.folders[holder].identity.inode, name);
            if (!entry) return std::unexpected(entry.error());
            if (!*entry || !S_ISDIR((*entry)->type)) return fail(EIO);
            folders.push_back(add_image_folder(holder, name, (*entry)->node, node));
            continue;
        }
        Marks marks;
        const auto folder = open_part(holder, name, node, marks);
        if (!folder) return std::unexpected(folder.error());
        folders.push_back(*folder);
        if (marks.is_opaque) break;
        if (!marks.redirect) continue;
        if (is_upper(source)) upper_redirect = records.texts.add(*marks.redirect);
        search.source = source;
        search.is_stopped = false;
        if (const auto applied = apply_redirect(search, 0, *marks.redirect); !applied) return applied;
        break;
    }
    while (true) {
        const auto found = next_below(search, node);
        if (!found) return std::unexpected(found.error());
        if (!*found) break;
        folders.push_back((*found)->as_folder);
    }
    finish_directory(node, folders, upper_redirect);
    return {};
}

/// The number is that of the topmost part below the upper: it stays when a directory is copied up, or is renamed. The
/// root is never copied up; it has the upper's, as overlayfs has it.
void StackView::Impl::finish_directory(std::uint32_t node, const std::vector<std::uint32_t>& folders,
                                       TextRef upper_redirect) {
    NodeRecord& record = records.nodes[node];
    const bool skips_upper =
        folders.size() > 1 && node != kRootNode && is_upper(records.folders[folders.front()].source);
    const Identity& identity = records.folders[folders[skips_upper ? 1 : 0]].identity;
    record.number = number_of(identity.device, identity.inode);
    record.detail = records.directories.add({.parts = records.chain(folders), .redirect = upper_redirect});
    record.flags |= NodeRecord::kIsResolved;
}

// Files, and all else that is no directory.

Result<void> StackView::Impl::resolve_file(std::uint32_t node) {
    NodeRecord& record = records.nodes[node];
    const FolderRecord& folder = records.folders[record.folder];
    const Source& source = sources[folder.source];
    if (source.image) return resolve_image_file(node);
    const auto fd = folder_fd(record.folder);
    if (!fd) return std::unexpected(stale(fd.error()));
    const std::string_view name = records.text(record.name);
    const auto stat = layer::stat_of((*fd)->get(), name);
    if (!stat) return std::unexpected(stale(stat.error()));
    const bool is_overridden = !source.override_stat.empty() && S_ISREG(stat->mode);
    if (S_ISDIR(stat->mode) || stat->is_whiteout() || ((stat->mode & S_IFMT) != record.type && !is_overridden))
        return fail(ESTALE);
    if (join_links(node, {stat->device, stat->inode, folder.source})) return {};
    FileRecord file{.object = {.identity = identity_of(*stat), .folder = record.folder, .name = record.name},
                    .nlink = stat->nlink};
    record.number = number_of(stat->device, stat->inode);
    Marks marks;
    if (is_upper(folder.source) || S_ISREG(stat->mode)) {
        auto read = marks_of((*fd)->get(), name, source, false);
        if (!read) return std::unexpected(read.error());
        marks = std::move(*read);
    }
    if (marks.is_metacopy && S_ISREG(stat->mode))
        if (const auto resolved = resolve_data(node, file, marks); !resolved) return resolved;
    if (is_upper(folder.source)) {
        number_upper(record, file, marks, *stat);
    } else {
        file.lower_nlink = stat->nlink;
        const auto indexed = resolve_index(node, file, *stat);
        if (!indexed) return std::unexpected(indexed.error());
        if (*indexed) return {};
    }
    finish_file(node, file, {stat->device, stat->inode, folder.source}, stat->nlink > 1);
    return {};
}

/// When another name of the same inode was seen before, this one means that; an inode of index/ gets its place in the
/// upper when that is seen.
bool StackView::Impl::join_links(std::uint32_t node, const Key& key) {
    const auto found = links.find(key);
    if (found == links.end()) return false;
    NodeRecord& record = records.nodes[node];
    const NodeRecord& known = records.nodes[found->second];
    record.canonical = found->second;
    record.number = known.number;
    ObjectRecord& object = records.files[known.detail].object;
    if (object.folder == kIndexFolder && is_upper(key.source) && is_upper(records.folders[record.folder].source)) {
        object.folder = record.folder;
        object.name = record.name;
    }
    return true;
}

void StackView::Impl::finish_file(std::uint32_t node, const FileRecord& file, const Key& key, bool has_links) {
    records.nodes[node].detail = records.files.add(file);
    if (has_links) links.emplace(key, node);
}

Result<void> StackView::Impl::resolve_image_file(std::uint32_t node) {
    NodeRecord& record = records.nodes[node];
    const FolderRecord& folder = records.folders[record.folder];
    const auto entry = image(record.folder).lookup(folder.identity.inode, records.text(record.name));
    if (!entry) return std::unexpected(entry.error());
    if (!*entry) return fail(EIO);
    const auto attributes = image(record.folder).attributes((*entry)->node);
    if (!attributes) return std::unexpected(attributes.error());
    const Key key{folder.identity.device, (*entry)->node, folder.source};
    if (join_links(node, key)) return {};
    record.number = number_of(key.device, key.inode);
    const FileRecord file{.object = {.identity = {.device = key.device, .inode = key.inode},
                                     .folder = record.folder,
                                     .name = record.name},
                          .nlink = attributes->nlink,
                          .lower_nlink = attributes->nlink};
    finish_file(node, file, key, attributes->nlink > 1);
    return {};
}

Result<void> StackView::Impl::resolve_data(std::uint32_t node, FileRecord& file, const Marks& marks) {
    const NodeRecord& record = records.nodes[node];
    if (!options.xattrs.follows_metacopy) {
        report(path_of(node) + ": its bytes are in another layer, which this mount does not look for");
        return fail(EPERM);
    }
    Search search{.names = {std::string(records.text(record.name))},
                  .parent = record.parent,
                  .source = records.folders[record.folder].source,
                  .wants_file = true};
    if (marks.redirect) {
        if (is_upper(search.source)) file.redirect = records.texts.add(*marks.redirect);
        if (const auto applied = apply_redirect(search, 0, *marks.redirect); !applied) return applied;
    }
    while (true) {
        const auto found = next_below(search, 0);
        if (!found) return std::unexpected(found.error());
        if (!*found) {
            report(path_of(node) + ": its bytes are in no layer");
            return fail(EIO);
        }
        const Found& at = **found;
        if (file.lower_nlink == 0) file.lower_nlink = at.stat.nlink;
        if (at.marks.is_metacopy) continue;
        file.data = {.identity = identity_of(at.stat), .folder = at.folder, .name = records.texts.add(at.name)};
        return {};
    }
}

/// A lower inode with several names that was copied up lies in the upper under one or more of them and in index/ under
/// its handle: all its names mean that.
Result<bool> StackView::Impl::resolve_index(std::uint32_t node, FileRecord& file, const layer::Stat& stat) {
    if (!index_folder || stat.nlink < 2) return false;
    NodeRecord& record = records.nodes[node];
    const auto fd = folder_fd(record.folder);
    if (!fd) return std::unexpected(stale(fd.error()));
    auto handle = file_handle_of((*fd)->get(), records.text(record.name));
    if (!handle) return false;
    const std::uint32_t source = records.folders[record.folder].source;
    handle->file_system = sources[source].uuid.value_or(std::array<std::uint8_t, 16>{});
    const std::string name = handle->index_name();
    const auto indexed = layer::stat_of(index_folder.get(), name);
    if (!indexed && indexed.error() == Errno{ENOENT}) return false;
    if (!indexed) return std::unexpected(indexed.error());
    if (indexed->is_whiteout()) return false;
    if ((indexed->mode & S_IFMT) != (stat.mode & S_IFMT)) {
        report(path_of(node) + ": the work folder's index has something else for it");
        return fail(EIO);
    }
    const Key lower{stat.device, stat.inode, source};
    const Key upper{indexed->device, indexed->inode, 0};
    if (join_links(node, upper)) {
        links.emplace(lower, record.canonical);
        return true;
    }
    auto marks = marks_of(index_folder.get(), name, sources.front(), false);
    if (!marks) return std::unexpected(marks.error());
    const bool has_bytes_below = marks->is_metacopy && S_ISREG(stat.mode);
    if (!has_bytes_below) file.data = {};
    if (has_bytes_below && file.data.folder == 0) file.data = file.object;  // The lower file's own.
    file.object = {.identity = identity_of(*indexed), .folder = kIndexFolder, .name = records.texts.add(name)};
    file.index_name = file.object.name;
    file.nlink = indexed->nlink;
    if (marks->nlink) file.nlink = parse_nlink(*marks->nlink, indexed->nlink, stat.nlink).value_or(indexed->nlink);
    finish_file(node, file, upper, true);
    links.emplace(lower, node);
    return true;
}

/// A file of the upper that was copied up keeps the number that it had below, unless another name shows that inode
/// still.
void StackView::Impl::number_upper(NodeRecord& node, FileRecord& file, const Marks& marks, const layer::Stat& stat) {
    std::optional<Lower> lower;
    bool is_indexed = false;
    const auto handle = marks.origin ? FileHandle::parse(*marks.origin) : std::nullopt;
    if (handle && !handle->is_upper) {
        lower = origin_of(*handle);
        if (index_folder) {
            const auto indexed = layer::stat_of(index_folder.get(), handle->index_name());
            is_indexed = indexed && indexed->inode == stat.inode && indexed->device == stat.device;
            if (is_indexed) file.index_name = records.texts.add(handle->index_name());
        }
    } else if (marks.fuse_overlay_origin) {
        lower = fuse_overlay_origin_of(*marks.fuse_overlay_origin);
    } else if (file.data.folder != 0) {
        lower = Lower{file.data.identity.device, file.data.identity.inode, file.lower_nlink};
    }
    if (lower && file.lower_nlink == 0) file.lower_nlink = lower->nlink;
    if (is_indexed && marks.nlink)
        file.nlink = parse_nlink(*marks.nlink, stat.nlink, file.lower_nlink).value_or(stat.nlink);
    if (lower && (is_indexed || lower->nlink <= 1)) node.number = number_of(lower->device, lower->inode);
}

std::optional<StackView::Impl::Lower> StackView::Impl::origin_of(const FileHandle& handle) const {
    const bool is_anywhere = handle.file_system == std::array<std::uint8_t, 16>{};
    alignas(file_handle) std::array<std::byte, sizeof(file_handle) + FileHandle::kMaxHandleBytes> room{};
    auto* const kernel = static_cast<file_handle*>(static_cast<void*>(room.data()));
    kernel->handle_bytes = static_cast<unsigned>(handle.handle.size());
    kernel->handle_type = handle.type;
    std::memcpy(room.data() + sizeof(file_handle), handle.handle.data(), handle.handle.size());
    for (const Source& source : sources) {
        if (!source.handle_root || (!is_anywhere && source.uuid != handle.file_system)) continue;
        const store::UniqueFd opened(::open_by_handle_at(source.handle_root.get(), kernel, O_PATH | O_CLOEXEC));
        if (opened) {
            const auto stat = layer::stat_of(opened.get(), {});
            if (!stat) return std::nullopt;
            return Lower{stat->device, stat->inode, stat->nlink};
        }
        if (errno != EPERM) continue;  // Gone, or not of this file system.
        const auto inode = handle.inode();
        if (inode) return Lower{source.device, *inode, 1};
    }
    return std::nullopt;
}

/// A path within a lower; the first that has it counts.
std::optional<StackView::Impl::Lower> StackView::Impl::fuse_overlay_origin_of(std::string_view path) const {
    while (path.ends_with('\0') || path.ends_with('/')) path.remove_suffix(1);
    while (path.starts_with("./")) path.remove_prefix(2);
    const auto names = parse_redirect("/" + std::string(path));
    if (!names) return std::nullopt;
    for (std::uint32_t number = options.has_upper ? 1 : 0; number < sources.size(); ++number) {
        if (sources[number].image) continue;
        SharedFd fd = sources[number].root;
        for (std::size_t at = 0; fd && at + 1 < names->names.size(); ++at) {
            auto opened = layer::open_folder(fd->get(), names->names[at]);
            fd = opened ? std::make_shared<const store::UniqueFd>(std::move(*opened)) : nullptr;
        }
        if (!fd) continue;
        const auto stat = layer::stat_of(fd->get(), names->names.back());
        if (stat) return Lower{stat->device, stat->inode, stat->nlink};
    }
    return std::nullopt;
}

}  // namespace lamina::unionfs
