// The picture is put together from top to bottom: heading, areas, rows of images, shares of pairs. Widths of text are
// estimated, as nothing here knows the font; what might be too long is cut. The colours of areas suit both
// backgrounds, so that only page and text change with them.
#include "client/chart.h"

#include "client/output.h"
#include "client/svg.h"
#include "client/treemap.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <string_view>
#include <vector>

namespace lamina::client {

namespace {

constexpr double kWidth = 1200;
constexpr double kMargin = 30;
constexpr double kInner = kWidth - 2 * kMargin;
constexpr double kAreaTop = 96;
constexpr double kAreaHeight = 560;
constexpr double kRowHeight = 26;
constexpr double kLetterWidth = 8.3;     // Of bold text of 13 px, rather too much.
constexpr std::size_t kMostStripes = 5;  // Colours of one shared area.
constexpr std::size_t kMostRows = 40;    // Images that are listed.
constexpr std::size_t kMostPairs = 14;   // Images that are compared with each other.
constexpr std::size_t kMostNameLetters = 34;

constexpr std::string_view kStyle = R"(
  .inside { fill: #14171f; }
  .area { stroke: #ffffff; stroke-width: 1.5; }
  .own { fill: #c3c9d4; }
  .plate { fill: #ffffff; fill-opacity: 0.8; }
  .pair { fill: #3f7fc4; }
  @media (prefers-color-scheme: dark) {
    .area { stroke: #14171f; }
    .own { fill: #8791a3; }
    .pair { fill: #6aa5e3; }
  }
)";

constexpr std::array<std::string_view, 12> kColours{"#7fb4e6", "#f3b26b", "#8fce8b", "#e995a8", "#b9a3e8", "#70cfc3",
                                                    "#e6d36c", "#d99fd6", "#a9c46c", "#f09b7d", "#93a9dc", "#c8b08f"};

std::string_view colour_of(std::size_t image) {
    return kColours[image % kColours.size()];
}

std::string name_of(const api::ImageUsage& image) {
    return image.name.empty() ? short_digest(image.id) : image.name;
}

/// One area of the picture.
struct Area {
    std::uint64_t bytes = 0;
    std::string title;
    std::vector<std::uint32_t> images;  ///< None: the store's own.
};

std::string title_of(const api::Usage& usage, const std::vector<std::uint32_t>& images) {
    std::string names;
    for (const std::uint32_t image : images) names += (names.empty() ? "" : ", ") + name_of(usage.images[image]);
    if (images.size() == 1) return names + " alone";
    return images.size() > 1 ? "shared by " + names : "shared by various images";
}

/// The largest first. Together all that the store has on disk.
std::vector<Area> areas_of(const api::Usage& usage) {
    std::vector<Area> areas;
    std::uint64_t used_bytes = 0;
    for (const api::ShareUsage& share : usage.shares) {
        const bool is_known = std::ranges::all_of(share.images, [&](auto i) { return i < usage.images.size(); });
        if (!is_known) api::bad_reply("a share is of no image");
        areas.push_back({share.stored_bytes, title_of(usage, share.images), share.images});
        used_bytes += share.stored_bytes;
    }
    const std::uint64_t rest_bytes = usage.pack_bytes - std::min(usage.pack_bytes, used_bytes);
    areas.push_back({rest_bytes, "chunks of no image, and tables of packs", {}});
    areas.push_back({usage.recipe_bytes, "recipes of layers", {}});
    areas.push_back({usage.tree_bytes, "trees of images", {}});
    areas.push_back({usage.index_bytes, "index", {}});
    areas.push_back({usage.mount_bytes, "mounts and their changes", {}});
    areas.push_back({usage.other_bytes, "other files", {}});
    std::erase_if(areas, [](const Area& area) { return area.bytes == 0; });
    std::ranges::stable_sort(areas, std::greater<>(), &Area::bytes);
    return areas;
}

class Chart {
public:
    explicit Chart(const api::Usage& usage) : usage_(usage), areas_(areas_of(usage)) {}

    std::string draw() {
        draw_heading();
        draw_areas();
        draw_images();
        draw_pairs();
        return svg_page({.title = "What the store has on disk",
                         .width = kWidth,
                         .height = at_ + kMargin,
                         .style = kStyle,
                         .definitions = patterns_,
                         .body = body_});
    }

private:
    void draw_heading();
    void draw_areas();
    void draw_area(const Area& area, const Rectangle& place);
    void draw_label(const Area& area, const Rectangle& place);
    void draw_images();
    void draw_row(std::size_t image, double scale_bytes);
    void draw_pairs();
    void draw_pair_cell(std::size_t row, std::size_t column, const Rectangle& place);
    std::string fill_of(const Area& area);
    void text(double x, double y, const std::string& classes, const std::string& words);
    std::uint64_t total_bytes() const;
    std::uint64_t shared_bytes(std::size_t one, std::size_t other) const;

    const api::Usage& usage_;
    const std::vector<Area> areas_;
    std::string body_;
    std::string patterns_;
    std::size_t pattern_count_ = 0;
    double at_ = 0;  ///< Where the next part begins.
};

void Chart::text(double x, double y, const std::string& classes, const std::string& words) {
    body_ += svg_text(x, y, classes, words);
}

std::uint64_t Chart::total_bytes() const {
    return std::accumulate(areas_.begin(), areas_.end(), std::uint64_t{0},
                           [](std::uint64_t sum, const Area& area) { return sum + area.bytes; });
}

void Chart::draw_heading() {
    text(kMargin, 46, R"(class="heading")", "What the store has on disk");
    text(kMargin, 74, R"(class="quiet")",
         fmt::format("{} images with {} of files take {}. One colour: an image alone; stripes: shared by these; grey: "
                     "the store's own.",
                     usage_.images.size(), human_bytes(usage_.logical_bytes), human_bytes(total_bytes())));
    at_ = kAreaTop;
}

/// One colour, or stripes of those who share it.
std::string Chart::fill_of(const Area& area) {
    if (area.images.size() == 1) return fmt::format("fill=\"{}\"", colour_of(area.images[0]));
    if (area.images.empty()) return "";
    const std::size_t count = std::min(area.images.size(), kMostStripes);
    constexpr double kStripe = 14;
    patterns_ += fmt::format(
        "<pattern id=\"stripes{}\" width=\"{:.0f}\" height=\"20\" patternUnits=\"userSpaceOnUse\" "
        "patternTransform=\"rotate(45)\">\n",
        pattern_count_, kStripe * static_cast<double>(count));
    for (std::size_t i = 0; i < count; ++i) {
        patterns_ += fmt::format("<rect x=\"{:.0f}\" width=\"{:.0f}\" height=\"20\" fill=\"{}\"/>\n",
                                 kStripe * static_cast<double>(i), kStripe + 0.5, colour_of(area.images[i]));
    }
    patterns_ += "</pattern>\n";
    return fmt::format("fill=\"url(#stripes{})\"", pattern_count_++);
}

void Chart::draw_areas() {
    std::vector<double> sizes;
    for (const Area& area : areas_) sizes.push_back(static_cast<double>(area.bytes));
    const auto places = squarified({kMargin, at_, kInner, kAreaHeight}, sizes);
    for (std::size_t i = 0; i < areas_.size(); ++i) draw_area(areas_[i], places[i]);
    at_ += kAreaHeight;
}

void Chart::draw_area(const Area& area, const Rectangle& place) {
    body_ += fmt::format(
        "<rect class=\"area{}\" x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" rx=\"2\" {} "
        "data-bytes=\"{}\"><title>{}: {} ({} bytes)</title></rect>\n",
        area.images.empty() ? " own" : "", place.x, place.y, place.width, place.height, fill_of(area), area.bytes,
        svg_escaped(area.title), human_bytes(area.bytes), area.bytes);
    draw_label(area, place);
}

void Chart::draw_label(const Area& area, const Rectangle& place) {
    constexpr double kLine = 17;
    constexpr double kLeast = 70;
    if (place.width < kLeast || place.height < 2 * kLine + 8) return;
    const auto letters = static_cast<std::size_t>((place.width - 20) / kLetterWidth);
    const std::string title = svg_cut(area.title, letters);
    const std::string size = svg_cut(human_bytes(area.bytes), letters);
    if (area.images.size() > 1) {
        const double width = std::min(place.width - 8, kLetterWidth * static_cast<double>(title.size()) + 14);
        body_ += fmt::format(
            "<rect class=\"plate\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.0f}\" rx=\"3\"/>\n",
            place.x + 4, place.y + 4, width, 2 * kLine + 5);
    }
    text(place.x + 10, place.y + 4 + kLine - 2, R"(class="inside" font-weight="bold")", title);
    text(place.x + 10, place.y + 4 + 2 * kLine - 2, R"(class="inside")", size);
}

void Chart::draw_images() {
    if (usage_.images.empty()) return;
    at_ += 44;
    text(kMargin + 24, at_, R"(font-weight="bold")", "Image");
    text(kMargin + 300, at_, R"(font-weight="bold")", "Stored for it: alone, and with others (faint)");
    for (const auto& [x, words] : {std::pair(830.0, "alone"), std::pair(920.0, "shared"), std::pair(1010.0, "together"),
                                   std::pair(kInner, "its files")}) {
        text(kMargin + x, at_, R"(font-weight="bold" text-anchor="end")", words);
    }
    at_ += 8;
    double scale_bytes = 1;
    for (const api::ImageUsage& image : usage_.images)
        scale_bytes = std::max(scale_bytes, static_cast<double>(image.stored_bytes));
    const std::size_t count = std::min(usage_.images.size(), kMostRows);
    for (std::size_t i = 0; i < count; ++i) draw_row(i, scale_bytes);
    if (count == usage_.images.size()) return;
    at_ += kRowHeight;
    text(kMargin + 24, at_ - 8, R"(class="quiet")", fmt::format("and {} more", usage_.images.size() - count));
}

void Chart::draw_row(std::size_t image, double scale_bytes) {
    constexpr double kBarWidth = 430;
    const api::ImageUsage& row = usage_.images[image];
    const std::uint64_t shared_bytes = row.stored_bytes - std::min(row.stored_bytes, row.unique_bytes);
    const double base = at_ + 17;
    const auto width = [&](std::uint64_t bytes) { return kBarWidth * static_cast<double>(bytes) / scale_bytes; };
    body_ += fmt::format("<line class=\"line\" x1=\"{}\" y1=\"{:.1f}\" x2=\"{}\" y2=\"{:.1f}\"/>\n", kMargin, at_,
                         kMargin + kInner, at_);
    const auto bar = [&](double x, double bar_width, double opacity) {
        body_ += fmt::format(
            "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"14\" rx=\"2\" fill=\"{}\" "
            "fill-opacity=\"{}\"/>\n",
            kMargin + x, at_ + 6, bar_width, colour_of(image), opacity);
    };
    bar(0, 14, 1);
    bar(300, width(row.unique_bytes), 1);
    bar(300 + width(row.unique_bytes), width(shared_bytes), 0.4);
    text(kMargin + 24, base, "", svg_cut(name_of(row), kMostNameLetters));
    const auto number = [&](double x, std::uint64_t bytes) {
        text(kMargin + x, base, R"(text-anchor="end")", human_bytes(bytes));
    };
    number(830, row.unique_bytes);
    number(920, shared_bytes);
    number(1010, row.stored_bytes);
    number(kInner, row.logical_bytes);
    at_ += kRowHeight;
}

std::uint64_t Chart::shared_bytes(std::size_t one, std::size_t other) const {
    std::uint64_t bytes = 0;
    for (const api::ShareUsage& share : usage_.shares) {
        const auto has = [&](std::size_t image) {
            return std::ranges::find(share.images, image) != share.images.end();
        };
        if (has(one) && has(other)) bytes += share.stored_bytes;
    }
    return bytes;
}

void Chart::draw_pairs() {
    const std::size_t count = std::min(usage_.images.size(), kMostPairs);
    if (count < 2) return;
    constexpr double kNames = 300;
    const double width = std::min(80.0, (kInner - kNames) / static_cast<double>(count));
    at_ += 44;
    text(kMargin, at_, R"(font-weight="bold")", "How much of an image (row) the other one (column) has too");
    at_ += 12;
    for (std::size_t column = 0; column < count; ++column) {
        body_ +=
            fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"8\" rx=\"2\" fill=\"{}\"/>\n",
                        kMargin + kNames + width * static_cast<double>(column) + 1, at_, width - 2, colour_of(column));
    }
    at_ += 10;
    for (std::size_t row = 0; row < count; ++row) {
        body_ += fmt::format("<rect x=\"{}\" y=\"{:.1f}\" width=\"14\" height=\"14\" rx=\"2\" fill=\"{}\"/>\n", kMargin,
                             at_ + 6, colour_of(row));
        text(kMargin + 24, at_ + 17, "", svg_cut(name_of(usage_.images[row]), kMostNameLetters));
        for (std::size_t column = 0; column < count; ++column) {
            draw_pair_cell(
                row, column,
                {kMargin + kNames + width * static_cast<double>(column) + 1, at_ + 1, width - 2, kRowHeight - 2});
        }
        at_ += kRowHeight;
    }
    if (count == usage_.images.size()) return;
    at_ += 20;
    text(kMargin, at_ - 4, R"(class="quiet")", fmt::format("The first {} images.", count));
}

void Chart::draw_pair_cell(std::size_t row, std::size_t column, const Rectangle& place) {
    if (row == column) return;
    const std::uint64_t all_bytes = usage_.images[row].stored_bytes;
    const double part =
        all_bytes == 0 ? 0 : static_cast<double>(shared_bytes(row, column)) / static_cast<double>(all_bytes);
    const std::string box = fmt::format("x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"2\"",
                                        place.x, place.y, place.width, place.height);
    body_ += fmt::format("<rect class=\"track\" {0}/>\n<rect class=\"pair\" {0} fill-opacity=\"{1:.2f}\"/>\n", box,
                         0.75 * std::min(1.0, part));
    text(place.x + place.width / 2, place.y + place.height / 2 + 5, R"(text-anchor="middle")",
         part > 0 && part < 0.005 ? "<1 %" : fmt::format("{:.0f} %", 100 * part));
}

}  // namespace

std::string usage_chart(const api::Usage& usage) {
    return Chart(usage).draw();
}

}  // namespace lamina::client
