#pragma once

#include "store/error.h"

#include <string>
#include <string_view>

namespace lamina::store {

/// The first line of `text`, without its line feed, which goes from there. malformed, naming `file`: there is none.
inline std::string_view take_line(std::string_view& text, const std::string& file) {
    const auto end = text.find('\n');
    if (end == std::string_view::npos) throw Error(Errc::malformed, file + ": a line does not end");
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    return line;
}

}  // namespace lamina::store
