#include "client/output.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>

namespace lamina::client {

namespace {

constexpr auto kRedrawPause = std::chrono::milliseconds(100);
constexpr unsigned kDefaultWidth = 80;
constexpr unsigned kBarWidth = 24;
constexpr double kRateSeconds = 10;
constexpr double kSampleSeconds = 0.5;
constexpr double kLeastRateSeconds = 1;

unsigned terminal_width() {
    winsize size{};
    if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 20) return kDefaultWidth;
    return size.ws_col;
}

/// Length of a valid UTF-8 character at the start of `text`; 0 when there is none.
std::size_t utf8_length(std::string_view text) {
    const auto lead = static_cast<unsigned char>(text[0]);
    const std::size_t length = lead < 0x80                   ? 1
                               : lead >= 0xf0 && lead < 0xf5 ? 4
                               : lead >= 0xe0 && lead < 0xf0 ? 3
                               : lead >= 0xc2 && lead < 0xe0 ? 2
                                                             : 0;
    if (length == 0 || length > text.size()) return 0;
    for (std::size_t i = 1; i < length; ++i) {
        if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return 0;
    }
    return length;
}

}  // namespace

void Table::add(std::vector<std::string> row) {
    row.resize(columns_.size());
    rows_.push_back(std::move(row));
}

void Table::print() const {
    std::vector<std::size_t> widths;
    for (std::size_t i = 0; i < columns_.size(); ++i) {
        std::size_t width = columns_[i].heading.size();
        for (const auto& row : rows_) width = std::max(width, row[i].size());
        widths.push_back(width);
    }
    std::string out;
    const auto add_line = [&](const auto& cell_of) {
        std::string line;
        for (std::size_t i = 0; i < columns_.size(); ++i) {
            const std::string_view cell = cell_of(i);
            const bool is_last = i + 1 == columns_.size();
            if (columns_[i].is_number) {
                line += fmt::format("{:>{}}", cell, widths[i]);
            } else {
                line += is_last ? std::string(cell) : fmt::format("{:<{}}", cell, widths[i]);
            }
            if (!is_last) line += "  ";
        }
        out += line + "\n";
    };
    add_line([&](std::size_t i) { return std::string_view(columns_[i].heading); });
    for (const auto& row : rows_) {
        add_line([&](std::size_t i) { return std::string_view(row[i]); });
    }
    print_text(out);
}

std::string human_bytes(std::uint64_t bytes) {
    constexpr std::array units{"B", "kB", "MB", "GB", "TB", "PB", "EB"};
    if (bytes < 1000) return fmt::format("{} B", bytes);
    double value = static_cast<double>(bytes);
    std::size_t unit = 0;
    while (value >= 999.5 && unit + 1 < units.size()) {
        value /= 1000;
        ++unit;
    }
    return value < 10 ? fmt::format("{:.2f} {}", value, units[unit])
                      : fmt::format("{:.{}f} {}", value, value < 100 ? 1 : 0, units[unit]);
}

std::string human_age(std::int64_t unix_seconds) {
    const std::int64_t age = std::max<std::int64_t>(0, std::time(nullptr) - unix_seconds);
    struct Step {
        std::int64_t seconds;
        const char* name;
    };
    constexpr std::array steps{Step{86400 * 365, "year"}, Step{86400 * 30, "month"}, Step{86400 * 7, "week"},
                               Step{86400, "day"},        Step{3600, "hour"},        Step{60, "minute"}};
    for (const auto& [seconds, name] : steps) {
        const std::int64_t count = age / seconds;
        if (count > 0) return fmt::format("{} {}{} ago", count, name, count == 1 ? "" : "s");
    }
    return fmt::format("{} second{} ago", age, age == 1 ? "" : "s");
}

std::string short_digest(std::string_view digest) {
    const auto colon = digest.find(':');
    return std::string(digest.substr(colon == std::string_view::npos ? 0 : colon + 1).substr(0, 12));
}

std::string printable(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        const std::size_t length = utf8_length(text);
        const auto byte = static_cast<unsigned char>(text[0]);
        if (length == 0 || byte < 0x20 || byte == 0x7f) {
            out += fmt::format("\\x{:02x}", byte);
            text.remove_prefix(1);
        } else {
            out += text.substr(0, length);
            text.remove_prefix(length);
        }
    }
    return out;
}

void print_text(std::string_view text) {
    while (!text.empty()) {
        const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
        if (written < 0) {
            if (errno == EINTR) continue;
            throw api::FailureError({"connection", std::string("cannot write the output: ") + std::strerror(errno)});
        }
        text.remove_prefix(static_cast<std::size_t>(written));
    }
}

void print_json(const boost::json::value& value) {
    print_text(boost::json::serialize(value) + "\n");
}

void RateWindow::add(double seconds, std::uint64_t done_bytes) {
    if (done_bytes < last_.done_bytes) samples_.clear();
    last_ = {seconds, done_bytes};
    if (samples_.empty() || seconds >= samples_.back().seconds + kSampleSeconds) samples_.push_back(last_);
    while (samples_.size() > 1 && samples_[1].seconds <= seconds - kRateSeconds) samples_.pop_front();
}

double RateWindow::bytes_per_second() const {
    if (samples_.empty()) return 0;
    const double seconds = last_.seconds - samples_.front().seconds;
    if (seconds < kLeastRateSeconds) return 0;
    return static_cast<double>(last_.done_bytes - samples_.front().done_bytes) / seconds;
}

ProgressBar::ProgressBar() : is_terminal_(::isatty(STDERR_FILENO) == 1), started_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() {
    clear();
}

void ProgressBar::clear() {
    if (!is_drawn_) return;
    is_drawn_ = false;
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
}

void ProgressBar::show(const api::Progress& progress) {
    if (!is_terminal_) return;
    const auto now = std::chrono::steady_clock::now();
    if (is_drawn_ && now - drawn_ < kRedrawPause) return;
    drawn_ = now;
    is_drawn_ = true;
    rate_.add(std::chrono::duration<double>(now - started_).count(), progress.done_bytes);
    fmt::print(stderr, "\r{}\033[K", line(progress, terminal_width() - 1));
    std::fflush(stderr);
}

std::string ProgressBar::line(const api::Progress& progress, unsigned width) const {
    std::string text = printable(progress.phase);
    if (progress.total_bytes > 0) {
        const double share =
            std::min(1.0, static_cast<double>(progress.done_bytes) / static_cast<double>(progress.total_bytes));
        const auto filled = static_cast<unsigned>(share * kBarWidth);
        text +=
            fmt::format(" [{}{}] {:3.0f} %  {} of {}", std::string(filled, '#'), std::string(kBarWidth - filled, '-'),
                        share * 100, human_bytes(progress.done_bytes), human_bytes(progress.total_bytes));
        if (const double rate = rate_.bytes_per_second(); rate > 0) {
            const double left =
                static_cast<double>(progress.total_bytes - std::min(progress.done_bytes, progress.total_bytes)) / rate;
            text += fmt::format("  {}/s  {:.0f} s left", human_bytes(static_cast<std::uint64_t>(rate)), left);
        }
    } else if (progress.done_bytes > 0) {
        text += "  " + human_bytes(progress.done_bytes);
    }
    if (!progress.item.empty()) text += "  " + printable(progress.item);
    if (progress.item_total_bytes > 0) {
        text += fmt::format(
            " {} %", 100 * std::min(progress.item_done_bytes, progress.item_total_bytes) / progress.item_total_bytes);
    }
    return text.substr(0, width);
}

boost::json::value post_with_progress(Connection& connection, std::string_view path, const std::string& body) {
    ProgressBar bar;
    return connection.post_stream(path, body, [&](const boost::json::object& event) {
        if (const boost::json::value* const progress = event.if_contains("progress"))
            bar.show(api::parse_reply<api::Progress>(*progress));
        if (const boost::json::value* const notice = event.if_contains("notice")) {
            bar.clear();
            fmt::print(stderr, "lamina: {}\n", printable(api::parse_reply<api::Notice>(*notice).text));
        }
    });
}

}  // namespace lamina::client
