#pragma once

#include "fuse/view.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <vector>

namespace lamina::test {

/// A view in memory, made from a few lines. Entries of a folder keep the order in which they were added.
class FakeView final : public unionfs::View {
public:
    using NodeId = unionfs::NodeId;
    struct Node {
        unionfs::Attributes attributes;
        NodeId parent = 0;
        std::string content;  ///< Of a file; the target of a symlink.
        std::vector<std::pair<std::string, NodeId>> entries;
        std::map<std::string, std::string> xattrs;
    };

    FakeView() { add_node(S_IFDIR | 0755, unionfs::kRootNode); }

    NodeId directory(NodeId parent, const std::string& name, std::uint32_t mode = 0755) {
        const NodeId node = add_node(S_IFDIR | mode, parent);
        nodes_[parent - 1].attributes.nlink++;
        return name_it(parent, name, node);
    }
    NodeId file(NodeId parent, const std::string& name, std::string content, std::uint32_t mode = 0644) {
        return name_it(parent, name, with_content(add_node(S_IFREG | mode, 0), std::move(content)));
    }
    NodeId symlink(NodeId parent, const std::string& name, std::string target) {
        return name_it(parent, name, with_content(add_node(S_IFLNK | 0777, 0), std::move(target)));
    }
    NodeId special(NodeId parent, const std::string& name, std::uint32_t mode, std::uint64_t device = 0) {
        const NodeId made = add_node(mode, 0);
        node(made).attributes.device = device;
        return name_it(parent, name, made);
    }
    void link(NodeId linked, NodeId parent, const std::string& name) {
        node(linked).attributes.nlink++;
        name_it(parent, name, linked);
    }
    Node& node(NodeId number) { return nodes_.at(number - 1); }

    unionfs::Result<unionfs::Attributes> attributes(NodeId number) const override {
        const Node* const found = find(number);
        return found ? unionfs::Result<unionfs::Attributes>(found->attributes) : unionfs::fail(ENOENT);
    }
    unionfs::Result<std::optional<unionfs::ViewEntry>> lookup(NodeId directory, std::string_view name) const override {
        const Node* const found = find(directory);
        if (!found) return unionfs::fail(ENOENT);
        if (failing_lookups_) return unionfs::fail(EIO);
        for (const auto& [entry_name, number] : found->entries)
            if (entry_name == name) return entry_of(entry_name, number);
        return std::nullopt;
    }
    unionfs::Result<std::uint32_t> entry_count(NodeId directory) const override {
        const Node* const found = find(directory);
        if (!found) return unionfs::fail(ENOENT);
        return static_cast<std::uint32_t>(found->entries.size());
    }
    unionfs::Result<unionfs::ViewEntry> entry(NodeId directory, std::uint32_t position) const override {
        const Node* const found = find(directory);
        if (!found || position >= found->entries.size()) return unionfs::fail(ENOENT);
        return entry_of(found->entries[position].first, found->entries[position].second);
    }
    unionfs::Result<NodeId> parent(NodeId directory) const override {
        const Node* const found = find(directory);
        return found ? unionfs::Result<NodeId>(found->parent) : unionfs::fail(ENOENT);
    }
    unionfs::Result<std::string_view> link_target(NodeId symlink) const override {
        const Node* const found = find(symlink);
        return found ? unionfs::Result<std::string_view>(found->content) : unionfs::fail(ENOENT);
    }
    unionfs::Result<std::vector<std::pair<std::string_view, std::string_view>>> xattrs(NodeId number) const override {
        const Node* const found = find(number);
        if (!found) return unionfs::fail(ENOENT);
        return std::vector<std::pair<std::string_view, std::string_view>>(found->xattrs.begin(), found->xattrs.end());
    }
    unionfs::Result<std::size_t> read(NodeId file, std::uint64_t offset, std::span<std::byte> out) const override {
        const Node* const found = find(file);
        if (!found) return unionfs::fail(ENOENT);
        ++reads_;
        if (offset >= found->content.size()) return 0;
        const std::size_t count = std::min<std::size_t>(out.size(), found->content.size() - offset);
        std::memcpy(out.data(), found->content.data() + offset, count);
        return count;
    }
    bool is_warm(NodeId, std::uint64_t, std::uint64_t) const override { return is_warm_; }
    /// All is data.
    unionfs::Result<std::uint64_t> seek_data(NodeId file, std::uint64_t offset) const override {
        return offset < find(file)->content.size() ? unionfs::Result<std::uint64_t>(offset) : unionfs::fail(ENXIO);
    }
    unionfs::Result<std::uint64_t> seek_hole(NodeId file, std::uint64_t offset) const override {
        const std::uint64_t size = find(file)->content.size();
        return offset < size ? unionfs::Result<std::uint64_t>(size) : unionfs::fail(ENXIO);
    }
    std::uint64_t node_count() const override { return nodes_.size(); }
    std::uint64_t logical_bytes() const override { return 0; }

    std::uint64_t reads() const { return reads_; }
    void set_warm(bool is_warm) { is_warm_ = is_warm; }
    void fail_lookups(bool fails) { failing_lookups_ = fails; }

private:
    const Node* find(NodeId number) const {
        return number >= 1 && number <= nodes_.size() ? &nodes_[number - 1] : nullptr;
    }
    unionfs::ViewEntry entry_of(std::string_view name, NodeId number) const {
        const unionfs::Attributes& attributes = nodes_[number - 1].attributes;
        return {.name = name, .node = number, .type = attributes.mode & S_IFMT, .number = attributes.number};
    }
    NodeId add_node(std::uint32_t mode, NodeId parent) {
        Node made;
        made.attributes.node = nodes_.size() + 1;
        made.attributes.mode = mode;
        made.attributes.nlink = S_ISDIR(mode) ? 2 : 1;
        made.attributes.mtime = {.seconds = 1000, .nanoseconds = 5};
        made.parent = parent;
        nodes_.push_back(std::move(made));
        return nodes_.size();
    }
    NodeId with_content(NodeId number, std::string content) {
        node(number).attributes.size_bytes = content.size();
        node(number).attributes.allocated_bytes = (content.size() + 511) / 512 * 512;
        node(number).content = std::move(content);
        return number;
    }
    NodeId name_it(NodeId parent, const std::string& name, NodeId number) {
        node(parent).entries.emplace_back(name, number);
        return number;
    }

    std::deque<Node> nodes_;
    mutable std::uint64_t reads_ = 0;
    bool is_warm_ = true;
    bool failing_lookups_ = false;
};

}  // namespace lamina::test
