#pragma once

#include "store/recipe.h"

#include <optional>
#include <string>

namespace lamina::store {

/// The first thing in which what was said of a layer differs from the layer: which path, which field, and both values,
/// as one line. nullopt: the entries are equal.
std::optional<std::string> first_difference(const Recipe& layer, const Recipe& said);

}  // namespace lamina::store
