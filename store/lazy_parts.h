#pragma once

#include "store/access_points.h"
#include "store/lazy_layer.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lamina::store {

/// The parts in which a lazy layer is fetched: one for each access point, and of a blob that is not compressed one for
/// each MiB. A chunk belongs to the part in which it begins, so that each comes with one part only.
class LazyParts {
public:
    static constexpr std::uint64_t kPlainPartBytes = 1 << 20;

    struct Part {
        AccessPoints::Span span;                 ///< With the end of its last chunk.
        std::uint64_t blob_bytes = 0;            ///< Of the span, without what is the next part's too.
        std::span<const ChunkMap::Part> chunks;  ///< May be none.
        /// In the tar: all of its chunks begin before here, and none of the next part's.
        std::uint64_t chunks_end() const {
            return chunks.empty() ? span.tar_first : chunks.back().tar_offset + chunks.back().size_bytes;
        }
    };
    /// Borrows both.
    LazyParts(const AccessPoints& points, const ChunkMap& chunks);
    std::size_t size() const noexcept { return parts_.size(); }
    const Part& operator[](std::size_t number) const { return parts_[number]; }
    std::size_t number_of(const ChunkMap::Part& chunk) const;
    std::vector<std::uint64_t> sizes() const;  ///< blob_bytes of each.

private:
    std::vector<Part> parts_;
};

}  // namespace lamina::store
