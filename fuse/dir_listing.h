#pragma once

#include "fuse/change_set_records.h"
#include "fuse/union_fs.h"

#include <string>
#include <vector>

namespace lamina::unionfs {

/// A run of a folder's entries, copied, so that they can be handed out without the union's lock.
///
/// Cookies mean the same to every server of the mount: 1 behind ".", 2 behind "..", then 3 + position for entries that
/// the view has (also when something else has taken their name: a name that stays keeps its place), then kAdded +
/// sequence number for names that the view does not have, which come in the order of their making. So a listing that
/// goes on while others change the folder loses and repeats no name that stays.
class DirectoryRun {
public:
    static constexpr std::uint64_t kAdded = std::uint64_t{1} << 61;

    /// Entries behind `cookie`; at most `limit` are looked at. Needs the lock of `records`.
    Result<void> fill(const ChangeSet::Records& records, NodeId directory, std::uint64_t cookie, std::size_t limit);
    bool is_last() const noexcept { return is_last_; }               ///< Nothing is behind this run.
    std::uint64_t next_cookie() const noexcept { return cookie_; }   ///< Where the next run begins.
    bool emit(const std::function<bool(const ListedEntry&)>& emit);  ///< False: it wants no more.

private:
    struct Copied {
        std::size_t name_offset = 0;
        std::size_t name_bytes = 0;
        NodeId node = 0;
        std::uint64_t number = 0;
        std::uint32_t type = 0;
        std::uint64_t next_cookie = 0;
    };
    void add(std::string_view name, NodeId node, std::uint64_t number, std::uint32_t type);
    Result<void> add_record(const ChangeSet::Records& records, const NameRecord& name);
    Result<void> fill_from_view(const ChangeSet::Records& records, NodeId directory, std::size_t limit);
    Result<void> fill_from_records(const ChangeSet::Records& records, NodeId directory, std::size_t limit);

    std::string names_;
    std::vector<Copied> entries_;
    std::uint64_t cookie_ = 0;
    std::size_t seen_ = 0;
    bool is_last_ = false;
};

}  // namespace lamina::unionfs
