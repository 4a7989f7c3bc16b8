#pragma once

#include "fuse/result.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// POSIX ACLs as the xattrs system.posix_acl_access and system.posix_acl_default hold them (Linux,
/// include/uapi/linux/posix_acl_xattr.h): version 2, then entries of tag, permissions, id, little endian.
namespace lamina::unionfs {

inline constexpr std::string_view kAccessAclXattr = "system.posix_acl_access";
inline constexpr std::string_view kDefaultAclXattr = "system.posix_acl_default";

class PosixAcl {
public:
    /// EINVAL unless it has exactly one entry each of owner, group and others, a mask where named entries are, entries
    /// in order, and ids once. No entries at all is an empty ACL.
    static Result<PosixAcl> parse(std::string_view xattr_value);
    std::string text() const;  ///< The xattr's value.

    bool is_empty() const noexcept { return entries_.empty(); }
    /// True when the nine mode bits say all that the ACL says: it need not be stored.
    bool is_only_mode() const noexcept;
    /// `mode` with its nine bits as the ACL has them: the group's are the mask where there is one.
    std::uint32_t mode_with(std::uint32_t mode) const noexcept;
    /// chmod: owner, mask (else group) and others become what the mode says.
    void set_mode(std::uint32_t mode) noexcept;
    /// A folder's default ACL as the access ACL of a new inode in it: what neither it nor `mode` allows is gone from
    /// both. Returns the mode to make the inode with.
    std::uint32_t inherit(std::uint32_t mode) noexcept;

private:
    enum Tag : std::uint16_t { user_obj = 1, user = 2, group_obj = 4, group = 8, mask = 16, other = 32 };
    struct AclEntry {
        std::uint16_t tag = 0;
        std::uint16_t permissions = 0;
        std::uint32_t id = 0;
    };
    bool is_sound() const noexcept;
    AclEntry* find(Tag tag) noexcept;
    const AclEntry* find(Tag tag) const noexcept { return const_cast<PosixAcl*>(this)->find(tag); }

    std::vector<AclEntry> entries_;
};

}  // namespace lamina::unionfs
