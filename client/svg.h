#pragma once

#include <cstddef>
#include <string>
#include <string_view>

/// What the pictures for people have in common: pages that suit light and dark backgrounds, and text that is safe.
namespace lamina::client {

/// For text and attributes of XML.
std::string svg_escaped(std::string_view text);
/// At most so many letters (of UTF-8), the last of them "…" when some are missing.
std::string svg_cut(const std::string& text, std::size_t limit);
/// A line of text; `attributes` as they stand in the element.
std::string svg_text(double x, double y, std::string_view attributes, std::string_view words);

/// The classes page, heading, quiet, line and track are there; `style` holds the others as CSS.
struct SvgPage {
    std::string_view title;
    double width = 0;
    double height = 0;
    std::string_view style;
    std::string_view definitions;
    std::string_view body;
};
std::string svg_page(const SvgPage& page);

/// FailureError "usage" for a file that is to be drawn and is no .svg.
void check_chart_path(const std::string& path);
/// FailureError "unavailable" when it cannot be written.
void write_chart(const std::string& path, const std::string& chart);

}  // namespace lamina::client
