#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace lamina::test::differential {

/// An inode under one of its names, as a program sees it.
struct SeenNode {
    struct statx attributes {};
    std::string target;
    std::map<std::string, std::string> xattrs;
    std::string content;                                         ///< A digest of what is not zero.
    std::vector<std::pair<std::uint64_t, std::uint64_t>> holes;  ///< Begin and end.
    std::string problem;                                         ///< What contradicts itself.
};
using Snapshot = std::map<std::string, SeenNode>;  ///< By path; "" is the folder itself.

/// All that lies in a folder. Without `has_content`: only names and attributes.
Snapshot take_snapshot(const std::string& folder, bool has_content);

/// What two snapshots of the reference and of ours are compared by, that differs by nature.
struct Beginning {
    std::map<std::uint64_t, statx_timestamp> reference_ctimes;  ///< By inode number, when the program began.
    std::map<std::uint64_t, statx_timestamp> our_ctimes;
    std::int64_t second = 0;  ///< The clock then.
    /// An upper directory cannot keep when an inode was made, and when it was changed: copying it up is a change.
    bool has_change_times = true;
    bool has_holes = true;  ///< In one, space that fallocate took and that was read is called a hole no more, by ext4.
};
Beginning beginning_of(const Snapshot& reference, const Snapshot& ours);

/// The first difference, or an empty text. Of times: which are now, which are as they were, which were set to what.
std::string difference(const Snapshot& reference, const Snapshot& ours, const Beginning& beginning);

/// Likewise, of what another file system makes of our upper: names, links, contents, owners, modes, xattrs, mtimes. Not
/// what only a union of ours promises: numbers, links of folders, what was changed when.
std::string other_difference(const Snapshot& reference, const Snapshot& other, const Beginning& beginning);

/// Ours before and after a remount: the same in everything.
std::string remount_difference(const Snapshot& before, const Snapshot& after, const Beginning& beginning);

/// Two moments of both: the first inode whose times one moved and the other did not, or that got another number.
struct Moment {
    Snapshot reference;
    Snapshot ours;
};
std::string change_difference(const Moment& before, const Moment& after, const Beginning& beginning);

}  // namespace lamina::test::differential
