#include "client/treemap.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

namespace lamina::client {

namespace {

constexpr double kLeast = 1e-6;  // So that rounding leaves a side to divide by.

/// A row along the shorter side of what is left.
struct Row {
    std::size_t end = 0;
    double area = 0;
};

/// How far the worst of a row is from a square: 1 is one.
double worst_ratio(double smallest, double largest, double area, double side) {
    return std::max(side * side * largest / (area * area), area * area / (side * side * smallest));
}

Row next_row(const std::vector<double>& areas, std::size_t begin, double side) {
    Row row{.end = begin + 1, .area = areas[begin]};
    double worst = worst_ratio(areas[begin], areas[begin], row.area, side);
    for (; row.end < areas.size(); ++row.end) {
        const double area = row.area + areas[row.end];
        const double ratio = worst_ratio(areas[row.end], areas[begin], area, side);
        if (ratio > worst) break;
        worst = ratio;
        row.area = area;
    }
    return row;
}

}  // namespace

std::vector<Rectangle> squarified(const Rectangle& all, const std::vector<double>& sizes) {
    const double sum = std::accumulate(sizes.begin(), sizes.end(), 0.0);
    std::vector<double> areas;
    for (const double size : sizes) {
        if (size > 0) areas.push_back(size / sum * all.width * all.height);
    }
    std::vector<Rectangle> placed;
    Rectangle left = all;
    while (placed.size() < areas.size()) {
        const bool is_upright = left.width >= left.height;  // The row is a column at the left, or a row at the top.
        const double side = is_upright ? left.height : left.width;
        const std::size_t begin = placed.size();
        const Row row = next_row(areas, begin, side);
        const double depth = row.area / side;
        double at = is_upright ? left.y : left.x;
        for (std::size_t i = begin; i < row.end; ++i) {
            const double length = areas[i] / depth;
            placed.push_back(is_upright ? Rectangle{left.x, at, depth, length} : Rectangle{at, left.y, length, depth});
            at += length;
        }
        (is_upright ? left.x : left.y) += depth;
        double& extent = is_upright ? left.width : left.height;
        extent = std::max(extent - depth, kLeast);
    }
    placed.resize(sizes.size(), {left.x, left.y, 0, 0});  // What has no size.
    return placed;
}

}  // namespace lamina::client
