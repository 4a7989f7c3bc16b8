#pragma once

#include "fuse/view.h"
#include "store/read_view.h"

#include <functional>
#include <memory>

namespace lamina::unionfs {

/// The image tree of one image as a view. NodeId and TreeIno are the same numbers. Thread-safe. Store errors become
/// errno here; what makes them (a damaged frame, a tree that breaks its format) is told to `report`, one line each.
class ImageView : public View {
public:
    using Report = std::function<void(const std::string& line)>;
    /// malformed: the tree has more inodes than there are numbers below kFirstNewNode.
    ImageView(std::unique_ptr<store::ReadView> image, Report report);
    ~ImageView() override;

    Result<Attributes> attributes(NodeId node) const override;
    Result<std::optional<ViewEntry>> lookup(NodeId directory, std::string_view name) const override;
    Result<std::uint32_t> entry_count(NodeId directory) const override;
    Result<ViewEntry> entry(NodeId directory, std::uint32_t position) const override;
    Result<NodeId> parent(NodeId directory) const override;
    Result<std::string_view> link_target(NodeId symlink) const override;
    Result<std::vector<std::pair<std::string_view, std::string_view>>> xattrs(NodeId node) const override;
    Result<std::size_t> read(NodeId file, std::uint64_t offset_bytes, std::span<std::byte> out) const override;
    bool is_warm(NodeId file, std::uint64_t offset_bytes, std::uint64_t size_bytes) const override;
    Result<std::uint64_t> seek_data(NodeId file, std::uint64_t offset_bytes) const override;
    Result<std::uint64_t> seek_hole(NodeId file, std::uint64_t offset_bytes) const override;
    bool has_xattrs() const { return image_->tree().has_xattrs(); }  ///< Any inode of it.
    std::uint64_t node_count() const override;
    std::uint64_t logical_bytes() const override;

private:
    template <class Compute>
    auto guarded(NodeId node, Compute&& compute) const noexcept -> decltype(compute());
    Result<store::TreeAttributes> regular_file(NodeId file) const;

    std::unique_ptr<store::ReadView> image_;
    Report report_;
};

}  // namespace lamina::unionfs
