#pragma once

#include "fuse/change.h"
#include "fuse/change_set.h"
#include "fuse/result.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lamina::unionfs {

/// What the changes of a mount may take at most (fuse/SEMANTICS.md, "Quotas"). 0: no limit.
struct QuotaLimits {
    std::uint64_t bytes = 0;
    std::uint64_t inodes = 0;
    bool is_set() const noexcept { return bytes != 0 || inodes != 0; }
    bool operator==(const QuotaLimits&) const = default;
};

/// What they take.
struct QuotaUsage {
    std::uint64_t bytes = 0;
    std::uint64_t inodes = 0;
    bool operator==(const QuotaUsage&) const = default;
};

/// "BYTES", "BYTES:INODES" or "BYTES,INODES"; each a number with an optional K, M, G or T (of 1024), 0 for no limit.
/// Throws store::Error(malformed).
QuotaLimits parse_quota(std::string_view text);

/// The limits of a mount that Lamina keeps, in <mount folder>/quota (fuse/FORMAT.md, "Quota"), so that they hold at the
/// next mount too. Reading: nullopt when there is no such file; malformed.
std::optional<QuotaLimits> read_quota(const std::string& mount_folder);
void write_quota(const std::string& mount_folder, const QuotaLimits& limits);

/// What a set of changes takes. Depends on the set alone, so that it is the same after the next mount.
QuotaUsage quota_usage(const ChangeSet::Records& records);

/// EDQUOT when a change would bring the set over a limit, or further over it. Removing is never refused, nor is
/// anything that takes no more than before. Nothing is changed.
Result<void> check_quota(const ChangeSet::Records& records, const QuotaLimits& limits, const change::Change& change);

}  // namespace lamina::unionfs
