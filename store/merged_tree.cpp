#include "store/merged_tree.h"

#include "store/chunker.h"
#include "store/error.h"
#include "store/printable.h"
#include "store/tree_format.h"

#include <sys/random.h>
#include <unistd.h>

#include <xxhash.h>

#include <limits>

// How layers become one tree. A layer is first a tree of its own: its entries are taken in tar order, as if unpacked
// into an empty folder (the last of duplicates wins, a directory over a directory changes attributes only). Whiteouts
// and opaque marks are not entries of that tree but are kept beside it, so that their place in the tar cannot matter.
// At the end of the layer this tree is laid upon the merged tree below, which is what the kernel's overlayfs would
// show: opaque directories and whiteouts act on what is below first, then entries replace, and two directories merge.
// The only question asked of the tree below while entries are taken is what a hard link points to; it is asked before
// any whiteout of the same layer acts, because those have no order.
//
// A directory that no entry names but that others lie in ("implicit") keeps the attributes of the one below, is made
// when there is none, and is refused over anything else: links are never followed. Names of AUFS' own files
// (".wh..wh.x") are taken into the layer's tree, because old images hard-link to them, but never leave it.

namespace lamina::store {

namespace {

/// A symbolic link has no mode of its own: Linux shows 0777 whatever a tar says.
std::uint16_t mode_of(const Metadata& data) {
    return data.type == FileType::symlink ? 0777 : static_cast<std::uint16_t>(data.mode);
}

constexpr std::string_view kWhiteoutPrefix = ".wh.";
constexpr std::string_view kLeftoverPrefix = ".wh..wh.";
constexpr std::string_view kOpaqueMark = ".wh..wh..opq";

Error refused(std::string_view path, std::string_view why) {
    return Error(Errc::malformed, "entry " + quote(path) + ": " + std::string(why));
}

bool is_leftover(std::string_view name) {
    return name.starts_with(kLeftoverPrefix) && name != kOpaqueMark;
}

// Calls `take` with each component.
template <class Take>
void for_each_component(std::string_view path, Take&& take) {
    while (!path.empty()) {
        const auto slash = path.find('/');
        take(path.substr(0, slash));
        if (slash == std::string_view::npos) return;
        path.remove_prefix(slash + 1);
    }
}

void check_component(std::string_view name, std::string_view path) {
    if (name.empty() || name == "." || name == "..") throw refused(path, "not a plain relative path");
    if (name.size() > tree_format::kMaxNameBytes) throw refused(path, "a name is longer than 255 bytes");
}

void check_path(std::string_view path) {
    if (path.size() > tree_format::kMaxPathBytes) throw refused(path, "the path is longer than 4096 bytes");
    if (path.find('\0') != std::string_view::npos) throw refused(path, "the path has a zero byte");
    if (path.ends_with('/')) throw refused(path, "not a plain relative path");
    for_each_component(path, [&](std::string_view name) { check_component(name, path); });
}

void check_metadata(const LayerEntry& entry) {
    const Metadata& data = entry.metadata;
    if (data.type > FileType::socket) throw refused(entry.path, "unknown type");
    if (data.mode > 07777) throw refused(entry.path, "the mode has more than 12 bits");
    if (data.mtime.nanoseconds > 999'999'999) throw refused(entry.path, "the time has more than 999,999,999 ns");
    if (data.type != FileType::symlink) return;
    const bool has_zero = data.link_target.find('\0') != std::string::npos;
    if (data.link_target.empty() || has_zero) throw refused(entry.path, "a symbolic link without a usable target");
    if (data.link_target.size() > tree_format::kMaxLinkTargetBytes) {
        throw refused(entry.path, "the link target is longer than 4095 bytes");
    }
}

void check_part(const ContentPart& part, std::string_view path) {
    if (part.size_bytes == 0) throw refused(path, "an empty part");
    if (part.is_hole) return;
    if (part.size_bytes > kMaxChunkBytes) throw refused(path, "a chunk is too large");
    if (part.chunk == ContentPart::no_chunk()) throw refused(path, "a chunk without a digest");
}

}  // namespace

std::size_t StringTable::Hash::operator()(std::string_view text) const noexcept {
    static const std::uint64_t seed = [] {
        std::uint64_t random = 0;
        if (::getrandom(&random, sizeof random, 0) != sizeof random) return static_cast<std::uint64_t>(::getpid());
        return random;
    }();
    return XXH3_64bits_withSeed(text.data(), text.size(), seed);
}

StringTable::Id StringTable::add(std::string_view text) {
    if (const auto found = ids_.find(text); found != ids_.end()) return found->second;
    const Id id = static_cast<Id>(texts_.size());
    ids_.emplace(texts_.emplace_back(text), id);
    return id;
}

std::optional<StringTable::Id> StringTable::find(std::string_view text) const {
    const auto found = ids_.find(text);
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

MergedTree::MergedTree() {
    directories_.push_back({.entries = {}, .attributes = 0});
    inodes_.emplace_back();  // The root as long as no layer says otherwise: 0755, root, time 0.
    new_layer_directory(kNone, 0);
}

std::span<const MergedTree::StoredPart> MergedTree::parts(const InodeData& file) const {
    return std::span(parts_).subspan(file.first_part, file.part_count);
}

// --- Taking a layer's entries

void MergedTree::add(const LayerEntry& entry) {
    check_path(entry.path);
    if (entry.path.empty()) {
        if (entry.is_hardlink || entry.metadata.type != FileType::directory) {
            throw refused(entry.path, "the root is not a directory");
        }
        layer_[kRoot].attributes = add_inode(entry);
        return;
    }
    const auto slash = entry.path.find_last_of('/');
    const std::string_view path = entry.path;
    const std::string_view folder = slash == std::string::npos ? std::string_view{} : path.substr(0, slash);
    const std::string_view leaf = slash == std::string::npos ? path : path.substr(slash + 1);

    const bool is_plain = !leaf.starts_with(kWhiteoutPrefix);
    const Number parent = parent_in_layer(folder, is_plain);
    if (is_plain || is_leftover(leaf)) return add_visible(parent, leaf, entry);
    if (leaf == kOpaqueMark) {
        layer_[parent].is_opaque = true;
        return;
    }
    const std::string_view hidden = leaf.substr(kWhiteoutPrefix.size());
    if (hidden.empty() || hidden == "." || hidden == "..") throw refused(path, "a whiteout of no name");
    layer_[parent].whiteouts.push_back(strings_.add(hidden));
}

// The directory `folder` of the layer, made where it is missing.
MergedTree::Number MergedTree::parent_in_layer(std::string_view folder, bool is_needed) {
    if (last_parent_ != kNone && is_needed && folder == last_folder_) return last_parent_;
    std::vector<Number> above;
    Number at = kRoot;
    bool is_hidden = false;
    for_each_component(folder, [&](std::string_view name) {
        if (name.starts_with(kWhiteoutPrefix)) {
            if (!is_leftover(name)) throw refused(folder, "a whiteout with something below it");
            is_hidden = true;
        }
        at = child_in_layer(at, name);
        above.push_back(at);
    });
    if (!is_needed || is_hidden) return at;
    for (const Number directory : above) layer_[directory].is_needed = true;
    last_folder_ = folder;
    last_parent_ = at;
    return at;
}

MergedTree::Number MergedTree::child_in_layer(Number parent, std::string_view name) {
    const StringTable::Id id = strings_.add(name);
    const Entry known = layer_[parent].entries[id];
    if (known.number == kNone) {
        const Number made = new_layer_directory(parent, id);
        layer_[parent].entries[id] = {made, true};
        return made;
    }
    if (known.is_directory) return known.number;
    const std::string folder = path_in_layer(parent);
    throw refused(folder.empty() ? std::string(name) : folder + "/" + std::string(name),
                  "has entries below it but is not a directory");
}

MergedTree::Number MergedTree::new_layer_directory(Number parent, StringTable::Id name) {
    if (layer_.size() >= tree_format::kMaxInodes) throw Error(Errc::malformed, "image: too many directories");
    const Number number = static_cast<Number>(layer_.size());
    LayerDirectory& made = layer_.emplace_back();
    made.parent = parent;
    made.name = name;
    return number;
}

void MergedTree::add_visible(Number parent, std::string_view name, const LayerEntry& entry) {
    Entry added;
    if (entry.is_hardlink) {
        check_path(entry.hardlink_target);
        added = find_link_target(entry.hardlink_target);
        if (added.number == kNone) {
            if (is_leftover(name)) return;
            throw refused(entry.path, "a hard link to " + quote(entry.hardlink_target) + ", which is not there");
        }
        if (added.is_directory) throw refused(entry.path, "a hard link to a directory");
    } else if (entry.metadata.type == FileType::directory) {
        return add_directory(parent, strings_.add(name), entry);
    } else {
        added = {add_inode(entry), false};
    }
    Entry& place = layer_[parent].entries[strings_.add(name)];
    if (place.is_directory) last_parent_ = kNone;  // It may have been that one, or above it.
    place = added;
}

void MergedTree::add_directory(Number parent, StringTable::Id name, const LayerEntry& entry) {
    const Number attributes = add_inode(entry);
    Entry place = layer_[parent].entries[name];
    if (!place.is_directory) {
        place = {new_layer_directory(parent, name), true};
        layer_[parent].entries[name] = place;
    }
    layer_[place.number].attributes = attributes;
}

// The layer's own entries hide those below, but its whiteouts do not: they have no order. Number kNone: not there.
MergedTree::Entry MergedTree::find_link_target(std::string_view path) const {
    Entry upper{kRoot, true};
    Entry lower{kRoot, true};
    const auto child = [](const auto& directories, const Entry& at, StringTable::Id name) {
        if (at.number == kNone || !at.is_directory) return Entry{};
        const Entries& entries = directories[at.number].entries;
        const auto found = entries.find(name);
        return found == entries.end() ? Entry{} : found->second;
    };
    for_each_component(path, [&](std::string_view name) {
        const auto id = strings_.find(name);
        const bool is_hidden = upper.number != kNone && !upper.is_directory;  // Nothing lies below a file or link.
        upper = id && !is_hidden ? child(layer_, upper, *id) : Entry{};
        lower = id && !is_hidden ? child(directories_, lower, *id) : Entry{};
    });
    return upper.number != kNone ? upper : lower;
}

MergedTree::Number MergedTree::add_inode(const LayerEntry& entry) {
    check_metadata(entry);
    if (inodes_.size() >= tree_format::kMaxInodes) throw Error(Errc::malformed, "image: too many entries");
    const Metadata& data = entry.metadata;
    InodeData inode{.type = data.type,
                    .mode = mode_of(data),
                    .uid = data.uid,
                    .gid = data.gid,
                    .mtime_nanoseconds = data.mtime.nanoseconds,
                    .mtime_seconds = data.mtime.seconds};
    if (!data.xattrs.empty()) {
        for (const auto& [name, value] : data.xattrs) {
            const bool is_bad_name =
                name.empty() || name.size() > tree_format::kMaxXattrNameBytes || name.find('\0') != std::string::npos;
            if (is_bad_name) throw refused(entry.path, "an extended attribute with a bad name");
            if (value.size() > tree_format::kMaxXattrValueBytes) {
                throw refused(entry.path, "an extended attribute is larger than 64 KiB");
            }
        }
        inode.xattr_set = add_xattrs(data.xattrs);
    }
    if (data.type == FileType::symlink) inode.link_target = strings_.add(data.link_target);
    if (data.type == FileType::char_device || data.type == FileType::block_device) {
        inode.device_major = data.device_major;
        inode.device_minor = data.device_minor;
    }
    if (data.type == FileType::regular) add_content(entry, inode);
    inodes_.push_back(inode);
    return static_cast<Number>(inodes_.size() - 1);
}

void MergedTree::add_content(const LayerEntry& entry, InodeData& inode) {
    constexpr auto kMaxBytes = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (entry.content.size() > kNone - parts_.size()) throw Error(Errc::malformed, "image: too many chunks");
    inode.first_part = static_cast<std::uint32_t>(parts_.size());
    inode.part_count = static_cast<std::uint32_t>(entry.content.size());
    for (const ContentPart& part : entry.content) {
        check_part(part, entry.path);
        if (part.size_bytes > kMaxBytes - inode.size_bytes) throw refused(entry.path, "larger than a file can be");
        inode.size_bytes += part.size_bytes;
        parts_.push_back({part.chunk, part.size_bytes, part.is_hole});
    }
    if (inode.size_bytes != entry.size_bytes) throw refused(entry.path, "the content is not of the entry's size");
}

std::uint32_t MergedTree::add_xattrs(const std::map<std::string, std::string>& xattrs) {
    XattrSet set;
    for (const auto& [name, value] : xattrs) set.emplace_back(strings_.add(name), strings_.add(value));
    const auto [place, is_new] = xattr_numbers_.try_emplace(set, static_cast<std::uint32_t>(xattr_sets_.size() + 1));
    if (is_new) xattr_sets_.push_back(std::move(set));
    return place->second;
}

// --- Laying the layer upon what is below

void MergedTree::finish_layer() {
    std::vector<Pair> pairs{{kRoot, kRoot}};
    while (!pairs.empty()) {
        const Pair pair = pairs.back();
        pairs.pop_back();
        merge(pair, pairs);
    }
    layer_.clear();
    new_layer_directory(kNone, 0);
    last_parent_ = kNone;
}

// Merges one directory; the pairs of directories in it that remain to be merged go to `more`.
void MergedTree::merge(Pair pair, std::vector<Pair>& more) {
    const LayerDirectory& upper = layer_[pair.upper];
    if (upper.attributes != kNone) directories_[pair.lower].attributes = upper.attributes;
    if (upper.is_opaque) directories_[pair.lower].entries.clear();
    for (const StringTable::Id name : upper.whiteouts) directories_[pair.lower].entries.erase(name);
    for (const auto& [name, entry] : upper.entries) {
        if (is_leftover(strings_.text(name))) continue;
        if (!entry.is_directory) {
            directories_[pair.lower].entries[name] = entry;
            continue;
        }
        const Number child = merged_child(pair.lower, entry.number);
        if (child != kNone) more.push_back({entry.number, child});
    }
}

// The merged directory that the layer's directory `upper_child` is laid upon; kNone: nothing of it will be visible.
MergedTree::Number MergedTree::merged_child(Number lower_parent, Number upper_child) {
    const LayerDirectory& upper = layer_[upper_child];
    const bool is_implicit = upper.attributes == kNone;
    Entries& entries = directories_[lower_parent].entries;
    const auto found = entries.find(upper.name);
    if (found != entries.end()) {
        if (found->second.is_directory) return found->second.number;
        if (is_implicit) throw refused(path_in_layer(upper_child), "has entries below it but is not a directory");
    } else if (is_implicit && !upper.is_needed) {
        return kNone;  // Whiteouts where nothing is.
    }
    const Number made = static_cast<Number>(directories_.size());
    entries[upper.name] = {made, true};
    directories_.emplace_back();  // Invalidates `entries`.
    return made;
}

std::string MergedTree::path_in_layer(Number directory) const {
    std::string path;
    for (Number at = directory; at != kRoot; at = layer_[at].parent) {
        std::string with_parent(strings_.text(layer_[at].name));
        if (!path.empty()) with_parent += "/" + path;
        path = std::move(with_parent);
    }
    return path;
}

}  // namespace lamina::store
