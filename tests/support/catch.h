#pragma once

// The one include of Catch2: Debian 12 has version 2 in one header, Debian 13 version 3 in many.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
namespace Catch::Matchers {
inline auto ContainsSubstring(const std::string& text) {
    return Catch::Contains(text);
}
}  // namespace Catch::Matchers
#endif
