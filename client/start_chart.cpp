// From top to bottom: heading, legend, the curve of bytes, the row of waits, the rows of requests, the axis of time,
// whose lines run behind all of them. Rows become lower where there are many, so that the picture fits a page.
#include "client/start_chart.h"

#include "client/output.h"
#include "client/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

namespace lamina::client {

namespace {

constexpr double kWidth = 1200;
constexpr double kMargin = 30;
constexpr double kLeft = 130;  // Of what lies over time.
constexpr double kRight = 110;
constexpr double kPlot = kWidth - kLeft - kRight;
constexpr double kCurveHeight = 160;
constexpr double kWaitHeight = 26;
constexpr double kMostRowHeight = 22;
constexpr double kLeastRowHeight = 3;
constexpr double kRowsHeight = 900;     // Of all rows, where they can be so low.
constexpr double kLabelledHeight = 14;  // A row of at least this height has words.
constexpr double kLeastWidth = 1.5;     // So that what took no time is seen.
constexpr std::size_t kMostTicks = 8;

constexpr std::string_view kStyle = R"(
  .request, .answer, .wait { stroke-width: 0; }
  .answer { fill-opacity: 0.3; }
  .wait { fill: #d6478a; fill-opacity: 0.65; }
  .curve { fill: none; stroke: #3f7fc4; stroke-width: 2; }
  .below { fill: #3f7fc4; fill-opacity: 0.15; }
  .failed { stroke: #d02b2b; stroke-width: 2; }
  @media (prefers-color-scheme: dark) {
    .curve { stroke: #6aa5e3; }
    .below { fill: #6aa5e3; }
  }
)";

struct Purpose {
    std::string_view kind;
    std::string_view colour;
    std::string_view words;
};
constexpr std::array<Purpose, 4> kPurposes{{{"waited", "#e0695a", "somebody waited for it"},
                                            {"ahead", "#4f93d8", "ahead of who reads on"},
                                            {"trace", "#57a960", "wanted first before (start trace)"},
                                            {"rest", "#8d97a8", "the rest, in the background"}}};

const Purpose& purpose_of(const std::string& kind) {
    const auto* const found = std::ranges::find(kPurposes, kind, &Purpose::kind);
    return found == kPurposes.end() ? kPurposes.back() : *found;
}

std::string title_of(const api::ExplainedRequest& request) {
    std::string title =
        fmt::format("{}: {} of {} from {}; answered after {}, over after {}", request.kind, human_bytes(request.bytes),
                    human_bytes(request.blob_end - request.blob_first), request.source,
                    human_time(request.first_byte_us - request.sent_us), human_time(request.end_us - request.sent_us));
    if (request.failures > 0) title += fmt::format("; {} tries failed", request.failures);
    return request.error.empty() ? title : title + "; " + request.error;
}

std::string title_of(const api::ExplainedWait& wait) {
    std::string title = human_time(wait.end_us - wait.begin_us) + " for " + human_bytes(wait.size_bytes);
    for (std::size_t i = 0; i < wait.paths.size(); ++i) title += (i == 0 ? " of " : ", ") + wait.paths[i];
    return wait.error.empty() ? title : title + "; " + wait.error;
}

class Chart {
public:
    explicit Chart(const api::Explanation& explanation) : explanation_(explanation), start_(explanation.start) {
        span_us_ = std::max<std::int64_t>(start_.end_us - start_.begun_us, 1000);
    }

    std::string draw() {
        draw_heading();
        draw_legend();
        top_ = at_;
        draw_curve();
        draw_waits();
        draw_requests();
        draw_axis();
        const std::string title = "Start of " + explanation_.image;
        return svg_page({.title = title,
                         .width = kWidth,
                         .height = at_ + kMargin,
                         .style = kStyle,
                         .definitions = {},
                         .body = behind_ + body_});
    }

private:
    void draw_heading();
    void draw_legend();
    void draw_curve();
    void draw_waits();
    void draw_requests();
    void draw_request(const api::ExplainedRequest& request, double height);
    void draw_axis();
    void text(double x, double y, std::string_view attributes, const std::string& words) {
        body_ += svg_text(x, y, attributes, words);
    }
    double x_of(std::int64_t unix_us) const {
        const auto since = std::clamp<std::int64_t>(unix_us - start_.begun_us, 0, span_us_);
        return kLeft + kPlot * static_cast<double>(since) / static_cast<double>(span_us_);
    }
    double bytes_at(std::int64_t unix_us) const;

    const api::Explanation& explanation_;
    const api::ExplainedStart& start_;
    std::int64_t span_us_ = 0;
    std::string behind_;
    std::string body_;
    double top_ = 0;
    double at_ = 0;  ///< Where the next part begins.
};

void Chart::draw_heading() {
    text(kMargin, 46, R"(class="heading")", svg_cut("Start of " + explanation_.image, 80));
    std::string words = fmt::format("{} requests brought {} in {}. ", start_.request_count,
                                    human_bytes(start_.fetched_bytes), human_time(span_us_));
    words += start_.wait_count == 0
                 ? "Nobody waited."
                 : fmt::format("Programs waited {} times, {} in all.", start_.wait_count, human_time(start_.wait_us));
    if (!explanation_.path.empty()) words += " Only what has to do with " + explanation_.path + ".";
    text(kMargin, 74, R"(class="quiet")", svg_cut(words, 150));
    at_ = 92;
}

void Chart::draw_legend() {
    double x = kMargin;
    const auto entry = [&](const std::string& fill, std::string_view words) {
        body_ +=
            fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"14\" height=\"14\" rx=\"2\" {}/>\n", x, at_, fill);
        text(x + 20, at_ + 12, "", std::string(words));
        x += 34 + 7.6 * static_cast<double>(words.size());
    };
    for (const Purpose& purpose : kPurposes) entry(fmt::format("fill=\"{}\"", purpose.colour), purpose.words);
    entry("class=\"wait\"", "a program waits");
    at_ += 34;
}

double Chart::bytes_at(std::int64_t unix_us) const {
    double bytes = 0;
    for (const api::ExplainedRequest& request : start_.requests) {
        const auto took = std::max<std::int64_t>(request.end_us - request.first_byte_us, 1);
        const auto done = std::clamp<std::int64_t>(unix_us - request.first_byte_us, 0, took);
        bytes += static_cast<double>(request.bytes) * static_cast<double>(done) / static_cast<double>(took);
    }
    return bytes;
}

void Chart::draw_curve() {
    std::vector<std::int64_t> times{start_.begun_us, start_.begun_us + span_us_};
    for (const api::ExplainedRequest& request : start_.requests) {
        for (const std::int64_t time : {request.first_byte_us, request.end_us}) {
            if (time > times[0] && time < times[1]) times.push_back(time);
        }
    }
    std::ranges::sort(times);
    const double most = std::max(bytes_at(times.back()), 1.0);
    const double base = at_ + kCurveHeight;
    std::string points;
    for (const std::int64_t time : times) {
        points += fmt::format("{:.1f},{:.1f} ", x_of(time), base - (kCurveHeight - 14) * bytes_at(time) / most);
    }
    body_ += fmt::format("<polygon class=\"below\" points=\"{:.1f},{:.1f} {}{:.1f},{:.1f}\"/>\n", kLeft, base, points,
                         kLeft + kPlot, base);
    body_ += fmt::format("<polyline class=\"curve\" points=\"{}\"/>\n", points);
    body_ += fmt::format("<line class=\"line\" x1=\"{0}\" y1=\"{1:.1f}\" x2=\"{2}\" y2=\"{1:.1f}\"/>\n", kLeft, base,
                         kLeft + kPlot);
    text(kMargin, at_ + 18, "", "bytes come");
    text(kLeft + kPlot + 8, at_ + 18, "", human_bytes(static_cast<std::uint64_t>(most)));
    at_ = base + 12;
}

void Chart::draw_waits() {
    text(kMargin, at_ + 18, "", "waits");
    body_ += fmt::format("<rect class=\"track\" x=\"{}\" y=\"{:.1f}\" width=\"{}\" height=\"{}\" rx=\"2\"/>\n", kLeft,
                         at_, kPlot, kWaitHeight);
    for (const api::ExplainedWait& wait : start_.waits) {
        const double x = x_of(wait.begin_us);
        body_ += fmt::format(
            "<rect class=\"wait\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" "
            "height=\"{:.1f}\"><title>{}</title></rect>\n",
            x, at_ + 3, std::max(kLeastWidth, x_of(wait.end_us) - x), kWaitHeight - 6, svg_escaped(title_of(wait)));
    }
    text(kLeft + kPlot + 8, at_ + 18, "", human_time(start_.wait_us));
    at_ += kWaitHeight + 14;
}

void Chart::draw_requests() {
    text(kMargin, at_ + 14, "", "requests");
    const auto count = static_cast<double>(std::max<std::size_t>(start_.requests.size(), 1));
    const double height = std::clamp(kRowsHeight / count, kLeastRowHeight, kMostRowHeight);
    for (const api::ExplainedRequest& request : start_.requests) {
        draw_request(request, height);
        at_ += height;
    }
    if (start_.requests.empty()) {
        text(kLeft + 8, at_ + 14, R"(class="quiet")", "none");
        at_ += kMostRowHeight;
    }
    at_ += 8;
}

/// Faint until it is answered.
void Chart::draw_request(const api::ExplainedRequest& request, double height) {
    const Purpose& purpose = purpose_of(request.kind);
    const double sent = x_of(request.sent_us);
    const double answered = x_of(request.first_byte_us);
    const double width = std::max(kLeastWidth, x_of(request.end_us) - answered);
    const double gap = height > 8 ? 2 : 0.5;
    body_ += fmt::format(
        "<rect class=\"answer\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>\n", sent,
        at_ + gap, answered - sent, height - 2 * gap, purpose.colour);
    body_ += fmt::format(
        "<rect class=\"request{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\" "
        "data-kind=\"{}\" data-bytes=\"{}\"><title>{}</title></rect>\n",
        request.error.empty() ? "" : " failed", answered, at_ + gap, width, height - 2 * gap, purpose.colour,
        purpose.kind, request.bytes, svg_escaped(title_of(request)));
    if (height < kLabelledHeight) return;
    text(answered + width + 5, at_ + height / 2 + 4.5, R"(class="quiet")", human_bytes(request.bytes));
}

/// At steps of 1, 2 or 5 times a power of ten.
void Chart::draw_axis() {
    std::int64_t step_us = 1;
    for (std::size_t i = 0; span_us_ / step_us > static_cast<std::int64_t>(kMostTicks); ++i) {
        step_us = i % 3 == 1 ? step_us / 2 * 5 : step_us * 2;
    }
    for (std::int64_t time = 0; time <= span_us_; time += step_us) {
        const double x = x_of(start_.begun_us + time);
        behind_ += fmt::format("<line class=\"line\" x1=\"{0:.1f}\" y1=\"{1:.1f}\" x2=\"{0:.1f}\" y2=\"{2:.1f}\"/>\n",
                               x, top_, at_);
        text(x, at_ + 16, R"(class="quiet" text-anchor="middle")", time == 0 ? "mounted" : human_time(time));
    }
    at_ += 20;
}

}  // namespace

std::string human_time(std::int64_t microseconds) {
    const double seconds = static_cast<double>(std::max<std::int64_t>(microseconds, 0)) / 1e6;
    if (seconds < 1e-3) return fmt::format("{:.0f} µs", seconds * 1e6);
    if (seconds < 1) return fmt::format("{:.{}f} ms", seconds * 1e3, seconds < 0.1 ? 1 : 0);
    if (seconds < 100) return fmt::format("{:.{}f} s", seconds, seconds < 10 ? 2 : 1);
    return fmt::format("{:.0f} min", seconds / 60);
}

std::string start_chart(const api::Explanation& explanation) {
    if (explanation.start.mount.empty()) {
        throw api::FailureError({"not_found", explanation.image +
                                                  ": no start of it is known: it was not mounted while it "
                                                  "was lazy, or the fetch log has forgotten it"});
    }
    return Chart(explanation).draw();
}

}  // namespace lamina::client
