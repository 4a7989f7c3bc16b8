#include "fuse/layer_export.h"

#include "fuse/change_list.h"
#include "fuse/change_walk.h"
#include "store/error.h"

#include <sys/sysmacros.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

/// Each listed change becomes one entry (change_list.h has the order). The first name of an inode has its content,
/// later ones are hard links to it. A file's content is put together from its extents and, where no extent lies, from
/// the view's data up to the size to which that shows through; what is neither is a hole.
namespace lamina::unionfs {

namespace {

constexpr std::string_view kWhiteoutPrefix = ".wh.";
constexpr std::string_view kOpaqueName = ".wh..wh..opq";
constexpr std::size_t kCopyBytes = std::size_t{1} << 20;

/// Data of a file in one piece: in the extent file, or of the view.
struct Piece {
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
    std::uint64_t extent_offset_bytes = 0;  ///< 0: the view's.
};

std::pair<std::string_view, std::string_view> split(std::string_view path) {
    const auto slash = path.rfind('/');
    if (slash == path.npos) return {std::string_view(), path};
    return {path.substr(0, slash + 1), path.substr(slash + 1)};
}

store::FileType type_of(std::uint32_t mode) {
    switch (mode & S_IFMT) {
        case S_IFDIR:
            return store::FileType::directory;
        case S_IFLNK:
            return store::FileType::symlink;
        case S_IFCHR:
            return store::FileType::char_device;
        case S_IFBLK:
            return store::FileType::block_device;
        case S_IFIFO:
            return store::FileType::fifo;
        case S_IFSOCK:
            return store::FileType::socket;
        default:
            return store::FileType::regular;
    }
}

class Exporter {
public:
    Exporter(const ChangeSet& changes, const View& view, const Keeper& bytes, store::ByteSink& out)
        : changes_(changes), view_(view), bytes_(bytes), tar_(out) {}

    void put(const ListedChange& change);
    void finish() { tar_.finish(); }

private:
    template <class T>
    T check(Result<T> result) const {
        if (result) return *std::move(result);
        store::throw_errno(std::to_underlying(result.error()), "/" + path_);
    }
    void check_name() const;
    void put_mark(const std::string& path);
    void put_whiteout(const std::string& path);
    void put_inode(const ListedChange& change);
    void put_file(const store::LayerEntry& entry, NodeId node);
    void put_data(NodeId node, const Piece& piece);
    std::vector<Piece> pieces_of(NodeId node, std::uint64_t size_bytes) const;
    void add_view_pieces(NodeId node, std::uint64_t from, std::uint64_t to, std::vector<Piece>& pieces) const;
    store::Metadata metadata_of(NodeId node, const Attributes& attributes) const;
    bool is_hidden(const std::string& path) const { return !opaque_.empty() && path.starts_with(opaque_); }

    const ChangeSet& changes_;
    const View& view_;
    const Keeper& bytes_;
    store::TarWriter tar_;
    std::string path_;    // Of the change in hand, for errors.
    std::string opaque_;  // The outermost replaced folder that the walk is in, with a slash at its end.
    std::unordered_map<NodeId, std::string> first_names_;
    std::vector<std::byte> buffer_ = std::vector<std::byte>(kCopyBytes);
};

void Exporter::check_name() const {
    if (!split(path_).second.starts_with(kWhiteoutPrefix)) return;
    throw store::Error(store::Errc::malformed,
                       "/" + path_ + ": a name that begins with .wh. means a deletion in a layer; rename it");
}

void Exporter::put(const ListedChange& change) {
    path_ = change.path;
    check_name();
    const bool is_hidden_below = is_hidden(change.path);
    if (change.kind == ListedChange::Kind::deleted) {
        if (!is_hidden_below) put_whiteout(change.path);
        return;
    }
    if (S_ISSOCK(change.type)) {
        if (change.kind == ListedChange::Kind::changed && !is_hidden_below) put_whiteout(change.path);
        return;
    }
    put_inode(change);
    if (!change.is_opaque || is_hidden_below) return;
    opaque_ = change.path + "/";
    put_mark(opaque_ + std::string(kOpaqueName));
}

void Exporter::put_mark(const std::string& path) {
    store::LayerEntry entry;
    entry.path = path;
    tar_.begin(entry);
}

void Exporter::put_whiteout(const std::string& path) {
    const auto [folder, name] = split(path);
    put_mark(std::string(folder) + std::string(kWhiteoutPrefix) + std::string(name));
}

void Exporter::put_inode(const ListedChange& change) {
    const Attributes attributes = check(merged_attributes(changes_, change.node));
    store::LayerEntry entry;
    entry.path = change.path;
    entry.metadata = metadata_of(change.node, attributes);
    if (!S_ISDIR(attributes.mode) && attributes.nlink > 1) {
        const auto [first, is_first] = first_names_.emplace(change.node, change.path);
        if (!is_first) {
            entry.is_hardlink = true;
            entry.hardlink_target = first->second;
            tar_.begin(entry);
            return;
        }
    }
    if (!S_ISREG(attributes.mode)) {
        tar_.begin(entry);
        return;
    }
    entry.size_bytes = attributes.size_bytes;
    put_file(entry, change.node);
}

store::Metadata Exporter::metadata_of(NodeId node, const Attributes& attributes) const {
    store::Metadata metadata;
    metadata.type = type_of(attributes.mode);
    metadata.mode = attributes.mode & 07777;
    metadata.uid = attributes.uid;
    metadata.gid = attributes.gid;
    metadata.mtime = attributes.mtime;
    if (S_ISCHR(attributes.mode) || S_ISBLK(attributes.mode)) {
        metadata.device_major = gnu_dev_major(attributes.device);
        metadata.device_minor = gnu_dev_minor(attributes.device);
    }
    const auto record = changed_node(changes_, node);
    if (S_ISLNK(attributes.mode)) {
        metadata.link_target = record && record->is_new ? record->link_target : check(view_.link_target(node));
    }
    if (record && (record->is_new || record->has_own_xattrs)) {
        for_each_own_xattr(changes_, node, [&](std::string_view name, std::string_view value) {
            metadata.xattrs[std::string(name)] = value;
        });
    } else {
        for (const auto& [name, value] : check(view_.xattrs(node))) metadata.xattrs[std::string(name)] = value;
    }
    return metadata;
}

void Exporter::add_view_pieces(NodeId node, std::uint64_t from, std::uint64_t to, std::vector<Piece>& pieces) const {
    while (from < to) {
        const auto data = view_.seek_data(node, from);
        if (!data && data.error() == Errno{ENXIO}) return;
        const std::uint64_t start = check(data);
        if (start >= to) return;
        const std::uint64_t end = std::min(check(view_.seek_hole(node, start)), to);
        if (start < from || end <= start)
            throw store::Error(store::Errc::corrupt, "/" + path_ + ": its data is unclear");
        pieces.push_back({.offset_bytes = start, .size_bytes = end - start});
        from = end;
    }
}

std::vector<Piece> Exporter::pieces_of(NodeId node, std::uint64_t size_bytes) const {
    std::vector<Piece> pieces;
    const auto record = changed_node(changes_, node);
    const std::uint64_t shown = record ? (record->is_new ? 0 : record->view_size_bytes) : size_bytes;
    const std::uint64_t view_end = std::min(shown, size_bytes);
    std::uint64_t at = 0;
    for_each_extent(changes_, node, [&](const ChangedExtent& extent) {
        add_view_pieces(node, at, std::min(extent.offset_bytes, view_end), pieces);
        at = extent.offset_bytes + extent.size_bytes;
        if (extent.is_hole || extent.offset_bytes >= size_bytes) return;
        pieces.push_back({.offset_bytes = extent.offset_bytes,
                          .size_bytes = std::min(extent.size_bytes, size_bytes - extent.offset_bytes),
                          .extent_offset_bytes = extent.extent_offset_bytes});
    });
    add_view_pieces(node, at, view_end, pieces);
    return pieces;
}

void Exporter::put_file(const store::LayerEntry& entry, NodeId node) {
    const std::vector<Piece> pieces = pieces_of(node, entry.size_bytes);
    std::vector<store::TarWriter::Range> map;
    for (const Piece& piece : pieces) {
        const bool continues = !map.empty() && map.back().offset_bytes + map.back().size_bytes == piece.offset_bytes;
        if (continues) {
            map.back().size_bytes += piece.size_bytes;
        } else {
            map.push_back({.offset_bytes = piece.offset_bytes, .size_bytes = piece.size_bytes});
        }
    }
    const bool is_whole = entry.size_bytes == 0 || (map.size() == 1 && map.front().size_bytes == entry.size_bytes);
    if (is_whole)
        map.clear();
    else if (map.empty())
        map.push_back({.offset_bytes = entry.size_bytes, .size_bytes = 0});  // All of it a hole.
    tar_.begin(entry, map);
    for (const Piece& piece : pieces) put_data(node, piece);
}

void Exporter::put_data(NodeId node, const Piece& piece) {
    for (std::uint64_t done = 0; done < piece.size_bytes;) {
        const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(buffer_.size(), piece.size_bytes - done));
        const auto out = std::span(buffer_).first(size);
        if (piece.extent_offset_bytes != 0) {
            const auto loaded = bytes_.load(piece.extent_offset_bytes + done, out);
            if (!loaded) store::throw_errno(std::to_underlying(loaded.error()), "/" + path_);
        } else if (check(view_.read(node, piece.offset_bytes + done, out)) != size) {
            throw store::Error(store::Errc::corrupt, "/" + path_ + ": ends before its size");
        }
        tar_.write_body(out);
        done += size;
    }
}

}  // namespace

void export_layer(const ChangeSet& changes, const View& view, const Keeper& bytes, store::ByteSink& out) {
    Exporter exporter(changes, view, bytes, out);
    const ListOptions options{.lists_moved = true, .lists_links = true, .has_parents = true};
    list_changes(changes, view, options, [&](const ListedChange& change) { exporter.put(change); });
    exporter.finish();
}

}  // namespace lamina::unionfs
