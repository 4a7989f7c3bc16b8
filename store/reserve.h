#pragma once

#include "store/store_core.h"

#include <cstdint>
#include <string>

namespace lamina::store {

/// <root>/reserve: an empty file with disk space set aside, so that on a full disk there is room for what must be
/// written before anything can be freed. Where the file system cannot set space aside there is none.

/// Makes it when there is none and the disk has plenty. Never throws Error: without it things go on.
void keep_reserve(const StorePaths& paths);
/// Gives the space back. False: there was none.
bool give_up_reserve(const StorePaths& paths);
std::uint64_t reserve_bytes(const StorePaths& paths);  ///< 0: there is none.
/// What is free for us on the store's disk.
std::uint64_t free_bytes(const StorePaths& paths);

}  // namespace lamina::store
