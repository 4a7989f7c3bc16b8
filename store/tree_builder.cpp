#include "store/tree_builder.h"

#include "store/error.h"
#include "store/file.h"
#include "store/merged_tree.h"
#include "store/tree_format.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

// Reads the layers into a MergedTree (which knows the rules), gives the inodes their numbers, and writes the tables of
// tree_format.h. Numbers: directories are visited depth first, those of one directory in name order; at a visit
// all entries of the directory get the next numbers, in name order, unless another name gave them one before. All
// tables follow that order, so that the bytes depend on the merged tree alone.

namespace lamina::store {

namespace {

using namespace tree_format;
using Number = MergedTree::Number;

constexpr std::uint64_t kEntriesBetweenStops = 1024;

// The tables of the body, and the walk that fills them.
class Layout {
public:
    explicit Layout(const MergedTree& tree)
        : tree_(tree),
          inode_numbers_(tree.inodes().size()),
          string_places_(tree.strings().count(), kNowhere),
          set_numbers_(tree.xattr_sets().size()) {}

    void run(const std::stop_token& stop);

    std::vector<Inode> inodes;
    std::vector<Dirent> dirents;
    std::vector<Part> parts;
    std::vector<PartEnd> part_ends;
    std::vector<XattrSet> xattr_sets;
    std::vector<Xattr> xattrs;
    std::string strings;
    std::uint64_t logical_bytes = 0;

private:
    static constexpr std::uint32_t kNowhere = 0xffffffff;
    struct Visit {
        Number directory;
        std::uint32_t ino;
    };
    struct Named {
        std::string_view name;
        StringTable::Id name_id;
        MergedTree::Entry entry;
    };

    void visit(Visit at, std::vector<Visit>& more);
    std::uint32_t number_of(const MergedTree::Entry& entry, std::uint32_t parent);
    std::uint32_t add_inode(const MergedTree::InodeData& data);
    std::uint32_t add_directory(Number directory, std::uint32_t parent);
    void add_parts(const MergedTree::InodeData& data, Inode& out);
    std::uint32_t add_xattr_set(std::uint32_t set);
    std::uint32_t add_string(StringTable::Id id);

    const MergedTree& tree_;
    std::vector<std::uint32_t> inode_numbers_;  // 0: none yet.
    std::vector<std::uint32_t> string_places_;
    std::vector<std::uint32_t> set_numbers_;
};

void Layout::run(const std::stop_token& stop) {
    std::vector<Visit> pending{{MergedTree::kRoot, add_directory(MergedTree::kRoot, kTreeRoot)}};
    while (!pending.empty()) {
        if (stop.stop_requested()) throw Error(Errc::cancelled, "image tree: cancelled");
        const Visit next = pending.back();
        pending.pop_back();
        visit(next, pending);
    }
}

void Layout::visit(Visit at, std::vector<Visit>& more) {
    std::vector<Named> names;
    const auto& entries = tree_.directories()[at.directory].entries;
    names.reserve(entries.size());
    for (const auto& [id, entry] : entries) names.push_back({tree_.strings().text(id), id, entry});
    std::sort(names.begin(), names.end(), [](const Named& a, const Named& b) { return a.name < b.name; });

    if (!names.empty()) inodes[at.ino - 1].first = static_cast<std::uint32_t>(dirents.size());
    inodes[at.ino - 1].count = static_cast<std::uint32_t>(names.size());
    if (names.size() > std::numeric_limits<std::uint32_t>::max() - dirents.size()) {
        throw Error(Errc::malformed, "image: too many names");
    }
    const std::size_t first_new = more.size();
    for (const Named& named : names) {
        const std::uint32_t ino = number_of(named.entry, at.ino);
        Inode& child = inodes[ino - 1];
        ++(named.entry.is_directory ? inodes[at.ino - 1] : child).nlink;
        dirents.push_back({.name = add_string(named.name_id),
                           .ino = ino,
                           .name_bytes = static_cast<std::uint8_t>(named.name.size()),
                           .type = static_cast<std::uint8_t>(child.mode >> 12),
                           .reserved = 0});
        if (named.entry.is_directory) more.push_back({named.entry.number, ino});
    }
    std::reverse(more.begin() + static_cast<std::ptrdiff_t>(first_new), more.end());  // The first is visited next.
}

std::uint32_t Layout::number_of(const MergedTree::Entry& entry, std::uint32_t parent) {
    if (entry.is_directory) return add_directory(entry.number, parent);
    std::uint32_t& number = inode_numbers_[entry.number];
    if (number == 0) number = add_inode(tree_.inodes()[entry.number]);
    return number;
}

std::uint32_t Layout::add_directory(Number directory, std::uint32_t parent) {
    const Number attributes = tree_.directories()[directory].attributes;
    const std::uint32_t ino =
        add_inode(attributes == MergedTree::kNone ? MergedTree::InodeData{} : tree_.inodes()[attributes]);
    inodes[ino - 1].nlink = 2;
    inodes[ino - 1].extra = parent;
    return ino;
}

std::uint32_t Layout::add_inode(const MergedTree::InodeData& data) {
    if (inodes.size() >= kMaxInodes) throw Error(Errc::malformed, "image: too many inodes");
    Inode out{.mode = packed_mode(data.type, data.mode),
              .uid = data.uid,
              .gid = data.gid,
              .mtime_seconds = data.mtime_seconds,
              .mtime_nanoseconds = data.mtime_nanoseconds,
              .xattr_set = add_xattr_set(data.xattr_set)};
    if (data.type == FileType::regular) add_parts(data, out);
    if (data.type == FileType::symlink) {
        out.first = add_string(data.link_target);
        out.size_bytes = tree_.strings().text(data.link_target).size();
    }
    if (data.type == FileType::char_device || data.type == FileType::block_device) {
        out.data = data.device_major | std::uint64_t{data.device_minor} << 32;
    }
    inodes.push_back(out);
    return static_cast<std::uint32_t>(inodes.size());
}

void Layout::add_parts(const MergedTree::InodeData& data, Inode& out) {
    out.size_bytes = data.size_bytes;
    const bool overflows = data.size_bytes > std::numeric_limits<std::uint64_t>::max() - logical_bytes;
    logical_bytes = overflows ? std::numeric_limits<std::uint64_t>::max() : logical_bytes + data.size_bytes;
    out.count = data.part_count;
    if (data.part_count > 0) out.first = static_cast<std::uint32_t>(parts.size());
    if (data.part_count > 1) out.extra = static_cast<std::uint32_t>(part_ends.size());
    std::uint64_t end = 0;
    for (const MergedTree::StoredPart& part : tree_.parts(data)) {
        Part& stored = parts.emplace_back();
        std::memcpy(stored.chunk.data(), part.chunk.digest.bytes().data(), stored.chunk.size());
        end += part.size_bytes;
        if (!part.is_hole) out.data += part.size_bytes;
        if (data.part_count > 1) part_ends.push_back({end});
    }
}

std::uint32_t Layout::add_xattr_set(std::uint32_t set) {
    if (set == 0) return 0;
    std::uint32_t& number = set_numbers_[set - 1];
    if (number != 0) return number;
    const MergedTree::XattrSet& pairs = tree_.xattr_sets()[set - 1];
    xattr_sets.push_back({static_cast<std::uint32_t>(xattrs.size()), static_cast<std::uint32_t>(pairs.size())});
    number = static_cast<std::uint32_t>(xattr_sets.size());
    for (const auto& [name, value] : pairs) {
        xattrs.push_back({.name = add_string(name),
                          .name_bytes = static_cast<std::uint32_t>(tree_.strings().text(name).size()),
                          .value = add_string(value),
                          .value_bytes = static_cast<std::uint32_t>(tree_.strings().text(value).size())});
    }
    return number;
}

std::uint32_t Layout::add_string(StringTable::Id id) {
    std::uint32_t& place = string_places_[id];
    if (place != kNowhere) return place;
    const std::string_view text = tree_.strings().text(id);
    if (text.size() >= kNowhere - strings.size()) throw Error(Errc::malformed, "image: more than 4 GiB of names");
    place = static_cast<std::uint32_t>(strings.size());
    strings += text;
    return place;
}

// Appends the body to a file and takes the digest of each block on the way.
class BodyWriter {
public:
    explicit BodyWriter(File& file) : file_(file) { buffer_.reserve(kBlockBytes); }

    void write(std::span<const std::byte> data) {
        written_bytes_ += data.size();
        while (!data.empty()) {
            const std::size_t taken = std::min<std::size_t>(data.size(), kBlockBytes - buffer_.size());
            buffer_.insert(buffer_.end(), data.begin(), data.begin() + static_cast<std::ptrdiff_t>(taken));
            data = data.subspan(taken);
            if (buffer_.size() == kBlockBytes) flush();
        }
    }
    template <class Table>
    TablePlace write_table(const Table& table) {
        static constexpr std::array<std::byte, kTableAlignBytes> kZeros{};
        write(std::span(kZeros).first(aligned(written_bytes_, kTableAlignBytes) - written_bytes_));
        const TablePlace place{written_bytes_, table.size()};
        write(std::as_bytes(std::span(table.data(), table.size())));
        return place;
    }
    void flush() {
        if (buffer_.empty()) return;
        const Digest digest = Digest::of(buffer_);
        digests_.insert(digests_.end(), digest.bytes().begin(), digest.bytes().end());
        file_.append(buffer_);
        buffer_.clear();
    }
    std::uint64_t written_bytes() const { return written_bytes_; }
    const std::vector<std::byte>& digests() const { return digests_; }

private:
    File& file_;
    std::vector<std::byte> buffer_;
    std::vector<std::byte> digests_;
    std::uint64_t written_bytes_ = 0;
};

std::uint64_t body_bytes_of(const Layout& layout) {
    const std::array<std::uint64_t, kTableCount> counts = {
        layout.inodes.size(),     layout.dirents.size(), layout.parts.size(),  layout.part_ends.size(),
        layout.xattr_sets.size(), layout.xattrs.size(),  layout.strings.size()};
    std::uint64_t bytes = 0;
    for (std::uint32_t i = 0; i < kTableCount; ++i) {
        bytes = aligned(bytes, kTableAlignBytes) + counts[i] * kRecordBytes[i];
    }
    return bytes;
}

// Writes header and body to `file`; returns the tree's digest.
TreeDigest write_tree(const Layout& layout, File& file) {
    const std::uint64_t body_bytes = body_bytes_of(layout);
    const std::uint64_t blocks = block_count(body_bytes);
    if (header_bytes(blocks) > kMaxHeaderBytes) throw Error(Errc::malformed, "image: its tree would be too large");
    std::vector<std::byte> head(header_bytes(blocks));
    file.append(head);  // The place of the header, which is known last.

    BodyWriter body(file);
    Header header{.magic = kMagic,
                  .version = kVersion,
                  .header_bytes = static_cast<std::uint32_t>(head.size()),
                  .file_bytes = head.size() + body_bytes,
                  .logical_bytes = layout.logical_bytes,
                  .block_count = static_cast<std::uint32_t>(blocks),
                  .table_count = kTableCount,
                  .reserved = 0,
                  .tables = {}};
    header.tables = {body.write_table(layout.inodes),     body.write_table(layout.dirents),
                     body.write_table(layout.parts),      body.write_table(layout.part_ends),
                     body.write_table(layout.xattr_sets), body.write_table(layout.xattrs),
                     body.write_table(layout.strings)};
    body.flush();
    if (body.written_bytes() != body_bytes) throw Error(Errc::internal, "image tree: its size was computed wrongly");
    std::memcpy(head.data(), &header, sizeof header);
    std::memcpy(head.data() + sizeof header, body.digests().data(), body.digests().size());
    file.write_at(0, head);
    return TreeDigest{Digest::of(head)};
}

std::string temporary_path(const std::string& folder) {
    static std::atomic<unsigned> counter{0};
    return folder + "/tree-" + std::to_string(::getpid()) + "-" + std::to_string(++counter) + ".tmp";
}

MergedTree merged(const std::vector<std::unique_ptr<Recipe>>& layers, const std::stop_token& stop) {
    MergedTree tree;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        try {
            std::uint64_t taken = 0;
            const auto entries = layers[i]->entries();
            while (const auto entry = entries->next()) {
                if (++taken % kEntriesBetweenStops == 0 && stop.stop_requested()) {
                    throw Error(Errc::cancelled, "cancelled");
                }
                tree.add(*entry);
            }
            tree.finish_layer();
        } catch (const Error& error) {  // Says which layer.
            throw with_context(error,
                               "layer " + std::to_string(i + 1) + " (" + layers[i]->diff_id().digest.text() + ")");
        }
    }
    return tree;
}

}  // namespace

BuiltTree build_tree(const std::vector<std::unique_ptr<Recipe>>& layers, const std::string& staging_folder,
                     std::stop_token stop) {
    const MergedTree tree = merged(layers, stop);
    Layout layout(tree);
    layout.run(stop);

    const std::string temporary = temporary_path(staging_folder);
    try {
        File file = File::create(temporary);
        const TreeDigest digest = write_tree(layout, file);
        file.publish(staging_folder + "/" + digest.digest.hex());
        return {.digest = digest,
                .file_bytes = file.size_bytes(),
                .inode_count = layout.inodes.size(),
                .logical_bytes = layout.logical_bytes};
    } catch (...) {  // Whatever went wrong, the half-written file must not stay.
        ::unlink(temporary.c_str());
        throw;
    }
}

}  // namespace lamina::store
