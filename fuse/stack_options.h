#pragma once

#include "fuse/overlay_format.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::unionfs {

/// Ids on disk and ids that are shown: uidmapping=KEPT:SHOWN:COUNT.
struct IdRange {
    std::uint32_t kept = 0;
    std::uint32_t shown = 0;
    std::uint32_t count = 0;
};

/// What the options of a mount over folders say: those of fuse-overlayfs, and of the kernel's overlayfs where it has
/// others.
struct StackMountOptions {
    std::vector<std::string> lowers;  ///< The top one first; as given, maybe relative.
    /// Folders of the store's mounts, whose images lie above all lowers, or below: image= before lowerdir=, or after.
    std::vector<std::string> images_above;
    std::vector<std::string> images_below;
    std::string upper;  ///< Empty: read-only.
    std::string work;
    std::string source_name;  ///< fsname=
    std::vector<IdRange> uids;
    std::vector<IdRange> gids;
    std::optional<std::uint32_t> squash_uid;
    std::optional<std::uint32_t> squash_gid;
    OverrideStat override_stat = OverrideStat::automatic;
    bool has_user_xattrs = false;  ///< userxattr
    bool follows_redirects = true;
    bool follows_metacopy = true;
    bool makes_metacopy = false;
    bool is_volatile = false;  ///< volatile, or fsync=0: nothing is synced.

    bool has_images() const noexcept { return !images_above.empty() || !images_below.empty(); }
    bool is_wanted() const noexcept { return !lowers.empty() || !upper.empty() || has_images(); }
};

/// Takes one option in, value without its name; false when it is none of these. Throws store::Error(malformed).
bool apply_stack_option(StackMountOptions& options, std::string_view name, const std::optional<std::string>& value);

/// A list of -o apart at its commas. One after a backslash does not separate, nor between the quotes of a value that
/// begins with one (context="a,b"). Empty options are left out; backslashes stay.
std::vector<std::string> split_options(std::string_view list);

}  // namespace lamina::unionfs
