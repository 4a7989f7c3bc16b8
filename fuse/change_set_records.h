#pragma once

#include "fuse/arena_hash.h"
#include "fuse/change_set.h"
#include "fuse/extents.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

/// The records of a change set, and what finds and links them. For change_set.cpp, change_apply.cpp and the union;
/// others walk with change_walk.h. Layout: fuse/FORMAT.md, "Arena".
namespace lamina::unionfs {

struct XattrRecord {
    Ref<XattrRecord> next;
    std::uint32_t value_bytes;
    std::uint32_t name_bytes;
    // Name, then value.
    std::string_view name() const noexcept { return {text(), name_bytes}; }
    std::string_view value() const noexcept { return {text() + name_bytes, value_bytes}; }
    const char* text() const noexcept { return static_cast<const char*>(static_cast<const void*>(this + 1)); }
};
static_assert(sizeof(XattrRecord) == 12);

struct TextRecord {
    std::uint32_t size_bytes;
    std::string_view text() const noexcept {
        return {static_cast<const char*>(static_cast<const void*>(this + 1)), size_bytes};
    }
};

/// A new inode, or one of the view with something changed.
struct InodeRecord {
    static constexpr std::uint32_t kOwnXattrs = 1;   ///< `xattrs` counts, not the view's.
    static constexpr std::uint32_t kCapability = 2;  ///< Has security.capability, its own or the view's.
    static constexpr std::uint32_t kAccessAcl = 4;
    static constexpr std::uint32_t kDefaultAcl = 8;
    static constexpr std::uint32_t kKept = 16;       ///< Lies in a file of the keeper's, at `kept_parent`, `kept_name`.
    static constexpr std::uint32_t kDataBelow = 32;  ///< Kept, but its bytes are still the view's (metacopy).

    std::uint64_t node;
    std::uint64_t number;  ///< st_ino; 0: the same as `node`.
    Ref<InodeRecord> hash_next;
    std::uint32_t flags;
    std::uint32_t mode;
    std::uint32_t uid;
    std::uint32_t gid;
    std::uint32_t nlink;  ///< 0: removed; lives as long as the kernel knows it.
    std::uint64_t size_bytes;
    std::uint64_t device;
    Timestamp atime;
    Timestamp mtime;
    Timestamp ctime;
    Timestamp birth;
    std::uint64_t view_size_bytes;       ///< The view's bytes show through up to here, where no extent lies.
    std::uint64_t view_allocated_bytes;  ///< What the view says of its own.
    std::uint64_t own_bytes;             ///< In extents that are not holes.
    std::uint64_t parent;                ///< Of folders: where it lies; 0: nowhere.
    std::uint32_t whiteout_count;        ///< Of folders: names of the view that are hidden, not replaced.
    std::uint32_t added_count;           ///< Of folders: names that the view does not have.
    TreeRoot tree;                       ///< Of files: extents. Of folders: names by sequence number.
    Ref<XattrRecord> xattrs;
    Ref<TextRecord> link_target;  ///< Of new symlinks.
    std::uint64_t kept_parent;    ///< Of kept inodes: the folder of the keeper's file, or one of its own places.
    Ref<TextRecord> kept_name;    ///< Of kept inodes.
    std::uint32_t reserved;

    std::uint64_t hash() const noexcept { return mix(node); }
    bool is_directory() const noexcept { return S_ISDIR(mode); }
    bool is_new() const noexcept { return node >= kFirstNewNode; }
};
static_assert(sizeof(Timestamp) == 16 && sizeof(InodeRecord) == 200);

/// A name of a folder that differs from the view's. Its bytes follow.
struct NameRecord {
    static constexpr std::uint64_t kInView = std::uint64_t{1} << 62;

    std::uint64_t parent;
    std::uint64_t node;      ///< 0: whiteout.
    std::uint64_t sequence;  ///< Of its making, ever growing; with kInView when the view has an entry of this name.
    std::uint32_t name_hash;
    std::uint32_t type;  ///< S_IFMT bits of the inode.
    Ref<NameRecord> hash_next;
    std::uint32_t name_bytes;

    std::uint64_t hash() const noexcept { return name_hash; }
    bool is_in_view() const noexcept { return (sequence & kInView) != 0; }
    std::string_view name() const noexcept {
        return {static_cast<const char*>(static_cast<const void*>(this + 1)), name_bytes};
    }
};
static_assert(sizeof(NameRecord) == 40);

/// An inode that the kernel knows.
struct LookupRecord {
    std::uint64_t node;
    std::uint64_t count;
    Ref<LookupRecord> hash_next;
    std::uint32_t reserved;
    std::uint64_t hash() const noexcept { return mix(node); }
};
static_assert(sizeof(LookupRecord) == 24);

/// The arena's first record.
struct SetRecord {
    static constexpr std::uint64_t kVersion = 4;
    std::uint64_t version;
    std::uint64_t hash_seed;
    std::uint64_t next_node;
    std::uint64_t next_sequence;
    std::uint64_t data_bytes;      ///< Of all inodes: own_bytes in whole blocks.
    std::uint64_t metadata_bytes;  ///< Of all names, xattrs (name and value) and link targets.
    HashRoot inodes;
    HashRoot names;
    HashRoot lookups;
};
static_assert(sizeof(SetRecord) == 48 + 3 * sizeof(HashRoot));

inline constexpr std::size_t kMaxNameBytes = 255;
inline constexpr std::size_t kMaxXattrNameBytes = 255;
inline constexpr std::size_t kMaxXattrValueBytes = std::size_t{64} << 10;
inline constexpr std::size_t kMaxXattrListBytes = std::size_t{64} << 10;
inline constexpr std::size_t kMaxLinkTargetBytes = 4095;
inline constexpr std::uint64_t kMaxFileBytes = 0x7fffffffffffffff;
inline constexpr std::uint32_t kMaxLinks = 0x7fffffff;
inline constexpr std::string_view kCapabilityXattr = "security.capability";

/// What a name of a folder means in the union.
struct Resolved {
    NodeId node = 0;  ///< 0: absent.
    std::uint32_t type = 0;
    bool is_in_view = false;  ///< The view has an entry of this name, shown or not.
    Ref<NameRecord> record;   ///< Null: the view's word counts.
};

class ChangeSet::Records {
public:
    Records(Arena& arena, const View& view);

    Arena& arena() const noexcept { return arena_; }
    const View& view() const noexcept { return view_; }
    const SetRecord& set() const noexcept { return arena_.get(Ref<SetRecord>{arena_.root()}); }

    // Inodes.
    Ref<InodeRecord> find_inode(NodeId node) const;
    const InodeRecord* inode(NodeId node) const;       ///< Null: no record; perhaps the view's.
    Result<Attributes> attributes(NodeId node) const;  ///< Of the union. ENOENT.
    Attributes attributes(const InodeRecord& inode) const;
    Result<std::uint64_t> number(NodeId node) const;  ///< What stat shows as st_ino.
    Result<NodeId> parent(NodeId directory) const;    ///< 0: removed.
    Result<Ref<InodeRecord>> own_inode(NodeId node);  ///< Its record; made from the view when there is none. ENOENT.
    Ref<InodeRecord> make_inode(NodeId node);         ///< A new, empty record.
    void drop_inode(Ref<InodeRecord> inode);          ///< With its extents, xattrs and names.
    Result<std::uint64_t> entry_count(NodeId directory) const;
    /// Where a kept inode's file lies from now on; an empty name: nowhere, it is not kept.
    void set_kept(Ref<InodeRecord> inode, NodeId parent, std::string_view name);
    void set_data_below(Ref<InodeRecord> inode, bool is_below);
    void set_number(NodeId node, std::uint64_t number);  ///< Of an inode with a record.

    // Names. Counts of the folder's record are kept right; times and link counts are the caller's.
    Ref<NameRecord> find_name(NodeId directory, std::string_view name) const;
    Result<Resolved> resolve(NodeId directory, std::string_view name) const;
    struct NameTarget {
        NodeId node = 0;
        std::uint32_t type = 0;
    };
    Result<void> set_name(Ref<InodeRecord> directory, std::string_view name, const Resolved& old, NameTarget target);
    void clear_name(Ref<InodeRecord> directory, std::string_view name, const Resolved& old);

    // Xattrs.
    /// The value; nullopt: not there. Lives until the next change.
    Result<std::optional<std::string_view>> xattr(NodeId node, std::string_view name) const;
    Result<std::vector<std::pair<std::string_view, std::string_view>>> xattrs(NodeId node) const;
    Result<void> set_xattr(Ref<InodeRecord> inode, std::string_view name, std::string_view value);
    Result<bool> remove_xattr(Ref<InodeRecord> inode, std::string_view name);  ///< False: was not there.
    Result<bool> has_xattr(NodeId node, std::uint32_t flag, std::string_view name) const;

    // Extents.
    Extents extents(const InodeRecord& inode) const { return Extents(arena_, inode.tree); }
    void put_extent(Ref<InodeRecord> inode, const Extent& extent);
    void remove_extents(Ref<InodeRecord> inode, std::uint64_t begin, std::uint64_t end);
    std::vector<FreedExtent>& freed() noexcept { return freed_; }  ///< By the open transaction.
    /// What bytes of one file take in the account (SetRecord::data_bytes): whole blocks of 4 KiB.
    static constexpr std::uint64_t block_bytes(std::uint64_t own_bytes) { return (own_bytes + 4095) / 4096 * 4096; }
    void set_link_target(Ref<InodeRecord> inode, std::string_view target);  ///< Of a new symlink, once.

    // Look-ups: transactions of their own.
    void add_lookup(NodeId node);
    bool forget(NodeId node, std::uint64_t count);  ///< True: the kernel does not know it any more.
    bool is_known(NodeId node) const;

    ArenaHash<InodeRecord> inodes() const { return {arena_, set().inodes}; }
    ArenaHash<NameRecord> names() const { return {arena_, set().names}; }
    ArenaHash<LookupRecord> lookups() const { return {arena_, set().lookups}; }
    ArenaTree names_of(const InodeRecord& directory) const { return {arena_, directory.tree}; }
    Freed on_freed;

    /// The inode's xattrs become its own, as the view has them.
    Result<void> own_xattrs(Ref<InodeRecord> inode);

private:
    std::uint32_t name_hash(NodeId directory, std::string_view name) const noexcept;
    void add_name(Ref<InodeRecord> directory, std::string_view name, bool is_in_view, NameTarget target);
    void drop_name(Ref<NameRecord> name);
    void drop_names(const InodeRecord& directory);
    void drop_xattrs(Ref<InodeRecord> inode);
    void drop_text(const Ref<TextRecord>& text);
    void set_own_bytes(const InodeRecord& inode, std::int64_t change_bytes);
    void count_metadata(std::int64_t change_bytes);
    void add_xattr(InodeRecord& inode, std::string_view name, std::string_view value);

    Arena& arena_;
    const View& view_;
    std::vector<FreedExtent> freed_;
};

}  // namespace lamina::unionfs
