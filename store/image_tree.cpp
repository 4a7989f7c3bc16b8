#include "store/image_tree.h"

#include "store/chunker.h"
#include "store/error.h"
#include "store/mapped_tree.h"

#include <algorithm>
#include <cstring>

// A tree is served straight from its mapping. Opening reads the header and compares its SHA-256 with the tree's digest;
// the header holds the digest of each 64 KiB block of the body. Every access goes through body_at(), which checks
// the blocks it touches that were not checked before: the block is read with pread into a buffer of its own (so that an
// unreadable sector is an error and not a SIGBUS), hashed, and its bit set. After that the mapping is used, at the cost
// of one load per access. Two threads may check one block twice, which is harmless.
//
// A digest says that the bytes are those that were meant, not that they make sense, so every number is compared with
// its table's size where it is used. Nothing here follows more than one reference per call, so a tree that refers to
// itself cannot make a call endless.

namespace lamina::store {

using namespace tree_format;

std::shared_ptr<const ImageTree> ImageTree::open(const std::string& path, const TreeDigest& expected) {
    return std::make_shared<const MappedTree>(path, expected);
}

MappedTree::MappedTree(const std::string& path, const TreeDigest& expected) : path_(path), fd_(open_read(path)) {
    mapping_ = MappedFile::map(fd_.get(), path_);
    open_header(expected);
    check_tables();
    checked_ = std::vector<std::atomic<std::uint64_t>>((header_.block_count + 63) / 64);
}

void MappedTree::fail(const std::string& why) const {
    throw Error(Errc::corrupt, "image tree " + path_ + ": " + why);
}

void MappedTree::open_header(const TreeDigest& expected) {
    const std::uint64_t file_bytes = mapping_.bytes().size();
    if (file_bytes < sizeof header_) fail("shorter than a header");
    read_exact(fd_.get(), 0, std::as_writable_bytes(std::span(&header_, 1)), path_);
    // Where header_bytes stands is the same in every version; all else is believed only after the digest.
    const std::uint64_t head_bytes = header_.header_bytes;
    const bool is_possible = head_bytes >= kHeaderAlignBytes && head_bytes % kHeaderAlignBytes == 0 &&
                             head_bytes <= std::min(kMaxHeaderBytes, file_bytes);
    if (!is_possible) fail("impossible header size");
    head_.resize(head_bytes);
    read_exact(fd_.get(), 0, head_, path_);
    if (TreeDigest{Digest::of(head_)} != expected) fail("the header does not match its digest");
    std::memcpy(&header_, head_.data(), sizeof header_);
    if (header_.magic != kMagic) fail("not an image tree");
    if (header_.version != kVersion) {
        throw Error(Errc::unsupported, "image tree " + path_ + ": version " + std::to_string(header_.version) +
                                           ", this program reads version " + std::to_string(kVersion));
    }
    if (header_.header_bytes != head_bytes || header_.file_bytes != file_bytes) fail("not of the size that it states");
    body_bytes_ = file_bytes - head_bytes;
}

void MappedTree::check_tables() const {
    const bool is_sound = header_.table_count == kTableCount && header_.reserved == 0 &&
                          header_.block_count == block_count(body_bytes_) &&
                          header_.header_bytes == store::tree_format::header_bytes(header_.block_count);
    if (!is_sound) fail("inconsistent header");
    std::uint64_t end = 0;
    for (std::uint32_t i = 0; i < kTableCount; ++i) {
        const TablePlace& place = header_.tables[i];
        if (place.offset_bytes != aligned(end, kTableAlignBytes)) fail("a table is not where it belongs");
        if (place.offset_bytes > body_bytes_) fail("a table is outside the file");
        if (place.count > (body_bytes_ - place.offset_bytes) / kRecordBytes[i]) fail("a table is outside the file");
        end = place.offset_bytes + place.count * kRecordBytes[i];
    }
    if (end != body_bytes_) fail("bytes after the last table");
    if (inode_count() == 0 || inode_count() > kMaxInodes) fail("impossible number of inodes");
}

// --- Access to the body

const std::byte* MappedTree::body_at(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    if (offset_bytes > body_bytes_ || size_bytes > body_bytes_ - offset_bytes) fail("a reference outside the file");
    if (size_bytes > 0) {
        const std::uint64_t last = (offset_bytes + size_bytes - 1) / kBlockBytes;
        for (std::uint64_t block = offset_bytes / kBlockBytes; block <= last; ++block) {
            const bool is_checked = checked_[block / 64].load(std::memory_order_acquire) >> (block % 64) & 1;
            if (!is_checked) [[unlikely]]
                check_block(block);
        }
    }
    return mapping_.bytes().data() + header_.header_bytes + offset_bytes;
}

void MappedTree::check_block(std::uint64_t block) const {
    const std::uint64_t begin = block * kBlockBytes;
    const std::uint64_t size = std::min(kBlockBytes, body_bytes_ - begin);
    const auto buffer = std::make_unique_for_overwrite<std::byte[]>(size);
    const std::span<std::byte> data(buffer.get(), size);
    read_exact(fd_.get(), header_.header_bytes + begin, data, path_);
    const auto digest = Digest::of(data);
    const std::byte* const expected = head_.data() + sizeof header_ + block * Digest::kSizeBytes;
    if (std::memcmp(digest.bytes().data(), expected, Digest::kSizeBytes) != 0) {
        fail("the 64 KiB at offset " + std::to_string(header_.header_bytes + begin) + " do not match their digest");
    }
    const std::uint64_t bit = std::uint64_t{1} << (block % 64);
    const std::uint64_t before = checked_[block / 64].fetch_or(bit, std::memory_order_acq_rel);
    if ((before & bit) == 0) checked_blocks_.fetch_add(1, std::memory_order_relaxed);
}

std::string_view MappedTree::string(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    const TablePlace& place = header_.tables[static_cast<std::uint32_t>(Table::strings)];
    if (offset_bytes > place.count || size_bytes > place.count - offset_bytes) fail("a string outside its table");
    return {reinterpret_cast<const char*>(body_at(place.offset_bytes + offset_bytes, size_bytes)), size_bytes};
}

Inode MappedTree::inode(TreeIno ino) const {
    if (ino == 0 || ino > inode_count()) {
        throw Error(Errc::not_found, "image tree " + path_ + ": no inode " + std::to_string(ino));
    }
    const auto out = record<Inode>(Table::inodes, ino - 1);
    if (out.mode >> 12 > static_cast<int>(FileType::socket)) fail("inode " + std::to_string(ino) + ": unknown type");
    return out;
}

Inode MappedTree::inode_of_type(TreeIno ino, FileType type) const {
    const Inode out = inode(ino);
    if (out.mode >> 12 != static_cast<int>(type)) {
        throw Error(Errc::internal, "image tree " + path_ + ": inode " + std::to_string(ino) + " is of another type");
    }
    return out;
}

// --- What the tree is asked

TreeAttributes MappedTree::attributes(TreeIno ino) const {
    const Inode data = inode(ino);
    if (data.mtime_nanoseconds > 999'999'999) fail("inode " + std::to_string(ino) + ": impossible time");
    TreeAttributes out{.type = static_cast<FileType>(data.mode >> 12),
                       .mode = data.mode & 07777U,
                       .uid = data.uid,
                       .gid = data.gid,
                       .nlink = data.nlink,
                       .size_bytes = data.size_bytes,
                       .data_bytes = 0,
                       .mtime = {data.mtime_seconds, data.mtime_nanoseconds},
                       .has_xattrs = data.xattr_set != 0};
    if (out.type == FileType::regular) {
        out.data_bytes = data.data;
    } else if (out.type == FileType::char_device || out.type == FileType::block_device) {
        out.device_major = static_cast<std::uint32_t>(data.data);
        out.device_minor = static_cast<std::uint32_t>(data.data >> 32);
    }
    return out;
}

TreeName MappedTree::name_at(const Inode& directory, std::uint64_t position) const {
    const auto found = record<Dirent>(Table::dirents, directory.first + position);
    if (found.ino == 0 || found.ino > inode_count()) fail("a name without an inode");
    if (found.type > static_cast<int>(FileType::socket)) fail("a name of unknown type");
    return {.name = string(found.name, found.name_bytes), .ino = found.ino, .type = static_cast<FileType>(found.type)};
}

std::optional<TreeName> MappedTree::lookup(TreeIno directory, std::string_view name) const {
    const Inode node = inode_of_type(directory, FileType::directory);
    std::uint64_t low = 0;
    std::uint64_t high = node.count;
    while (low < high) {
        const std::uint64_t middle = low + (high - low) / 2;
        const TreeName found = name_at(node, middle);
        const int order = name.compare(found.name);
        if (order == 0) return found;
        (order < 0 ? high : low) = order < 0 ? middle : middle + 1;
    }
    return std::nullopt;
}

std::uint32_t MappedTree::entry_count(TreeIno directory) const {
    return inode_of_type(directory, FileType::directory).count;
}

TreeName MappedTree::entry(TreeIno directory, std::uint32_t position) const {
    const Inode node = inode_of_type(directory, FileType::directory);
    if (position >= node.count) {
        throw Error(Errc::not_found, "image tree " + path_ + ": no entry " + std::to_string(position) + " in inode " +
                                         std::to_string(directory));
    }
    return name_at(node, position);
}

TreeIno MappedTree::parent(TreeIno directory) const {
    const TreeIno above = inode_of_type(directory, FileType::directory).extra;
    if (above == 0 || above > inode_count()) fail("inode " + std::to_string(directory) + ": impossible parent");
    return above;
}

std::string_view MappedTree::link_target(TreeIno symlink) const {
    const Inode node = inode_of_type(symlink, FileType::symlink);
    if (node.size_bytes == 0 || node.size_bytes > kMaxLinkTargetBytes) fail("a link target of impossible length");
    return string(node.first, node.size_bytes);
}

std::vector<std::pair<std::string_view, std::string_view>> MappedTree::xattrs(TreeIno ino) const {
    const Inode node = inode(ino);
    std::vector<std::pair<std::string_view, std::string_view>> out;
    if (node.xattr_set == 0) return out;
    const auto set = record<XattrSet>(Table::xattr_sets, node.xattr_set - 1);
    if (set.first + std::uint64_t{set.count} > count(Table::xattrs)) fail("an xattr set outside its table");
    out.reserve(set.count);
    for (std::uint64_t i = 0; i < set.count; ++i) {
        const auto pair = record<Xattr>(Table::xattrs, set.first + i);
        if (pair.name_bytes == 0 || pair.name_bytes > kMaxXattrNameBytes || pair.value_bytes > kMaxXattrValueBytes) {
            fail("an xattr of impossible size");
        }
        out.emplace_back(string(pair.name, pair.name_bytes), string(pair.value, pair.value_bytes));
    }
    return out;
}

// --- Contents of files

std::uint64_t MappedTree::part_end(const Inode& file, std::uint64_t position) const {
    if (position + 1 == file.count) return file.size_bytes;
    const std::uint64_t end = record<PartEnd>(Table::part_ends, file.extra + position).offset_bytes;
    if (end > file.size_bytes) fail("a part beyond its file");
    return end;
}

ContentPart MappedTree::part(const Inode& file, std::uint64_t position, std::uint64_t begin_bytes,
                             std::uint64_t end_bytes) const {
    if (end_bytes <= begin_bytes) fail("parts of a file out of order");
    const auto stored = record<Part>(Table::parts, file.first + position);
    ContentPart out{.chunk = ChunkId{Digest::from_bytes(stored.chunk)}, .size_bytes = end_bytes - begin_bytes};
    out.is_hole = out.chunk == ContentPart::no_chunk();
    if (!out.is_hole && out.size_bytes > kMaxChunkBytes) fail("a chunk of impossible size");
    return out;
}

std::vector<ImageTree::PlacedPart> MappedTree::parts(TreeIno file, std::uint64_t offset_bytes,
                                                     std::uint64_t size_bytes) const {
    const Inode node = inode_of_type(file, FileType::regular);
    std::vector<PlacedPart> out;
    if (offset_bytes >= node.size_bytes || size_bytes == 0) return out;
    if (node.count == 0) fail("inode " + std::to_string(file) + ": no content");
    const std::uint64_t end_bytes = offset_bytes + std::min(size_bytes, node.size_bytes - offset_bytes);

    std::uint64_t low =
        0;  // The first part that ends after the offset: there is one, the last ends where the file does.
    std::uint64_t high = node.count - 1;
    while (low < high) {
        const std::uint64_t middle = low + (high - low) / 2;
        if (part_end(node, middle) > offset_bytes) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    std::uint64_t begin = low == 0 ? 0 : part_end(node, low - 1);
    if (begin > offset_bytes) fail("parts of a file out of order");
    for (std::uint64_t i = low; i < node.count && begin < end_bytes; ++i) {
        const std::uint64_t end = part_end(node, i);
        out.push_back({.offset_bytes = begin, .part = part(node, i, begin, end)});
        begin = end;
    }
    return out;
}

}  // namespace lamina::store
