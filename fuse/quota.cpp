// What a change would add is worked out before anything happens, from the records alone. It is exact for data; where a
// change may or may not make a record (an ACL that says no more than the mode), the larger case counts.
#include "fuse/quota.h"

#include "fuse/change_set_records.h"
#include "fuse/posix_acl.h"
#include "store/error.h"
#include "store/file.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

namespace lamina::unionfs {
namespace {

/// What each inode may have of names, xattrs and link targets before they count.
constexpr std::int64_t kFreeMetadataBytes = 1024;
constexpr std::uint64_t kMaxQuotaFileBytes = 256;
constexpr std::string_view kFirstLine = "lamina-quota 1\n";

/// What a set of changes has, or a change adds to it.
struct Amounts {
    std::int64_t data_bytes = 0;
    std::int64_t metadata_bytes = 0;
    std::int64_t inodes = 0;
    QuotaUsage usage() const {
        const std::int64_t charged = std::max<std::int64_t>(0, metadata_bytes - kFreeMetadataBytes * inodes);
        return {.bytes = static_cast<std::uint64_t>(data_bytes + charged),
                .inodes = static_cast<std::uint64_t>(inodes)};
    }
};

Amounts amounts_of(const ChangeSet::Records& records) {
    const SetRecord& set = records.set();
    return {.data_bytes = static_cast<std::int64_t>(set.data_bytes),
            .metadata_bytes = static_cast<std::int64_t>(set.metadata_bytes),
            .inodes = static_cast<std::int64_t>(records.inodes().size())};
}

std::int64_t signed_size(std::string_view text) {
    return static_cast<std::int64_t>(text.size());
}

std::int64_t xattr_bytes(std::string_view name, std::string_view value) {
    return value.empty() ? 0 : signed_size(name) + signed_size(value);
}

/// Own bytes of a file in a range.
std::uint64_t own_bytes_in(const Extents& extents, std::uint64_t begin, std::uint64_t end) {
    std::uint64_t sum = 0;
    for (std::uint64_t at = begin; at < end;) {
        const auto extent = extents.first_behind(at);
        if (!extent || extent->offset_bytes >= end) break;
        const std::uint64_t to = std::min(end, extent->end_bytes());
        if (!extent->is_hole) sum += to - std::max(at, extent->offset_bytes);
        at = to;
    }
    return sum;
}

/// What a change adds, by its kind.
class Growth {
public:
    explicit Growth(const ChangeSet::Records& records) : records_(records) {}

    Result<Amounts> operator()(const change::Make& make) {
        sum_.inodes = 1;
        sum_.metadata_bytes = signed_size(make.name) + signed_size(make.link_target) +
                              xattr_bytes(kAccessAclXattr, make.access_acl) +
                              xattr_bytes(kDefaultAclXattr, make.default_acl);
        return with({make.parent});
    }
    Result<Amounts> operator()(const change::Link& link) {
        sum_.metadata_bytes = signed_size(link.name);
        return with({link.node, link.parent});
    }
    Result<Amounts> operator()(const change::Rename& rename) {
        const auto old = records_.resolve(rename.old_parent, rename.old_name);
        if (!old) return std::unexpected(old.error());
        const auto target = records_.resolve(rename.new_parent, rename.new_name);
        if (!target) return std::unexpected(target.error());
        if (!target->record) sum_.metadata_bytes += signed_size(rename.new_name);
        if (!old->record) sum_.metadata_bytes += signed_size(rename.old_name);  // A whiteout, or the other's new name.
        if (old->record && !old->is_in_view && !rename.is_exchange) sum_.metadata_bytes -= signed_size(rename.old_name);
        return with({old->node, target->node, rename.old_parent, rename.new_parent});
    }
    Result<Amounts> operator()(const change::SetAttributes& set) {
        if (set.mode)
            if (const auto owned = add_view_xattrs(set.node, InodeRecord::kAccessAcl, kAccessAclXattr); !owned)
                return std::unexpected(owned.error());
        if (set.clears_privileges) return changed_data(set.node);
        return with({set.node});
    }
    Result<Amounts> operator()(const change::Resize& resize) {
        if (const InodeRecord* const inode = records_.inode(resize.node)) {
            const std::uint64_t cut = own_bytes_in(records_.extents(*inode), resize.size_bytes, kMaxFileBytes);
            sum_.data_bytes = block_bytes(inode->own_bytes - cut) - block_bytes(inode->own_bytes);
        }
        return changed_data(resize.node);
    }
    Result<Amounts> operator()(const change::Write& write) {
        const InodeRecord* const inode = records_.inode(write.node);
        const std::uint64_t before = inode ? inode->own_bytes : 0;
        const std::uint64_t end = write.offset_bytes + write.size_bytes;
        const std::uint64_t replaced = inode ? own_bytes_in(records_.extents(*inode), write.offset_bytes, end) : 0;
        sum_.data_bytes = block_bytes(before + write.size_bytes - replaced) - block_bytes(before);
        return changed_data(write.node);
    }
    Result<Amounts> operator()(const change::Zero& zero) { return changed_data(zero.node); }
    Result<Amounts> operator()(const change::SetXattr& set) {
        const auto old = records_.xattr(set.node, set.name);
        if (!old) return std::unexpected(old.error());
        sum_.metadata_bytes += signed_size(set.name) + signed_size(set.value);
        if (*old) sum_.metadata_bytes -= signed_size(set.name) + signed_size(**old);
        if (const auto owned = add_view_xattrs(set.node); !owned) return std::unexpected(owned.error());
        return with({set.node});
    }
    // Names and xattrs that go, and what only a checkpoint says.
    template <class Other>
    Result<Amounts> operator()(const Other&) {
        return Amounts{};
    }

private:
    static std::int64_t block_bytes(std::uint64_t own_bytes) {
        return static_cast<std::int64_t>(ChangeSet::Records::block_bytes(own_bytes));
    }
    /// With a record for each of these that has none.
    Result<Amounts> with(std::initializer_list<NodeId> nodes) {
        for (const NodeId* at = nodes.begin(); at != nodes.end(); ++at) {
            const bool is_counted = std::find(nodes.begin(), at, *at) != at;
            if (*at != 0 && !is_counted && !records_.find_inode(*at)) ++sum_.inodes;
        }
        return sum_;
    }
    Result<Amounts> changed_data(NodeId node) {
        if (const auto owned = add_view_xattrs(node, InodeRecord::kCapability, kCapabilityXattr); !owned)
            return std::unexpected(owned.error());
        return with({node});
    }
    /// Where the xattr is there: its removal or change makes the view's xattrs the record's own.
    Result<void> add_view_xattrs(NodeId node, std::uint32_t flag, std::string_view name) {
        const auto has = records_.has_xattr(node, flag, name);
        if (!has) return std::unexpected(has.error());
        if (!*has) return {};
        return add_view_xattrs(node);
    }
    Result<void> add_view_xattrs(NodeId node) {
        const InodeRecord* const inode = records_.inode(node);
        if (inode && (inode->flags & InodeRecord::kOwnXattrs)) return {};
        const auto all = records_.xattrs(node);
        if (!all) return std::unexpected(all.error());
        for (const auto& [name, value] : *all) sum_.metadata_bytes += signed_size(name) + signed_size(value);
        return {};
    }

    const ChangeSet::Records& records_;
    Amounts sum_;
};

bool is_over(std::uint64_t limit, std::uint64_t before, std::uint64_t after) {
    return limit != 0 && after > limit && after > before;
}

[[noreturn]] void refuse(std::string_view text) {
    throw store::Error(store::Errc::malformed,
                       fmt::format("quota {}: expected BYTES or BYTES:INODES, numbers with an optional K, M, G or T",
                                   text.substr(0, 80)));
}

std::uint64_t parse_limit(std::string_view whole, std::string_view text) {
    std::uint64_t number = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
    if (parsed.ec != std::errc()) refuse(whole);
    std::string_view unit = text.substr(static_cast<std::size_t>(parsed.ptr - text.data()));
    unsigned shift = 0;
    if (!unit.empty()) {
        const auto place = std::string_view("KMGT").find(unit[0]);
        if (unit.size() != 1 || place == std::string_view::npos) refuse(whole);
        shift = 10 * static_cast<unsigned>(place + 1);
    }
    if (number > (std::numeric_limits<std::uint64_t>::max() >> 2) >> shift) refuse(whole);
    return number << shift;
}

}  // namespace

QuotaLimits parse_quota(std::string_view text) {
    const std::size_t separator = text.find_first_of(":,");
    QuotaLimits limits{.bytes = parse_limit(text, text.substr(0, separator))};
    if (separator != std::string_view::npos) limits.inodes = parse_limit(text, text.substr(separator + 1));
    return limits;
}

std::optional<QuotaLimits> read_quota(const std::string& mount_folder) {
    const std::string path = mount_folder + "/quota";
    if (!store::exists(path)) return std::nullopt;
    const auto bytes = store::read_file(path, kMaxQuotaFileBytes);
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (!text.starts_with(kFirstLine) || !text.ends_with('\n'))
        throw store::Error(store::Errc::malformed, path + ": damaged; mount with another quota, or remove it");
    const auto limits = text.substr(kFirstLine.size());
    return parse_quota(limits.substr(0, limits.size() - 1));
}

void write_quota(const std::string& mount_folder, const QuotaLimits& limits) {
    const std::string text = fmt::format("{}{}:{}\n", kFirstLine, limits.bytes, limits.inodes);
    store::write_file_atomically(mount_folder + "/quota", store::as_bytes(text));
}

QuotaUsage quota_usage(const ChangeSet::Records& records) {
    return amounts_of(records).usage();
}

Result<void> check_quota(const ChangeSet::Records& records, const QuotaLimits& limits, const change::Change& change) {
    if (!limits.is_set()) return {};
    const auto growth = std::visit(Growth(records), change);
    if (!growth) return std::unexpected(growth.error());
    const Amounts before = amounts_of(records);
    const Amounts after{.data_bytes = before.data_bytes + growth->data_bytes,
                        .metadata_bytes = before.metadata_bytes + growth->metadata_bytes,
                        .inodes = before.inodes + growth->inodes};
    if (is_over(limits.bytes, before.usage().bytes, after.usage().bytes)) return fail(EDQUOT);
    if (is_over(limits.inodes, before.usage().inodes, after.usage().inodes)) return fail(EDQUOT);
    return {};
}

}  // namespace lamina::unionfs
