#pragma once

#include "store/digest.h"

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace lamina::test {

std::string bytes_of_file(const std::string& path);

/// Gives an image tree that was changed by hand the digests that fit its bytes, as an attacker would, so that a reader
/// gets past them. Leaves a header alone that does not even state a possible size. Returns the tree's digest.
store::TreeDigest sign_tree(std::span<char> tree);

}  // namespace lamina::test
