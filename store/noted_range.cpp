#include "store/noted_range.h"

#include "store/error.h"

#include <algorithm>
#include <utility>

namespace lamina::store {

NotedRange::NotedRange(FetchLog& log, RangeRequest request, std::unique_ptr<RegistryRange> range)
    : log_(log), request_(std::move(request)), range_(std::move(range)) {
    request_.sent_us = log_.new_stamp();
}

NotedRange::~NotedRange() {
    if (!is_noted_) request_.error = "given up";
    note();
}

template <class Work>
auto NotedRange::noting_errors(Work&& work) {
    try {
        return work();
    } catch (const Error& error) {  // The log's readers want to know, too.
        request_.error = error.what();
        note();
        throw;
    }
}

std::size_t NotedRange::read(std::span<std::byte> out) {
    const std::size_t count = noting_errors([&] { return range_->read(out); });
    if (request_.bytes == 0) request_.first_byte_us = log_.now_us();
    request_.bytes += count;
    return count;
}

void NotedRange::end() {
    noting_errors([&] { read_to_end(*range_); });
    note();
}

void NotedRange::note() {
    if (std::exchange(is_noted_, true)) return;
    // Its name may be ahead of the clock.
    request_.end_us = std::max(request_.sent_us, log_.now_us());
    request_.first_byte_us = request_.bytes == 0 ? request_.end_us : std::max(request_.sent_us, request_.first_byte_us);
    request_.source = range_->place().name();
    request_.failures = range_->failures();
    log_.add(request_);
}

}  // namespace lamina::store
