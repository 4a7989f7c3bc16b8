#pragma once

#include "client/api.h"
#include "client/connection.h"

#include <boost/json.hpp>

#include <chrono>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::client {

/// Rows under headings, columns two blanks apart. Numbers are put to the right when `right` says so.
class Table {
public:
    struct Column {
        std::string heading;
        bool is_number = false;
    };
    explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
    void add(std::vector<std::string> row);
    void print() const;

private:
    std::vector<Column> columns_;
    std::vector<std::vector<std::string>> rows_;
};

std::string human_bytes(std::uint64_t bytes);       ///< "1.5 MB"; powers of 1000, as podman prints.
std::string human_age(std::int64_t unix_seconds);   ///< "3 hours ago"
std::string short_digest(std::string_view digest);  ///< 12 hex digits.
std::string printable(std::string_view text);       ///< Control characters and bytes that are no UTF-8 become \xNN.

/// One JSON text on standard output, with a newline.
void print_json(const boost::json::value& value);
/// Writes to standard output; FailureError when it cannot (a full disk, a closed pipe).
void print_text(std::string_view text);

/// Bytes a second over the last ten seconds: what a job found done at its start, or a pause, must not show for long.
class RateWindow {
public:
    void add(double seconds, std::uint64_t done_bytes);  ///< Begins anew when the bytes go back.
    double bytes_per_second() const;                     ///< 0 as long as a second has not passed.

private:
    struct Sample {
        double seconds;
        std::uint64_t done_bytes;
    };
    std::deque<Sample> samples_;
    Sample last_{0, 0};
};

/// Progress of one command on standard error: a bar that redraws itself on a terminal, nothing in a pipe.
class ProgressBar {
public:
    ProgressBar();
    ~ProgressBar();
    void show(const api::Progress& progress);
    void clear();

private:
    std::string line(const api::Progress& progress, unsigned width) const;
    bool is_terminal_;
    bool is_drawn_ = false;
    std::chrono::steady_clock::time_point started_;
    std::chrono::steady_clock::time_point drawn_;
    RateWindow rate_;
};

/// Posts what takes long, draws its progress, and returns its result.
boost::json::value post_with_progress(Connection& connection, std::string_view path, const std::string& body);

}  // namespace lamina::client
