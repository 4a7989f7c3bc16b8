#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace lamina::store {

/// Content-defined boundaries (FastCDC with normalised chunking; table and masks are part of the format, FORMAT.md).
///
/// A file of at most kSmallFileBytes is one chunk. Larger ones are cut at boundaries that depend on nearby bytes only,
/// so that an insertion changes few chunks.
inline constexpr std::uint32_t kMinChunkBytes = 16 * 1024;
inline constexpr std::uint32_t kAverageChunkBytes = 64 * 1024;
inline constexpr std::uint32_t kMaxChunkBytes = 256 * 1024;
inline constexpr std::uint32_t kSmallFileBytes = 64 * 1024;

/// Length of the first chunk of `data`. `data` holds the next kMaxChunkBytes of the file, or all that is left of it.
/// Never 0 for non-empty data. Pure function; any thread.
std::size_t next_boundary(std::span<const std::byte> data);

}  // namespace lamina::store
