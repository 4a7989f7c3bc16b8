#pragma once

#include "fuse/control.h"
#include "fuse/union_fs.h"

#include <functional>
#include <string>

namespace lamina::unionfs {

/// Answers {"ask":"quota"} of a control socket: limits (0: none) and what the changes take. With "limit", as
/// parse_quota() takes it, sets new ones first; `keep` is called before they hold, and may throw. Throws store::Error.
std::string answer_quota(UnionFs& fs, const ControlSession::Members& members,
                         const std::function<void(const QuotaLimits&)>& keep);

}  // namespace lamina::unionfs
