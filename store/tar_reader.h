#pragma once

#include "store/byte_stream.h"
#include "store/content.h"
#include "store/layer_importer.h"
#include "store/tar_header.h"
#include "store/tar_input.h"

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lamina::store {

/// One entry as the tar has it. `entry.content` is empty.
struct TarEntry {
    LayerEntry entry;
    std::uint64_t offset_bytes = 0;  ///< Of its first header in the tar.
    std::uint64_t stored_bytes = 0;  ///< Of a regular file's body in the tar; holes are not stored.
    bool is_sparse = false;
    std::vector<TarRange> data_map;  ///< When sparse: checked, adds up to stored_bytes.
};

/// Reads the entries of one uncompressed layer tar, in archive order (OCI image-spec 1.1, layer.md; POSIX pax; GNU
/// tar).
///
/// Understands V7, ustar, pax (local and global headers), GNU long names, base-256 numbers and all four kinds of sparse
/// files (old GNU, 0.0, 0.1, 1.0). Borrows all that it is given. One thread at a time. Throws Errc::malformed, naming
/// entry and offset, on anything truncated, ambiguous or beyond the limits. A path that it returns is relative and has
/// no "..", so that callers need not check again. A tar may end without end marker, at the end of an entry; what
/// follows the marker is of no meaning, and literal.
class LayerReader {
public:
    /// Whether the bodies of regular files are in the input. Without them (a recipe's literal bytes) all else is the
    /// same: they count in offsets, and there is nothing to read or to skip.
    enum class Bodies { present, absent };

    /// `literals`, if not null, gets all bytes that are not the body of a regular file, in order.
    LayerReader(TarInput& tar, const LayerLimits& limits, ByteSink* literals, Bodies bodies = Bodies::present);

    /// nullopt: end of the archive; all of the input is then consumed. Skips the rest of a body.
    std::optional<TarEntry> next();

    /// The next bytes of the body: at least min(want_bytes, what is left of it); never of what follows it.
    /// Borrowed until the next call. Empty when the body is finished.
    std::span<const std::byte> peek_body(std::size_t want_bytes);
    void consume_body(std::size_t bytes);

    std::uint64_t entry_count() const noexcept { return entry_count_; }
    std::uint64_t offset_bytes() const noexcept { return offset_bytes_; }  ///< In the tar, of the next byte.

private:
    /// What headers before the entry's own have said.
    struct Extensions {
        PaxRecords pax;
        std::optional<std::string> long_name;
        std::optional<std::string> long_link;
        unsigned count = 0;
    };

    /// A part of a body that is read as text: the map of a sparse file 1.0.
    struct MapText {
        std::array<std::byte, kTarBlockBytes> block;
        std::size_t used_bytes = kTarBlockBytes;
    };

    [[noreturn]] void fail(const std::string& problem) const;
    void skip_body();
    std::optional<TarEntry> read_entry();
    bool read_block(std::span<std::byte, kTarBlockBytes> out);
    void take(std::span<std::byte> out);
    void drop(std::uint64_t bytes);
    void consume_literal(std::span<const std::byte> data);
    std::string read_text(const TarHeader& header);
    void add_extension(const TarHeader& header, Extensions& extensions);
    void read_to_end();

    TarEntry make_entry(const TarHeader& header, TarBlock block, Extensions& extensions);
    void set_type(const TarHeader& header, LayerEntry& entry) const;
    void set_attributes(const TarHeader& header, PaxRecords& pax, Metadata& metadata) const;
    void set_target(const std::string& target, LayerEntry& entry) const;
    void set_body(const TarHeader& header, TarBlock block, PaxRecords& pax, TarEntry& entry);
    void set_pax_sparse(PaxRecords& pax, TarEntry& entry);
    void read_old_sparse(TarBlock block, TarEntry& entry);
    void read_sparse_map(TarEntry& entry);
    std::uint64_t read_map_number(MapText& text, TarEntry& entry);
    void add_sparse(const TarRange& range, TarEntry& entry) const;
    PathLimits path_limits() const { return {limits_.name_bytes, limits_.path_bytes}; }

    TarInput& tar_;
    const LayerLimits limits_;
    ByteSink* const literals_;
    const Bodies bodies_;
    PaxRecords global_;
    std::uint64_t offset_bytes_ = 0;
    std::uint64_t entry_offset_bytes_ = 0;
    std::string entry_name_;  ///< As the headers have it, for errors.
    std::uint64_t entry_count_ = 0;
    std::uint64_t logical_bytes_ = 0;
    std::uint64_t body_left_bytes_ = 0;
    std::uint64_t padding_bytes_ = 0;  ///< After the body.
    bool is_at_end_ = false;
};

}  // namespace lamina::store
