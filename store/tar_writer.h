#pragma once

#include "store/byte_stream.h"
#include "store/content.h"

#include <cstdint>
#include <span>

namespace lamina::store {

/// Writes a layer tar (POSIX pax): the same entries give the same bytes. Nanosecond and negative times, long names,
/// large ids, xattrs (SCHILY.xattr.*), holes (GNU sparse 1.0 in pax form) are kept. Sockets are left out: tar has none.
///
/// `entry.content` is not read: bodies follow through write_body(). A hard link needs the metadata of its file too:
/// what unpacks images applies them to both names. One thread. Borrows `out`. Throws internal when a body is not what
/// begin() was told.
class TarWriter {
public:
    explicit TarWriter(ByteSink& out) : out_(out) {}
    /// Begins an entry. Of a regular file exactly its bytes must follow, or the bytes of `data_map`, which are the data
    /// ranges of a sparse file, in order. Empty: not sparse. A file that is one hole has one range, of no bytes, at its
    /// end. Sizes of ranges but the last should be multiples of 512: GNU tar reads nothing else rightly.
    struct Range {
        std::uint64_t offset_bytes = 0;
        std::uint64_t size_bytes = 0;
    };
    void begin(const LayerEntry& entry, std::span<const Range> data_map = {});
    void write_body(std::span<const std::byte> data);
    void finish();  ///< Two zero blocks.

private:
    void end_body();
    ByteSink& out_;
    std::uint64_t body_left_bytes_ = 0;
    std::uint64_t body_written_bytes_ = 0;
};

}  // namespace lamina::store
