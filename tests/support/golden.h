#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace lamina::test {

/// Checks that `bytes` are those of tests/golden/NAME. With LAMINA_REWRITE_GOLDEN=1 the file is written instead, and a
/// warning says so: only for a change of format that is meant.
void check_golden(const std::string& name, std::span<const std::byte> bytes);
std::string golden_path(const std::string& name);

}  // namespace lamina::test
