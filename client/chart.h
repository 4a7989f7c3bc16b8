#pragma once

#include "client/api.h"

#include <string>

namespace lamina::client {

/// What a store has on disk and which images share what, as an SVG picture for people: an area for what each image has
/// alone, for what several share, and for the store's own files, which add up to all of it (the attribute data-bytes);
/// a row for each image; and how much of one image is in each other. Readable on light and on dark backgrounds.
std::string usage_chart(const api::Usage& usage);

}  // namespace lamina::client
