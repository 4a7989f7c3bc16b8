#pragma once

#include <cstdint>

namespace lamina::test {

/// What a recorded disk was asked for, in the order of the requests; a write's bytes follow. Host byte order: the file
/// lives as long as a test.
struct DiskEvent {
    enum Kind : std::uint32_t { kWrite = 1, kDiscard = 2, kFlush = 3 };
    std::uint32_t kind = 0;
    std::uint32_t reserved = 0;
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
};
static_assert(sizeof(DiskEvent) == 24);

}  // namespace lamina::test
