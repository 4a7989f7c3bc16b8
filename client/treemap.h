#pragma once

#include <vector>

namespace lamina::client {

struct Rectangle {
    double x = 0;
    double y = 0;
    double width = 0;
    double height = 0;
};

/// Parts of `all` with areas as `sizes`, of which none is negative, the largest first; as near to squares as rows of
/// them can be (Bruls, Huizing, van Wijk: Squarified Treemaps). One for each size, in their order.
std::vector<Rectangle> squarified(const Rectangle& all, const std::vector<double>& sizes);

}  // namespace lamina::client
