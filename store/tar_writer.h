#pragma once

#include "store/byte_stream.h"
#include "store/content.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

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
    /// ranges of a sparse file, in order. Empty: not sparse. A file that is one hole has one range of no bytes.
    /// Ranges are widened with zeros to multiples of 512, because GNU tar reads nothing else rightly.
    struct Range {
        std::uint64_t offset_bytes = 0;
        std::uint64_t size_bytes = 0;
    };
    void begin(const LayerEntry& entry, std::span<const Range> data_map = {});
    void write_body(std::span<const std::byte> data);
    void finish();  ///< Two zero blocks.

private:
    /// A part of the body: zeros that are made here, then bytes that the caller brings.
    struct Run {
        std::uint64_t zero_bytes = 0;
        std::uint64_t data_bytes = 0;
    };
    std::string plan_sparse_body(std::span<const Range> data_map, std::uint64_t file_bytes);
    void write_zeros();
    void end_body();

    ByteSink& out_;
    std::vector<Run> runs_;  ///< Of the body in hand.
    std::size_t run_ = 0;
    std::uint64_t data_left_bytes_ = 0;  ///< That the caller still owes.
    std::uint64_t body_bytes_ = 0;       ///< Written.
};

}  // namespace lamina::store
