#pragma once

#include "fuse/append_table.h"
#include "fuse/node.h"

#include <sys/stat.h>

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

/// What a stack remembers of what it saw: plain records linked by index, only ever added or filled in. For the stack's
/// own files.
namespace lamina::unionfs {

/// Which inode something was at first sight. Of an image: its number in the tree alone.
struct Identity {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    std::uint64_t birth_mark = 0;
    bool operator==(const Identity&) const = default;
};

/// A directory of one source.
struct FolderRecord {
    static constexpr std::uint32_t kHasWhiteoutXattrs = 1;  ///< overlay.opaque is "x".

    Identity identity;  ///< Inode 0: not opened yet.
    std::uint32_t source = 0;
    std::uint32_t parent = 0;  ///< Folder; 0: the source's root.
    std::uint32_t node = 0;    ///< The directory that it is a part of; 0: of none (on the way of a redirect).
    std::uint32_t flags = 0;
    TextRef name{};
};

/// A folder in a chain, top first.
struct PartRecord {
    std::uint32_t folder = 0;
    std::uint32_t next = 0;
};

/// An entry of a merged directory, or the root. Its index is the node.
struct NodeRecord {
    static constexpr std::uint8_t kIsResolved = 1;  ///< Looked up: `detail` is filled in, or `canonical`.
    static constexpr std::uint8_t kShowsBelow = 2;  ///< Below the upper the name shows, too.

    std::uint64_t number = 0;  ///< st_ino; 0: not known yet.
    std::uint32_t parent = 0;  ///< Node.
    std::uint32_t folder = 0;  ///< In which it lies on top. 0: the root.
    std::uint32_t candidates =
        0;  ///< Of directories, chain of parts: folders further down with a directory of the name.
    std::uint32_t canonical = 0;  ///< The node that this name's inode was first seen as; 0: this one.
    std::uint32_t detail = 0;     ///< DirectoryRecord or FileRecord.
    std::uint16_t type = 0;       ///< S_IFMT bits.
    std::uint8_t flags = 0;
    std::uint8_t reserved = 0;
    TextRef name{};

    bool is_directory() const noexcept { return S_ISDIR(type); }
    bool is_resolved() const noexcept { return (flags & kIsResolved) != 0; }
};

struct DirectoryRecord {
    std::uint32_t parts = 0;  ///< Chain, top first.
    std::uint32_t first_entry = 0;
    std::uint32_t entry_count = 0;
    std::uint32_t hidden_count = 0;  ///< Behind the entries: names that show below the upper only.
    std::uint32_t subdirectory_count = 0;
    std::uint32_t is_loaded = 0;
    TextRef redirect{};  ///< The upper's overlay.redirect.
};

/// Where an inode lies: a folder and a name in it.
struct ObjectRecord {
    Identity identity{};
    std::uint32_t folder = 0;  ///< kIndexFolder: in index/.
    TextRef name{};
};
inline constexpr std::uint32_t kIndexFolder = UINT32_MAX;

struct FileRecord {
    ObjectRecord object{};
    ObjectRecord data{};  ///< Of a metacopy: the file below with the bytes. Folder 0: they are the object's own.
    std::uint32_t nlink = 1;
    std::uint32_t lower_nlink = 0;
    TextRef index_name{};  ///< Where it is in index/.
    TextRef redirect{};    ///< The upper's overlay.redirect.
};

struct StackRecords {
    AppendTable<NodeRecord> nodes;
    AppendTable<DirectoryRecord> directories;
    AppendTable<FileRecord> files;
    AppendTable<FolderRecord> folders;
    AppendTable<PartRecord> parts;
    TextHeap texts;

    std::string_view text(TextRef ref) const noexcept { return texts.get(ref); }
    std::string_view name(std::uint32_t node) const noexcept { return text(nodes[node].name); }
    std::uint32_t chain(const std::vector<std::uint32_t>& folder_indexes) {
        std::uint32_t first = 0;
        for (auto at = folder_indexes.rbegin(); at != folder_indexes.rend(); ++at)
            first = parts.add({.folder = *at, .next = first});
        return first;
    }
    template <class Visit>  // `visit` says whether to go on.
    void for_each_part(std::uint32_t first, Visit&& visit) const {
        for (std::uint32_t at = first; at != 0; at = parts[at].next)
            if (!visit(parts[at].folder)) return;
    }
};

}  // namespace lamina::unionfs
