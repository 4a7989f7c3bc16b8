#include "store/meter.h"

#include <algorithm>
#include <utility>

namespace lamina::store {

namespace {

constexpr std::uint64_t kReportEveryBytes = 1 << 20;

}  // namespace

void Meter::expect(std::uint64_t total_bytes) {
    const std::lock_guard lock(mutex_);
    total_bytes_ = total_bytes;
}

void Meter::begin(const std::string& phase, const std::string& item) {
    const std::lock_guard lock(mutex_);
    report(phase, item);
}

void Meter::advance(std::uint64_t bytes, const std::string& phase, const std::string& item) {
    const std::lock_guard lock(mutex_);
    done_bytes_ += bytes;
    if (done_bytes_ >= reported_bytes_ + kReportEveryBytes || (total_bytes_ > 0 && done_bytes_ >= total_bytes_)) {
        report(phase, item);
    }
}

void Meter::report(const std::string& phase, const std::string& item) {
    reported_bytes_ = done_bytes_;
    if (!function_) return;
    const std::uint64_t done_bytes = total_bytes_ ? std::min(done_bytes_, total_bytes_) : done_bytes_;
    function_({phase, item, done_bytes, total_bytes_});
}

Meter::Part::Part(Meter& meter, std::string phase, std::string item)
    : meter_(meter), phase_(std::move(phase)), item_(std::move(item)) {
    meter_.begin(phase_, item_);
}

void Meter::Part::reach(std::uint64_t done_bytes) {
    if (done_bytes <= done_bytes_) return;
    meter_.advance(done_bytes - std::exchange(done_bytes_, done_bytes), phase_, item_);
}

}  // namespace lamina::store
