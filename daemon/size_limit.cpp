#include "daemon/size_limit.h"

#include "daemon/log.h"
#include "store/error.h"
#include "store/printable.h"

#include <fmt/format.h>

namespace lamina::daemon {

std::vector<std::string> SizeLimit::keep(const std::vector<store::ImageSummary>& brought,
                                         const std::stop_token& stop) const {
    if (max_bytes_ == 0) return {};
    std::vector<std::string> lines;
    try {
        store::SizeLimitRequest request{.max_bytes = max_bytes_, .idle_mounts = mounts_.idle(), .keep = {}};
        for (const store::ImageSummary& image : brought) request.keep.push_back(image.config);
        lines = lines_of(store_.limit_size(request, stop));
    } catch (const store::Error& error) {  // The next one goes on from there.
        if (error.code() == store::Errc::cancelled) return {};
        lines.push_back(fmt::format("the store's limit of {} bytes cannot be kept: {}", max_bytes_, error.what()));
    }
    for (const std::string& line : lines) log::warning(line);
    return lines;
}

std::vector<std::string> SizeLimit::lines_of(const store::SizeLimitReport& report) const {
    std::vector<std::string> lines;
    for (const std::string& name : report.removed) {
        lines.push_back(fmt::format("removed image {}, which was used longest ago: the store may have {} bytes",
                                    store::quote(name), max_bytes_));
    }
    if (report.is_met) return lines;
    lines.push_back(fmt::format(
        "the store has {} bytes and may have {}: everything left is pinned, mounted, in use or the last that was used",
        report.store_bytes, max_bytes_));
    return lines;
}

}  // namespace lamina::daemon
