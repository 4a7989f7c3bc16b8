#pragma once

#include "fuse/node.h"
#include "fuse/result.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// How layers mark what is deleted, hidden, renamed or stored elsewhere: the kernel's overlayfs (Linux
/// Documentation/filesystems/overlayfs.rst, fs/overlayfs/overlayfs.h), fuse-overlayfs, and AUFS as containers use it.
/// Names and bytes only; nothing here touches a file system. Read and written forms: fuse/SEMANTICS.md, "Stacks".
namespace lamina::unionfs {

/// The two families of overlayfs' attributes. A mount reads redirect, metacopy, origin and nlink from one of them alone
/// (the other may have been set by any user of a file); whiteouts and opaque marks from both.
struct OverlayXattrs {
    static constexpr std::string_view kTrusted = "trusted.overlay.";
    static constexpr std::string_view kUser = "user.overlay.";

    bool is_user = false;  ///< user.overlay.*: without privilege, or with the option userxattr.
    bool follows_redirects = true;
    bool follows_metacopy = true;

    std::string_view prefix() const noexcept { return is_user ? kUser : kTrusted; }
    std::string name(std::string_view suffix) const { return std::string(prefix()).append(suffix); }
};

// Suffixes of overlayfs' attributes.
inline constexpr std::string_view kOpaqueSuffix = "opaque";      ///< "y"; "x": has whiteouts that are attributes.
inline constexpr std::string_view kRedirectSuffix = "redirect";  ///< Path from the root, or a name beside it.
inline constexpr std::string_view kMetacopySuffix = "metacopy";  ///< The data is below.
inline constexpr std::string_view kOriginSuffix = "origin";      ///< FileHandle of the lower inode.
inline constexpr std::string_view kImpureSuffix = "impure";      ///< "y": has entries with an origin.
inline constexpr std::string_view kNlinkSuffix = "nlink";        ///< "U+1": what must be added to a st_nlink.
inline constexpr std::string_view kUpperSuffix = "upper";        ///< In index/: the upper directory's handle.
inline constexpr std::string_view kUuidSuffix = "uuid";
inline constexpr std::string_view kProtattrSuffix = "protattr";
inline constexpr std::string_view kWhiteoutSuffix = "whiteout";  ///< On an empty file in a directory of opaque "x".
/// Ours: on an empty regular file whose name begins with ".wh.": an ordinary file, no whiteout. Value "y".
inline constexpr std::string_view kPlainSuffix = "plain";
inline constexpr std::string_view kFuseOverlayOpaque = "user.fuseoverlayfs.opaque";
inline constexpr std::string_view kFuseOverlayOrigin = "user.fuseoverlayfs.origin";  ///< A path within a lower.

/// An attribute that belongs to a union, not to the users of the file: hidden, and not to be set by them.
bool is_private_xattr(std::string_view name) noexcept;
/// "user.overlay.overlay.x" is how an attribute "user.overlay.x" of a nested mount is stored. nullopt: `stored` is
/// hidden.
std::optional<std::string> shown_xattr_name(std::string_view stored);
/// The other way; every name that is not private is itself.
std::string stored_xattr_name(std::string_view shown);

// AUFS' names: ".wh.NAME" hides NAME below, ".wh..wh..opq" all below. Whiteouts only as empty regular files without
// the attribute "plain"; all else of such names are ordinary entries.
inline constexpr std::string_view kAufsPrefix = ".wh.";
inline constexpr std::string_view kAufsOpaque = ".wh..wh..opq";
inline bool has_aufs_prefix(std::string_view name) noexcept {
    return name.starts_with(kAufsPrefix);
}

/// A file handle as overlay.origin holds it: struct ovl_fb, its header and the handle of name_to_handle_at(2).
struct FileHandle {
    static constexpr std::size_t kHeaderBytes = 21;
    static constexpr std::size_t kMaxHandleBytes = 128;
    static constexpr std::uint8_t kIsUpper = 4;

    std::array<std::uint8_t, 16> file_system{};  ///< UUID, or zeros.
    std::uint8_t type = 0;                       ///< handle_type.
    bool is_upper = false;
    std::vector<std::byte> handle;

    bool operator==(const FileHandle&) const = default;
    std::string bytes() const;       ///< The attribute's value.
    std::string index_name() const;  ///< Its name in index/: the value in hex.
    static std::optional<FileHandle> parse(std::string_view value);
    /// The inode number in it, where the form is known (ext4, xfs, btrfs, tmpfs).
    std::optional<std::uint64_t> inode() const;
};
/// The handle of what `folder_fd`/`name` is (empty: of the folder itself); nullopt: the file system has none.
std::optional<FileHandle> file_handle_of(int folder_fd, std::string_view name);

/// overlay.nlink: "U+1", "L-2". The link count it makes of the upper's and the lower's; nullopt: malformed.
std::optional<std::uint32_t> parse_nlink(std::string_view value, std::uint32_t upper_nlink, std::uint32_t lower_nlink);
/// What follows the prefix of overlay.redirect: a path "/a/b" or a name. nullopt: neither ("..", empty parts).
struct Redirect {
    bool is_absolute = false;
    std::vector<std::string> names;
};
std::optional<Redirect> parse_redirect(std::string_view value);

/// Whether owners and modes are kept in an attribute beside the inode's own (xattr_permissions of fuse-overlayfs).
enum class OverrideStat {
    automatic,   ///< In layers whose root has the attribute, under the name that it has there.
    off,         ///< In none.
    privileged,  ///< As automatic, and the upper keeps them in security.fuseoverlayfs.override_stat
                 ///< (xattr_permissions=1).
    containers,  ///< As automatic, and the upper keeps them in user.containers.override_stat (xattr_permissions=2).
};
/// The names under which it is looked for, in order.
inline constexpr std::array<std::string_view, 3> kOverrideStatXattrs{
    "security.fuseoverlayfs.override_stat", "user.containers.override_stat", "user.fuseoverlayfs.override_stat"};
struct OverriddenStat {
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::uint32_t mode = 0;  ///< Permissions, and type bits when it says a type.
    std::uint64_t device = 0;
    bool operator==(const OverriddenStat&) const = default;
};
/// "uid:gid:octal mode[:type]"; type dir, file, symlink, pipe, socket, block-8-0 or block:8:0, char-....
std::optional<OverriddenStat> parse_override_stat(std::string_view value);
std::string override_stat_text(const OverriddenStat& stat);

}  // namespace lamina::unionfs
