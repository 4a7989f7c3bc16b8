#pragma once

#include "fuse/view.h"

#include <map>
#include <string>
#include <vector>

namespace lamina::test {

/// A view made by a test: a few inodes with names, content and xattrs, all in memory.
class MemoryView : public unionfs::View {
public:
    MemoryView();
    /// Adds an inode under a folder's name; `mode` with type bits. Returns its number.
    unionfs::NodeId add(unionfs::NodeId parent, const std::string& name, std::uint32_t mode,
                        const std::string& content_or_target = "");
    void add_link(unionfs::NodeId parent, const std::string& name, unionfs::NodeId node);
    void add_xattr(unionfs::NodeId node, const std::string& name, const std::string& value);
    unionfs::Attributes& edit(unionfs::NodeId node) { return nodes_.at(node).attributes; }
    /// A hole in a file's content, which should be zeros there.
    void add_hole(unionfs::NodeId node, std::uint64_t offset_bytes, std::uint64_t size_bytes);

    unionfs::Result<unionfs::Attributes> attributes(unionfs::NodeId node) const override;
    unionfs::Result<std::optional<unionfs::ViewEntry>> lookup(unionfs::NodeId directory,
                                                              std::string_view name) const override;
    unionfs::Result<std::uint32_t> entry_count(unionfs::NodeId directory) const override;
    unionfs::Result<unionfs::ViewEntry> entry(unionfs::NodeId directory, std::uint32_t position) const override;
    unionfs::Result<unionfs::NodeId> parent(unionfs::NodeId directory) const override;
    unionfs::Result<std::string_view> link_target(unionfs::NodeId symlink) const override;
    unionfs::Result<std::vector<std::pair<std::string_view, std::string_view>>> xattrs(
        unionfs::NodeId node) const override;
    unionfs::Result<std::size_t> read(unionfs::NodeId file, std::uint64_t offset_bytes,
                                      std::span<std::byte> out) const override;
    bool is_warm(unionfs::NodeId, std::uint64_t, std::uint64_t) const override { return true; }
    unionfs::Result<std::uint64_t> seek_data(unionfs::NodeId file, std::uint64_t offset_bytes) const override;
    unionfs::Result<std::uint64_t> seek_hole(unionfs::NodeId file, std::uint64_t offset_bytes) const override;
    std::uint64_t node_count() const override { return nodes_.size(); }
    std::uint64_t logical_bytes() const override { return 0; }

private:
    struct Node {
        unionfs::Attributes attributes;
        unionfs::NodeId parent = 0;
        std::string content;  ///< Or a symlink's target.
        std::map<std::string, unionfs::NodeId> names;
        std::map<std::string, std::string> xattrs;
        std::map<std::uint64_t, std::uint64_t> holes;  ///< Start to end.
    };
    const Node* find(unionfs::NodeId node) const;

    std::map<unionfs::NodeId, Node> nodes_;
};

/// A view with a few files and folders.
MemoryView small_view();

}  // namespace lamina::test
