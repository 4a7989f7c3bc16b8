#pragma once

#include <string>
#include <string_view>

namespace lamina::store {

/// Text from outside as it may stand in an error: in double quotes, control characters, quotes and bytes that are no
/// ASCII escaped (\x0a), cut at `limit_bytes` with "...". So a message stays one line whatever an image contains.
std::string quote(std::string_view text, std::size_t limit_bytes = 120);

}  // namespace lamina::store
