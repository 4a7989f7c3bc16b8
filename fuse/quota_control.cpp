#include "fuse/quota_control.h"

#include "fuse/json_text.h"
#include "store/error.h"

namespace lamina::unionfs {

std::string answer_quota(UnionFs& fs, const ControlSession::Members& members,
                         const std::function<void(const QuotaLimits&)>& keep) {
    if (const auto limit = members.find("limit"); limit != members.end()) {
        const QuotaLimits limits = parse_quota(limit->second);
        keep(limits);
        if (const auto set = fs.set_quota(limits); !set)
            store::throw_errno(std::to_underlying(set.error()), "counting what the changes take");
    }
    const UnionFs::Quota now = fs.quota();
    return JsonObject()
        .flag("ok", true)
        .number("bytes", now.limits.bytes)
        .number("inodes", now.limits.inodes)
        .number("used_bytes", now.used.bytes)
        .number("used_inodes", now.used.inodes)
        .str();
}

}  // namespace lamina::unionfs
