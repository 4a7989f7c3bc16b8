#include "store/lazy_parts.h"

#include <algorithm>

namespace lamina::store {

LazyParts::LazyParts(const AccessPoints& points, const ChunkMap& chunks) {
    const bool is_plain = points.compression == Compression::none;
    for (std::uint64_t tar_first = 0; tar_first < points.tar_bytes;) {
        const std::uint64_t plain_end = std::min(points.tar_bytes, tar_first + kPlainPartBytes);
        Part part{
            .span = points.span_of(tar_first, is_plain ? plain_end : tar_first + 1), .blob_bytes = 0, .chunks = {}};
        part.blob_bytes = part.span.blob_end - part.span.blob_first;
        part.chunks = chunks.beginning_in(part.span.tar_first, part.span.tar_end);
        tar_first = part.span.tar_end;
        if (!part.chunks.empty()) {
            points.extend(part.span, part.chunks.back().tar_offset + part.chunks.back().size_bytes);
        }
        parts_.push_back(part);
    }
}

std::size_t LazyParts::number_of(const ChunkMap::Part& chunk) const {
    const auto is_after = [](std::uint64_t offset, const Part& part) { return offset < part.span.tar_first; };
    const auto next = std::upper_bound(parts_.begin(), parts_.end(), chunk.tar_offset, is_after);
    return static_cast<std::size_t>(next - parts_.begin()) - 1;
}

std::vector<std::uint64_t> LazyParts::sizes() const {
    std::vector<std::uint64_t> sizes;
    for (const Part& part : parts_) sizes.push_back(part.blob_bytes);
    return sizes;
}

}  // namespace lamina::store
