#include "store/explain.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace lamina::store {

namespace {

constexpr std::int64_t kSlowAnswerUs = 500'000;
constexpr double kSlowBytesPerSecond = 1e6;
constexpr std::uint64_t kEnoughBytes = 1 << 20;  ///< To judge a source by.

std::string megabytes(std::uint64_t bytes) {
    return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
}

/// Over all layers and purposes.
std::map<std::string, Explanation::Fetched> by_source(const Explanation& explanation) {
    std::map<std::string, Explanation::Fetched> sources;
    for (const Explanation::Layer& layer : explanation.layers) {
        for (const Explanation::Fetched& fetched : layer.fetched) {
            Explanation::Fetched& sum = sources[fetched.source];
            const std::uint64_t requests = sum.requests + fetched.requests;
            sum.first_byte_us = (sum.first_byte_us * static_cast<std::int64_t>(sum.requests) +
                                 fetched.first_byte_us * static_cast<std::int64_t>(fetched.requests)) /
                                static_cast<std::int64_t>(requests);
            sum.requests = requests;
            sum.failures += fetched.failures;
            sum.bytes += fetched.bytes;
            sum.transfer_us += fetched.transfer_us;
        }
    }
    return sources;
}

void add_source_hints(const Explanation& explanation, std::vector<std::string>& hints) {
    for (const auto& [source, sum] : by_source(explanation)) {
        if (sum.failures > 0) hints.push_back(fmt::format("{} failed {} times", source, sum.failures));
        const double rate =
            static_cast<double>(sum.bytes) * 1e6 / static_cast<double>(std::max<std::int64_t>(sum.transfer_us, 1));
        if (sum.first_byte_us > kSlowAnswerUs) {
            hints.push_back(
                fmt::format("{} answers after {} ms on an average: a mirror that is nearer would help "
                            "(containers-registries.conf)",
                            source, sum.first_byte_us / 1000));
        } else if (sum.bytes >= kEnoughBytes && rate < kSlowBytesPerSecond) {
            hints.push_back(
                fmt::format("{} gives {:.2f} MB a second: a faster mirror would help "
                            "(containers-registries.conf)",
                            source, rate / 1e6));
        }
    }
}

void add_trace_hint(const Explanation& explanation, const TracedBytes& trace, std::vector<std::string>& hints) {
    if (!explanation.start || trace.traced == 0) return;
    const auto is_traced = [](const RangeRequest& request) { return request.kind == FetchKind::trace; };
    const bool had_trace = std::ranges::any_of(explanation.start->requests, is_traced);
    hints.push_back(fmt::format("{} {} of the {} that were waited for; lamina push --index {} publishes it for others",
                                had_trace ? "the start trace was not early enough for"
                                          : "a start trace, as there is one now, would have fetched ahead",
                                megabytes(trace.traced), megabytes(trace.waited), explanation.image));
}

}  // namespace

std::vector<std::string> hints_for(const Explanation& explanation, const TracedBytes& trace) {
    std::vector<std::string> hints;
    const std::string& image = explanation.image;
    const auto has_state = [&](LayerState state) {
        return std::ranges::any_of(explanation.layers, [&](const auto& layer) { return layer.state == state; });
    };
    if (has_state(LayerState::quarantined)) {
        hints.push_back(
            fmt::format("what was published of it is not true: lamina rmi {0}, lamina gc, then lamina pull {0} "
                        "without --lazy",
                        image));
    }
    if (std::ranges::any_of(explanation.layers, &Explanation::Layer::lacks_index)) {
        hints.push_back(fmt::format("lamina push --index {} publishes what others need to pull it lazily", image));
    }
    std::uint64_t missing_bytes = 0;
    for (const Explanation::Layer& layer : explanation.layers) missing_bytes += layer.missing_bytes;
    if (missing_bytes > 0) {
        hints.push_back(fmt::format("{} are missing: lamina complete {} fetches them, and lets who reads go first",
                                    megabytes(missing_bytes), image));
    }
    add_trace_hint(explanation, trace, hints);
    add_source_hints(explanation, hints);
    return hints;
}

}  // namespace lamina::store
