// The view's calls. Each makes sure that what it is asked about is resolved (stack_resolve.cpp) or loaded
// (stack_merge.cpp), then asks the folder or the tree in which the inode lies. What is kept is where things are and
// which inode that was; attributes are asked for each time, so that memory stays small and an upper's own changes show.
#include "fuse/stack_view.h"

#include "fuse/stack_view_impl.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace lamina::unionfs {
namespace {

Attributes to_attributes(const layer::Stat& stat) {
    Attributes attributes;
    attributes.mode = stat.mode;
    attributes.uid = stat.uid;
    attributes.gid = stat.gid;
    attributes.nlink = stat.nlink;
    attributes.size_bytes = stat.size_bytes;
    attributes.allocated_bytes = stat.allocated_bytes;
    attributes.device = S_ISCHR(stat.mode) || S_ISBLK(stat.mode) ? stat.special : 0;
    attributes.atime = stat.atime;
    attributes.mtime = stat.mtime;
    attributes.ctime = stat.ctime;
    attributes.birth = stat.birth;
    return attributes;
}

Result<std::uint64_t> seek(int fd, std::uint64_t offset_bytes, int whence) {
    const off_t found = ::lseek(fd, static_cast<off_t>(offset_bytes), whence);
    if (found < 0) return fail(errno);
    return static_cast<std::uint64_t>(found);
}

}  // namespace

StackView::StackView(std::vector<StackSource> sources, StackOptions options)
    : impl_(std::make_unique<Impl>(std::move(sources), std::move(options))) {}
StackView::~StackView() = default;

// Attributes.

Result<Attributes> StackView::Impl::attributes(NodeId node) {
    const auto canonical = resolve(node);
    if (!canonical) return std::unexpected(canonical.error());
    auto found =
        records.nodes[*canonical].is_directory() ? directory_attributes(*canonical) : file_attributes(*canonical);
    if (!found) return found;
    found->node = *canonical;
    found->number = records.nodes[*canonical].number;
    return found;
}

Result<Attributes> StackView::Impl::directory_attributes(NodeId node) {
    const DirectoryRecord& directory = records.directories[records.nodes[node].detail];
    const std::uint32_t top = records.parts[directory.parts].folder;
    Attributes attributes;
    if (is_image(top)) {
        const auto found = image(top).attributes(records.folders[top].identity.inode);
        if (!found) return found;
        attributes = *found;
    } else {
        const auto fd = folder_fd(top);
        if (!fd) return std::unexpected(stale(fd.error()));
        const auto stat = layer::stat_of((*fd)->get(), {});
        if (!stat) return std::unexpected(stat.error());
        attributes = to_attributes(*stat);
        const Source& source = sources[records.folders[top].source];
        if (const auto applied = apply_override(attributes, source, (*fd)->get(), {}); !applied)
            return std::unexpected(applied.error());
    }
    const bool counts_itself = records.parts[directory.parts].next == 0 && attributes.nlink >= 2;
    if (!directory.is_loaded && !counts_itself)
        if (const auto loaded = load(node); !loaded) return std::unexpected(loaded.error());
    if (directory.is_loaded) attributes.nlink = 2 + directory.subdirectory_count;
    return attributes;
}

Result<Attributes> StackView::Impl::file_attributes(NodeId node) {
    const FileRecord& file = records.files[records.nodes[node].detail];
    const ObjectRecord& object = file.object;
    if (object.folder != kIndexFolder && is_image(object.folder))
        return image(object.folder).attributes(object.identity.inode);
    const auto place = opened_place(object, node);
    if (!place) return std::unexpected(place.error());
    const auto stat = object_stat(object, node);
    if (!stat) return std::unexpected(stat.error());
    Attributes attributes = to_attributes(*stat);
    attributes.nlink = file.nlink;
    if (file.data.folder != 0) {
        if (is_image(file.data.folder)) {
            const auto data = image(file.data.folder).attributes(file.data.identity.inode);
            if (!data) return data;
            attributes.allocated_bytes = data->allocated_bytes;
        } else {
            const auto data = object_stat(file.data, 0);
            if (!data) return std::unexpected(data.error());
            attributes.allocated_bytes = data->allocated_bytes;
        }
    }
    const Source& source = sources[object.folder == kIndexFolder ? 0 : records.folders[object.folder].source];
    if (const auto applied = apply_override(attributes, source, place->folder->get(), place->name); !applied)
        return std::unexpected(applied.error());
    return attributes;
}

Result<void> StackView::Impl::apply_override(Attributes& attributes, const Source& source, int folder_fd,
                                             std::string_view name) {
    if (source.override_stat.empty() || S_ISLNK(attributes.mode)) return {};
    const auto text = layer::xattr(folder_fd, name, source.override_stat);
    if (!text) return std::unexpected(text.error());
    if (!*text) return {};
    const auto stat = parse_override_stat(**text);
    if (!stat) {
        report(fmt::format("{}: {}: malformed", source.name, source.override_stat));
        return fail(EIO);
    }
    attributes.uid = stat->uid;
    attributes.gid = stat->gid;
    const bool says_type = (stat->mode & S_IFMT) != 0 && S_ISREG(attributes.mode);
    attributes.mode = (says_type ? stat->mode & S_IFMT : attributes.mode & S_IFMT) | (stat->mode & 07777);
    if (S_ISCHR(attributes.mode) || S_ISBLK(attributes.mode)) attributes.device = stat->device;
    return {};
}

Result<Attributes> StackView::attributes(NodeId node) const {
    return impl_->guarded(node, [&] { return impl_->attributes(node); });
}

// Names.

ViewEntry StackView::Impl::entry_of(NodeId node, NodeId canonical) const {
    const NodeRecord& record = records.nodes[canonical];
    return {.name = records.name(node), .node = canonical, .type = record.type, .number = records.nodes[node].number};
}

Result<NodeId> StackView::Impl::directory(NodeId node) {
    const auto canonical = resolve(node);
    if (!canonical) return canonical;
    if (!records.nodes[*canonical].is_directory()) return fail(ENOTDIR);
    return canonical;
}

Result<FileRecord*> StackView::Impl::file(NodeId node) {
    const auto canonical = resolve(node);
    if (!canonical) return std::unexpected(canonical.error());
    const NodeRecord& record = records.nodes[*canonical];
    if (record.is_directory()) return fail(EISDIR);
    return &records.files[record.detail];
}

Result<std::optional<ViewEntry>> StackView::lookup(NodeId directory, std::string_view name) const {
    return impl_->guarded(directory, [&]() -> Result<std::optional<ViewEntry>> {
        if (const auto loaded = impl_->load(directory); !loaded) return std::unexpected(loaded.error());
        const auto& record = impl_->records.directories[impl_->records.nodes[directory].detail];
        const NodeId found = impl_->find_entry(record, name, false);
        if (found == 0) return std::nullopt;
        const auto canonical = impl_->resolve(found);
        if (!canonical) return std::unexpected(canonical.error());
        return impl_->entry_of(found, *canonical);
    });
}

Result<std::uint32_t> StackView::entry_count(NodeId directory) const {
    return impl_->guarded(directory, [&]() -> Result<std::uint32_t> {
        if (const auto loaded = impl_->load(directory); !loaded) return std::unexpected(loaded.error());
        return impl_->records.directories[impl_->records.nodes[directory].detail].entry_count;
    });
}

Result<ViewEntry> StackView::entry(NodeId directory, std::uint32_t position) const {
    return impl_->guarded(directory, [&]() -> Result<ViewEntry> {
        if (const auto loaded = impl_->load(directory); !loaded) return std::unexpected(loaded.error());
        const auto& record = impl_->records.directories[impl_->records.nodes[directory].detail];
        if (position >= record.entry_count) return fail(ENOENT);
        const NodeId node = record.first_entry + position;
        // A number that depends on what lies below; an entry that cannot be looked up is listed all the same.
        if (impl_->records.nodes[node].number == 0) static_cast<void>(impl_->resolve(node));
        const NodeId canonical = impl_->records.nodes[node].canonical;
        return impl_->entry_of(node, canonical != 0 ? canonical : node);
    });
}

Result<NodeId> StackView::parent(NodeId directory) const {
    return impl_->guarded(directory, [&]() -> Result<NodeId> {
        const auto found = impl_->directory(directory);
        if (!found) return found;
        return impl_->records.nodes[*found].parent;
    });
}

// Symlinks and attributes.

Result<std::string_view> StackView::link_target(NodeId symlink) const {
    return impl_->guarded(symlink, [&]() -> Result<std::string_view> {
        const auto canonical = impl_->resolve(symlink);
        if (!canonical) return std::unexpected(canonical.error());
        const NodeRecord& record = impl_->records.nodes[*canonical];
        if (!S_ISLNK(record.type)) return fail(EINVAL);
        const ObjectRecord& object = impl_->records.files[record.detail].object;
        if (object.folder != kIndexFolder && impl_->is_image(object.folder))
            return impl_->image(object.folder).link_target(object.identity.inode);
        const auto opened = impl_->open_object(object, *canonical, false);
        if (!opened) return std::unexpected(opened.error());
        auto target = layer::link_target(opened->get(), {});
        if (!target && (target.error() == Errno{ENOENT} || target.error() == Errno{EINVAL})) {
            const auto data = impl_->open_object(object, *canonical, true);  // A file that stands for a symlink.
            if (!data) return std::unexpected(data.error());
            std::string text(4095, '\0');
            const ssize_t got = ::pread(data->get(), text.data(), text.size(), 0);
            if (got < 0) return fail(errno);
            text.resize(static_cast<std::size_t>(got));
            target = std::move(text);
        }
        if (!target) return std::unexpected(target.error());
        impl_->target = std::move(*target);
        return impl_->target;
    });
}

namespace {

/// xfs lists its own form of ACLs beside them; set somewhere else it would be a plain attribute.
bool is_acl_of_xfs(int fd, std::string_view name) {
    struct statfs status {};
    return name.starts_with("trusted.SGI_ACL_") && ::fstatfs(fd, &status) == 0 && status.f_type == XFS_SUPER_MAGIC;
}

}  // namespace

Result<void> StackView::Impl::read_xattrs(NodeId node) {
    const NodeRecord& record = records.nodes[node];
    store::UniqueFd opened;
    SharedFd folder;
    int fd = -1;
    if (record.is_directory()) {
        const std::uint32_t top = records.parts[records.directories[record.detail].parts].folder;
        auto found = folder_fd(top);
        if (!found) return std::unexpected(stale(found.error()));
        folder = std::move(*found);
        fd = folder->get();
    } else {
        auto object = open_object(records.files[record.detail].object, node, false);
        if (!object) return std::unexpected(object.error());
        opened = std::move(*object);
        fd = opened.get();
    }
    const auto names = layer::xattr_names(fd, {});
    if (!names) return std::unexpected(names.error());
    for (const std::string& name : *names) {
        auto shown = shown_xattr_name(name);
        if (!shown || std::ranges::find(kOverrideStatXattrs, name) != kOverrideStatXattrs.end()) continue;
        if (is_acl_of_xfs(fd, name)) continue;
        auto value = layer::xattr(fd, {}, name);
        if (!value) return std::unexpected(value.error());
        if (*value) xattr_texts.emplace_back(std::move(*shown), std::move(**value));
    }
    return {};
}

Result<std::vector<std::pair<std::string_view, std::string_view>>> StackView::xattrs(NodeId node) const {
    using List = std::vector<std::pair<std::string_view, std::string_view>>;
    return impl_->guarded(node, [&]() -> Result<List> {
        const auto canonical = impl_->resolve(node);
        if (!canonical) return std::unexpected(canonical.error());
        const StackRecords& records = impl_->records;
        const NodeRecord& record = records.nodes[*canonical];
        std::uint32_t folder = 0;
        std::uint64_t inode = 0;
        if (record.is_directory()) {
            folder = records.parts[records.directories[record.detail].parts].folder;
            inode = records.folders[folder].identity.inode;
        } else {
            folder = records.files[record.detail].object.folder;
            inode = records.files[record.detail].object.identity.inode;
        }
        if (folder != kIndexFolder && impl_->is_image(folder)) return impl_->image(folder).xattrs(inode);
        impl_->xattr_texts.clear();
        if (const auto read = impl_->read_xattrs(*canonical); !read) return std::unexpected(read.error());
        return List(impl_->xattr_texts.begin(), impl_->xattr_texts.end());
    });
}

// Bytes. The lock is held to find the descriptor only.

Result<StackView::Impl::Bytes> StackView::Impl::bytes_of(NodeId node) {
    const auto canonical = resolve(node);
    if (!canonical) return std::unexpected(canonical.error());
    const NodeRecord& record = records.nodes[*canonical];
    if (record.is_directory()) return fail(EISDIR);
    if (!S_ISREG(record.type)) return fail(EINVAL);
    const FileRecord& file = records.files[record.detail];
    const ObjectRecord& object = file.data.folder != 0 ? file.data : file.object;
    if (object.folder != kIndexFolder && is_image(object.folder))
        return Bytes{.fd = nullptr, .image = &image(object.folder), .inode = object.identity.inode};
    auto fd = data_fd(*canonical);
    if (!fd) return std::unexpected(fd.error());
    return Bytes{.fd = std::move(*fd), .image = nullptr, .inode = 0};
}

Result<std::size_t> StackView::read(NodeId file, std::uint64_t offset_bytes, std::span<std::byte> out) const {
    const auto bytes = impl_->guarded(file, [&] { return impl_->bytes_of(file); });
    if (!bytes) return std::unexpected(bytes.error());
    if (bytes->image) return bytes->image->read(bytes->inode, offset_bytes, out);
    std::size_t done = 0;
    while (done < out.size()) {
        const ssize_t got =
            ::pread(bytes->fd->get(), out.data() + done, out.size() - done, static_cast<off_t>(offset_bytes + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail(errno);
        if (got == 0) break;
        done += static_cast<std::size_t>(got);
    }
    return done;
}

bool StackView::is_warm(NodeId file, std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    const auto bytes = impl_->guarded(file, [&] { return impl_->bytes_of(file); });
    if (!bytes) return true;  // The error needs no disk.
    if (bytes->image) return bytes->image->is_warm(bytes->inode, offset_bytes, size_bytes);
    constexpr std::uint64_t kStepBytes = 64 << 10;  // One look for each that read-ahead brings in at once.
    for (std::uint64_t at = 0; at < size_bytes; at += kStepBytes) {
        std::byte one{};
        const iovec part{.iov_base = &one, .iov_len = 1};
        const ssize_t got = ::preadv2(bytes->fd->get(), &part, 1, static_cast<off_t>(offset_bytes + at), RWF_NOWAIT);
        if (got < 0) return false;
        if (got == 0) break;
    }
    return true;
}

Result<std::uint64_t> StackView::seek_data(NodeId file, std::uint64_t offset_bytes) const {
    const auto bytes = impl_->guarded(file, [&] { return impl_->bytes_of(file); });
    if (!bytes) return std::unexpected(bytes.error());
    if (bytes->image) return bytes->image->seek_data(bytes->inode, offset_bytes);
    return seek(bytes->fd->get(), offset_bytes, SEEK_DATA);
}

Result<std::uint64_t> StackView::seek_hole(NodeId file, std::uint64_t offset_bytes) const {
    const auto bytes = impl_->guarded(file, [&] { return impl_->bytes_of(file); });
    if (!bytes) return std::unexpected(bytes.error());
    if (bytes->image) return bytes->image->seek_hole(bytes->inode, offset_bytes);
    return seek(bytes->fd->get(), offset_bytes, SEEK_HOLE);
}

std::uint64_t StackView::node_count() const {
    const std::lock_guard lock(impl_->mutex);
    return impl_->records.nodes.size() - 1;
}

std::uint64_t StackView::logical_bytes() const {
    std::uint64_t bytes = 0;
    for (const auto& source : impl_->sources) bytes += source.image ? source.image->logical_bytes() : 0;
    return bytes;
}

}  // namespace lamina::unionfs
