// Each function asks the tree or the file reader and translates: TreeAttributes to stat's, an Error to its errno. The
// tree never answers wrongly on bad input, it throws; guarded() is where that ends. Only the failures that a user can
// do nothing about in his program (EIO) are reported; "no such inode" and the like are answers.
#include "fuse/image_view.h"

#include "store/error.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace lamina::unionfs {
namespace {

std::uint32_t type_bits(store::FileType type) {
    switch (type) {
        case store::FileType::regular:
            return S_IFREG;
        case store::FileType::directory:
            return S_IFDIR;
        case store::FileType::symlink:
            return S_IFLNK;
        case store::FileType::char_device:
            return S_IFCHR;
        case store::FileType::block_device:
            return S_IFBLK;
        case store::FileType::fifo:
            return S_IFIFO;
        case store::FileType::socket:
            return S_IFSOCK;
    }
    throw store::Error(store::Errc::corrupt, "inode of an unknown type");
}

Attributes to_attributes(NodeId node, const store::TreeAttributes& tree) {
    Attributes attributes;
    attributes.node = node;
    attributes.mode = type_bits(tree.type) | (tree.mode & 07777);
    attributes.uid = tree.uid;
    attributes.gid = tree.gid;
    attributes.nlink = tree.nlink;
    attributes.size_bytes = tree.size_bytes;
    attributes.allocated_bytes = (tree.data_bytes + 511) / 512 * 512;
    attributes.device = ::makedev(tree.device_major, tree.device_minor);
    attributes.atime = attributes.mtime = attributes.ctime = attributes.birth = tree.mtime;
    return attributes;
}

ViewEntry to_entry(const store::TreeName& name) {
    return {.name = name.name, .node = name.ino, .type = type_bits(name.type)};
}

}  // namespace

ImageView::ImageView(std::unique_ptr<store::ReadView> image, Report report)
    : image_(std::move(image)), report_(std::move(report)) {
    if (image_->tree().inode_count() >= kFirstNewNode) {
        throw store::Error(store::Errc::malformed, "image tree: more inodes than a mount can number");
    }
}

ImageView::~ImageView() = default;

template <class Compute>
auto ImageView::guarded(NodeId node, Compute&& compute) const noexcept -> decltype(compute()) {
    try {
        return compute();
    } catch (const store::Error& error) {
        const Errno code = errno_for(error.code());
        if (code == Errno{EIO} && report_) report_(fmt::format("inode {}: {}", node, error.what()));
        return std::unexpected(code);
    } catch (const std::bad_alloc&) {
        return fail(ENOMEM);
    } catch (const std::exception& error) {
        if (report_) report_(fmt::format("inode {}: {}", node, error.what()));
        return fail(EIO);
    }
}

Result<Attributes> ImageView::attributes(NodeId node) const {
    return guarded(node, [&]() -> Result<Attributes> { return to_attributes(node, image_->tree().attributes(node)); });
}

Result<std::optional<ViewEntry>> ImageView::lookup(NodeId directory, std::string_view name) const {
    return guarded(directory, [&]() -> Result<std::optional<ViewEntry>> {
        const auto found = image_->tree().lookup(directory, name);
        if (!found) return std::nullopt;
        return to_entry(*found);
    });
}

Result<std::uint32_t> ImageView::entry_count(NodeId directory) const {
    return guarded(directory, [&]() -> Result<std::uint32_t> { return image_->tree().entry_count(directory); });
}

Result<ViewEntry> ImageView::entry(NodeId directory, std::uint32_t position) const {
    return guarded(directory,
                   [&]() -> Result<ViewEntry> { return to_entry(image_->tree().entry(directory, position)); });
}

Result<NodeId> ImageView::parent(NodeId directory) const {
    return guarded(directory, [&]() -> Result<NodeId> { return image_->tree().parent(directory); });
}

Result<std::string_view> ImageView::link_target(NodeId symlink) const {
    return guarded(symlink, [&]() -> Result<std::string_view> { return image_->tree().link_target(symlink); });
}

Result<std::vector<std::pair<std::string_view, std::string_view>>> ImageView::xattrs(NodeId node) const {
    using List = std::vector<std::pair<std::string_view, std::string_view>>;
    return guarded(node, [&]() -> Result<List> {
        if (!image_->tree().attributes(node).has_xattrs) return List{};
        return image_->tree().xattrs(node);
    });
}

Result<std::size_t> ImageView::read(NodeId file, std::uint64_t offset_bytes, std::span<std::byte> out) const {
    return guarded(file, [&]() -> Result<std::size_t> { return image_->read(file, offset_bytes, out); });
}

bool ImageView::is_warm(NodeId file, std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    const auto warm = guarded(file, [&]() -> Result<bool> { return image_->is_warm(file, offset_bytes, size_bytes); });
    return warm.value_or(false);
}

Result<store::TreeAttributes> ImageView::regular_file(NodeId file) const {
    const auto attributes = image_->tree().attributes(file);
    if (attributes.type == store::FileType::directory) return fail(EISDIR);
    if (attributes.type != store::FileType::regular) return fail(EINVAL);
    return attributes;
}

// A file may have very many parts, so they are asked for in steps: 16 MiB of file are at most a few thousand parts.
Result<std::uint64_t> ImageView::seek_data(NodeId file, std::uint64_t offset_bytes) const {
    constexpr std::uint64_t kStepBytes = 16 << 20;
    return guarded(file, [&]() -> Result<std::uint64_t> {
        const auto attributes = regular_file(file);
        if (!attributes) return std::unexpected(attributes.error());
        std::uint64_t at = offset_bytes;
        while (at < attributes->size_bytes) {
            const std::uint64_t step = std::min(kStepBytes, attributes->size_bytes - at);
            std::uint64_t next = at + step;
            for (const auto& placed : image_->tree().parts(file, at, step)) {
                if (!placed.part.is_hole) return std::max(placed.offset_bytes, at);
                next = std::max(next, placed.offset_bytes + placed.part.size_bytes);
            }
            at = next;
        }
        return fail(ENXIO);
    });
}

Result<std::uint64_t> ImageView::seek_hole(NodeId file, std::uint64_t offset_bytes) const {
    constexpr std::uint64_t kStepBytes = 16 << 20;
    return guarded(file, [&]() -> Result<std::uint64_t> {
        const auto attributes = regular_file(file);
        if (!attributes) return std::unexpected(attributes.error());
        if (offset_bytes >= attributes->size_bytes) return fail(ENXIO);
        if (attributes->data_bytes == attributes->size_bytes) return attributes->size_bytes;
        for (std::uint64_t at = offset_bytes; at < attributes->size_bytes;) {
            const std::uint64_t step = std::min(kStepBytes, attributes->size_bytes - at);
            for (const auto& placed : image_->tree().parts(file, at, step)) {
                if (placed.part.is_hole) return std::max(placed.offset_bytes, at);
            }
            at += step;
        }
        return attributes->size_bytes;
    });
}

std::uint64_t ImageView::node_count() const {
    return image_->tree().inode_count();
}

std::uint64_t ImageView::logical_bytes() const {
    return image_->tree().logical_bytes();
}

}  // namespace lamina::unionfs
