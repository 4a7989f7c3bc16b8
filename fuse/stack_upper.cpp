// What the keeper of the upper asks.
#include "fuse/stack_view_impl.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

namespace lamina::unionfs {

const OverlayXattrs& StackView::overlay_xattrs() const noexcept {
    return impl_->options.xattrs;
}

std::string_view StackView::override_stat_xattr() const noexcept {
    return impl_->options.has_upper ? std::string_view(impl_->sources.front().override_stat) : std::string_view();
}

Result<std::optional<UpperPlace>> StackView::upper_place(NodeId node) const {
    return impl_->guarded(node, [&]() -> Result<std::optional<UpperPlace>> {
        const auto found = impl_->resolve(node);
        if (!found) return std::unexpected(found.error());
        if (!impl_->options.has_upper) return std::nullopt;
        if (*found == kRootNode) return UpperPlace{};
        const StackRecords& records = impl_->records;
        const NodeRecord& record = records.nodes[static_cast<std::uint32_t>(*found)];
        if (record.is_directory()) {
            if (impl_->first_upper_folder(*found) == 0) return std::nullopt;
            return UpperPlace{.parent = record.parent, .name = records.text(record.name)};
        }
        const ObjectRecord& object = records.files[record.detail].object;
        if (object.folder == kIndexFolder || !impl_->is_upper(records.folders[object.folder].source))
            return std::nullopt;
        return UpperPlace{.parent = records.folders[object.folder].node, .name = records.text(object.name)};
    });
}

Result<UpperPlace> StackView::first_place(NodeId node) const {
    return impl_->guarded(node, [&]() -> Result<UpperPlace> {
        const auto found = impl_->resolve(node);
        if (!found) return std::unexpected(found.error());
        if (*found == kRootNode) return UpperPlace{};
        const NodeRecord& record = impl_->records.nodes[static_cast<std::uint32_t>(*found)];
        return UpperPlace{.parent = record.parent, .name = impl_->records.text(record.name)};
    });
}

Result<std::optional<std::string>> StackView::index_name(NodeId node) const {
    return impl_->guarded(node, [&]() -> Result<std::optional<std::string>> {
        const auto file = impl_->file(node);
        if (!file) return std::unexpected(file.error());
        const TextRef name = (*file)->index_name;
        return name.size_bytes == 0 ? std::nullopt : std::optional(std::string(impl_->records.text(name)));
    });
}

bool StackView::is_metacopy(NodeId file) const {
    const auto found = impl_->guarded(file, [&]() -> Result<bool> {
        const auto record = impl_->file(file);
        if (!record) return std::unexpected(record.error());
        return (*record)->data.folder != 0;
    });
    return found && *found;
}

Result<bool> StackView::shows_below(NodeId directory, std::string_view name) const {
    return impl_->guarded(directory, [&]() -> Result<bool> {
        if (const auto loaded = impl_->load(directory); !loaded) return std::unexpected(loaded.error());
        const StackRecords& records = impl_->records;
        const auto& record = records.directories[records.nodes[static_cast<std::uint32_t>(directory)].detail];
        if (const std::uint32_t shown = impl_->find_entry(record, name, false); shown != 0)
            return (records.nodes[shown].flags & NodeRecord::kShowsBelow) != 0;
        return impl_->find_entry(record, name, true) != 0;
    });
}

Result<bool> StackView::has_lower(NodeId directory) const {
    return impl_->guarded(directory, [&]() -> Result<bool> {
        const auto found = impl_->directory(directory);
        if (!found) return std::unexpected(found.error());
        const StackRecords& records = impl_->records;
        bool has_lower = false;
        records.for_each_part(records.directories[records.nodes[static_cast<std::uint32_t>(*found)].detail].parts,
                              [&](std::uint32_t folder) {
                                  has_lower = !impl_->is_upper(records.folders[folder].source);
                                  return !has_lower;
                              });
        return has_lower;
    });
}

Result<std::string> StackView::redirect_path(NodeId node) const {
    return impl_->guarded(node, [&]() -> Result<std::string> {
        const StackRecords& records = impl_->records;
        std::string path;
        while (true) {
            const auto found = impl_->resolve(node);
            if (!found) return std::unexpected(found.error());
            if (*found == kRootNode) return path.empty() ? "/" : path;
            const NodeRecord& record = records.nodes[static_cast<std::uint32_t>(*found)];
            const TextRef redirect = record.is_directory() ? records.directories[record.detail].redirect
                                                           : records.files[record.detail].redirect;
            const std::string_view name = records.text(redirect.size_bytes != 0 ? redirect : record.name);
            if (name.starts_with('/')) return std::string(name) + path;
            path.insert(0, "/" + std::string(name));
            node = record.parent;
        }
    });
}

Result<std::optional<FileHandle>> StackView::Impl::handle_in(std::uint32_t folder, std::string_view name) {
    if (is_image(folder)) return std::nullopt;
    const auto fd = folder_fd(folder);
    if (!fd) return std::unexpected(stale(fd.error()));
    auto handle = file_handle_of((*fd)->get(), name);
    const auto& uuid = sources[records.folders[folder].source].uuid;
    if (handle && uuid) handle->file_system = *uuid;
    return handle;
}

Result<std::optional<FileHandle>> StackView::origin(NodeId node) const {
    return impl_->guarded(node, [&]() -> Result<std::optional<FileHandle>> {
        const auto found = impl_->resolve(node);
        if (!found) return std::unexpected(found.error());
        const StackRecords& records = impl_->records;
        const NodeRecord& record = records.nodes[static_cast<std::uint32_t>(*found)];
        if (record.is_directory()) {
            std::uint32_t lower = 0;
            records.for_each_part(records.directories[record.detail].parts, [&](std::uint32_t folder) {
                if (!impl_->is_upper(records.folders[folder].source)) lower = folder;
                return lower == 0;
            });
            return lower == 0 ? std::nullopt : impl_->handle_in(lower, {});
        }
        const ObjectRecord& object = records.files[record.detail].object;
        if (object.folder != kIndexFolder && !impl_->is_upper(records.folders[object.folder].source))
            return impl_->handle_in(object.folder, records.text(object.name));
        const auto place = impl_->opened_place(object, *found);
        if (!place) return std::unexpected(place.error());
        const auto value = layer::xattr(place->folder->get(), place->name, impl_->options.xattrs.name(kOriginSuffix));
        if (!value) return std::unexpected(value.error());
        return *value ? FileHandle::parse(**value) : std::nullopt;
    });
}

Result<std::uint32_t> StackView::lower_nlink(NodeId node) const {
    return impl_->guarded(node, [&]() -> Result<std::uint32_t> {
        const auto file = impl_->file(node);
        if (!file) return std::unexpected(file.error());
        return (*file)->lower_nlink;
    });
}

Result<store::UniqueFd> StackView::open_lower(NodeId file) const {
    return impl_->guarded(file, [&]() -> Result<store::UniqueFd> {
        const auto found = impl_->file(file);
        if (!found) return std::unexpected(found.error());
        const ObjectRecord& object = (*found)->data.folder != 0 ? (*found)->data : (*found)->object;
        if (object.folder == kIndexFolder || impl_->is_upper(impl_->records.folders[object.folder].source))
            return fail(EINVAL);
        if (impl_->is_image(object.folder)) return fail(EOPNOTSUPP);
        return impl_->open_object(object, 0, true);
    });
}

}  // namespace lamina::unionfs
