#include "client/svg.h"

#include "client/api.h"
#include "client/output.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace lamina::client {

namespace {

constexpr std::string_view kStyle = R"(
  text { font-family: "DejaVu Sans", "Helvetica Neue", Arial, sans-serif; font-size: 13px; fill: #1f2430; }
  .page { fill: #ffffff; }
  .heading { font-size: 22px; font-weight: bold; }
  .quiet { fill: #5b6475; }
  .line { stroke: #d5d9e2; stroke-width: 1; }
  .track { fill: #e9ecf2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8ebf2; }
    .page { fill: #14171f; }
    .quiet { fill: #a3acbd; }
    .line { stroke: #343b49; }
    .track { fill: #272d39; }
  }
)";

}  // namespace

std::string svg_escaped(std::string_view text) {
    std::string out;
    for (const char letter : printable(text)) {
        if (letter == '&') {
            out += "&amp;";
        } else if (letter == '<') {
            out += "&lt;";
        } else if (letter == '>') {
            out += "&gt;";
        } else if (letter == '"') {
            out += "&quot;";
        } else {
            out += letter;
        }
    }
    return out;
}

std::string svg_cut(const std::string& text, std::size_t limit) {
    std::size_t letters = 0;
    std::size_t keep = 0;
    for (std::size_t at = 0; at < text.size(); ++at) {
        if ((static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) continue;
        if (++letters == limit) keep = at;
    }
    if (letters <= limit) return text;
    return limit == 0 ? std::string() : text.substr(0, keep) + "…";
}

std::string svg_text(double x, double y, std::string_view attributes, std::string_view words) {
    return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" {}>{}</text>\n", x, y, attributes, svg_escaped(words));
}

std::string svg_page(const SvgPage& page) {
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1:.0f}\" width=\"{0}\" height=\"{1:.0f}\" "
        "role=\"img\">\n<title>{2}</title>\n<style>{3}{4}</style>\n<defs>\n{5}</defs>\n"
        "<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n{6}</svg>\n",
        page.width, page.height, svg_escaped(page.title), kStyle, page.style, page.definitions, page.body);
}

void check_chart_path(const std::string& path) {
    if (path.empty() || path.ends_with(".svg")) return;
    throw api::FailureError({"usage", "chart " + path + ": only .svg is drawn; rsvg-convert makes a PNG of that"});
}

void write_chart(const std::string& path, const std::string& chart) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << chart;
    file.close();
    if (!file)
        throw api::FailureError({"unavailable", "chart " + path + ": cannot be written: " + std::strerror(errno)});
}

}  // namespace lamina::client
