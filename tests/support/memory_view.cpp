#include "support/memory_view.h"

#include <algorithm>
#include <cerrno>
#include <iterator>

namespace lamina::test {

using unionfs::Attributes;
using unionfs::fail;
using unionfs::NodeId;
using unionfs::Result;
using unionfs::ViewEntry;

MemoryView::MemoryView() {
    Node root;
    root.attributes = {.node = unionfs::kRootNode, .mode = S_IFDIR | 0755, .nlink = 2};
    root.parent = unionfs::kRootNode;
    nodes_.emplace(unionfs::kRootNode, std::move(root));
}

NodeId MemoryView::add(NodeId parent, const std::string& name, std::uint32_t mode, const std::string& content) {
    const NodeId number = nodes_.size() + 1;
    Node node;
    node.attributes = {.node = number, .mode = mode, .nlink = S_ISDIR(mode) ? 2U : 1U};
    node.attributes.mtime = {.seconds = 1'600'000'000, .nanoseconds = 5};
    node.attributes.ctime = node.attributes.mtime;
    node.attributes.atime = node.attributes.mtime;
    node.attributes.size_bytes = content.size();
    node.attributes.allocated_bytes = (content.size() + 511) / 512 * 512;
    node.parent = parent;
    node.content = content;
    nodes_.emplace(number, std::move(node));
    nodes_.at(parent).names[name] = number;
    if (S_ISDIR(mode)) ++nodes_.at(parent).attributes.nlink;
    return number;
}

void MemoryView::add_link(NodeId parent, const std::string& name, NodeId node) {
    nodes_.at(parent).names[name] = node;
    ++nodes_.at(node).attributes.nlink;
}

void MemoryView::add_xattr(NodeId node, const std::string& name, const std::string& value) {
    nodes_.at(node).xattrs[name] = value;
}

void MemoryView::add_hole(NodeId node, std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    nodes_.at(node).holes[offset_bytes] = offset_bytes + size_bytes;
}

const MemoryView::Node* MemoryView::find(NodeId node) const {
    const auto found = nodes_.find(node);
    return found == nodes_.end() ? nullptr : &found->second;
}

Result<Attributes> MemoryView::attributes(NodeId node) const {
    const Node* const found = find(node);
    if (!found) return fail(EIO);
    return found->attributes;
}

Result<std::optional<ViewEntry>> MemoryView::lookup(NodeId directory, std::string_view name) const {
    const Node* const found = find(directory);
    if (!found || !S_ISDIR(found->attributes.mode)) return fail(ENOTDIR);
    const auto entry = found->names.find(std::string(name));
    if (entry == found->names.end()) return std::nullopt;
    return ViewEntry{.name = entry->first,
                     .node = entry->second,
                     .type = nodes_.at(entry->second).attributes.mode & S_IFMT,
                     .number = nodes_.at(entry->second).attributes.number};
}

Result<std::uint32_t> MemoryView::entry_count(NodeId directory) const {
    const Node* const found = find(directory);
    if (!found) return fail(EIO);
    return static_cast<std::uint32_t>(found->names.size());
}

Result<ViewEntry> MemoryView::entry(NodeId directory, std::uint32_t position) const {
    const Node* const found = find(directory);
    if (!found || position >= found->names.size()) return fail(EIO);
    const auto entry = std::next(found->names.begin(), position);
    return ViewEntry{.name = entry->first,
                     .node = entry->second,
                     .type = nodes_.at(entry->second).attributes.mode & S_IFMT,
                     .number = nodes_.at(entry->second).attributes.number};
}

Result<NodeId> MemoryView::parent(NodeId directory) const {
    const Node* const found = find(directory);
    if (!found) return fail(EIO);
    return found->parent;
}

Result<std::string_view> MemoryView::link_target(NodeId symlink) const {
    const Node* const found = find(symlink);
    if (!found || !S_ISLNK(found->attributes.mode)) return fail(EINVAL);
    return std::string_view(found->content);
}

Result<std::vector<std::pair<std::string_view, std::string_view>>> MemoryView::xattrs(NodeId node) const {
    const Node* const found = find(node);
    if (!found) return fail(EIO);
    return std::vector<std::pair<std::string_view, std::string_view>>(found->xattrs.begin(), found->xattrs.end());
}

Result<std::size_t> MemoryView::read(NodeId file, std::uint64_t offset_bytes, std::span<std::byte> out) const {
    const Node* const found = find(file);
    if (!found) return fail(EIO);
    if (offset_bytes >= found->content.size()) return 0;
    const std::size_t size = std::min<std::size_t>(out.size(), found->content.size() - offset_bytes);
    const auto* const data = reinterpret_cast<const std::byte*>(found->content.data());
    std::copy_n(data + offset_bytes, size, out.begin());
    return size;
}

Result<std::uint64_t> MemoryView::seek_data(NodeId file, std::uint64_t offset_bytes) const {
    const Node* const found = find(file);
    if (!found || offset_bytes >= found->content.size()) return fail(ENXIO);
    for (const auto& [start, end] : found->holes) {
        if (start <= offset_bytes && offset_bytes < end) offset_bytes = end;
    }
    if (offset_bytes >= found->content.size()) return fail(ENXIO);
    return offset_bytes;
}

Result<std::uint64_t> MemoryView::seek_hole(NodeId file, std::uint64_t offset_bytes) const {
    const Node* const found = find(file);
    if (!found || offset_bytes >= found->content.size()) return fail(ENXIO);
    for (const auto& [start, end] : found->holes) {
        if (end > offset_bytes) return std::max(start, offset_bytes);
    }
    return found->content.size();
}

MemoryView small_view() {
    MemoryView view;
    const NodeId etc = view.add(unionfs::kRootNode, "etc", S_IFDIR | 0755);
    view.add(etc, "passwd", S_IFREG | 0644, "root:x:0:0\n");
    const NodeId sub = view.add(etc, "sub", S_IFDIR | 0700);
    view.add(sub, "deep", S_IFREG | 0600, std::string(9000, 'd'));
    const NodeId linked = view.add(unionfs::kRootNode, "one", S_IFREG | 0644, "linked");
    view.add_link(unionfs::kRootNode, "two", linked);
    view.add(unionfs::kRootNode, "link", S_IFLNK | 0777, "etc/passwd");
    view.add_xattr(linked, "user.a", "1");
    return view;
}

}  // namespace lamina::test
