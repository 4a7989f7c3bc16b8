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
    report({.phase = phase, .item = item}, 0);
}

void Meter::advance(std::uint64_t bytes, const Part::What& what, std::uint64_t item_done_bytes) {
    const std::lock_guard lock(mutex_);
    done_bytes_ += bytes;
    if (done_bytes_ >= reported_bytes_ + kReportEveryBytes || (total_bytes_ > 0 && done_bytes_ >= total_bytes_)) {
        report(what, item_done_bytes);
    }
}

void Meter::report(const Part::What& what, std::uint64_t item_done_bytes) {
    reported_bytes_ = done_bytes_;
    if (!function_) return;
    const std::uint64_t done_bytes = total_bytes_ ? std::min(done_bytes_, total_bytes_) : done_bytes_;
    function_({what.phase, what.item, done_bytes, total_bytes_, item_done_bytes, what.item_total_bytes});
}

Meter::Part::Part(Meter& meter, What what) : meter_(meter), what_(std::move(what)) {
    const std::lock_guard lock(meter_.mutex_);
    meter_.report(what_, 0);
}

void Meter::Part::reach(std::uint64_t done_bytes) {
    if (done_bytes <= done_bytes_) return;
    meter_.advance(done_bytes - std::exchange(done_bytes_, done_bytes), what_, done_bytes);
}

}  // namespace lamina::store
