#pragma once

#include "store/byte_stream.h"
#include "store/content.h"

#include <cstdint>
#include <span>

namespace lamina::store {

/// Writes a layer tar (POSIX pax): the same entries give the same bytes. Nanosecond and negative times, long names,
/// large ids, xattrs (SCHILY.xattr.*), holes (GNU sparse 1.0 in pax form) are kept.
///
/// `entry.content` is not read: bodies follow through write_body(). One thread. Borrows `out`.
class TarWriter {
public:
    explicit TarWriter(ByteSink& out) : out_(out) {}
    /// Begins an entry. Of a regular file exactly the bytes of its data parts (all but `holes`) must follow.
    /// `data_map`: the file's data ranges, for a sparse file; empty: not sparse, all bytes follow.
    struct Range {
        std::uint64_t offset_bytes = 0;
        std::uint64_t size_bytes = 0;
    };
    void begin(const LayerEntry& entry, std::span<const Range> data_map = {});
    void write_body(std::span<const std::byte> data);
    void finish();  ///< Two zero blocks.

private:
    void pad_body();
    ByteSink& out_;
    std::uint64_t body_left_bytes_ = 0;
    std::uint64_t body_written_bytes_ = 0;
};

}  // namespace lamina::store
