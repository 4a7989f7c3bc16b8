#pragma once

#include "store/content.h"
#include "store/error.h"
#include "store/tar_format.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// Pieces of tar headers as values. Pure functions that throw TarProblem.
namespace lamina::store {

/// What is wrong (Errc::malformed) but not where: LayerReader adds entry and offset.
class TarProblem : public Error {
public:
    explicit TarProblem(const std::string& text) : Error(Errc::malformed, text) {}
};

/// A run of a file's bytes.
struct TarRange {
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
    bool operator==(const TarRange&) const = default;
};

/// What one 512-byte header says, before extended headers are applied.
struct TarHeader {
    char type_flag = 0;
    bool is_gnu = false;
    std::string name;       ///< With the prefix; up to the first NUL.
    std::string link_name;  ///< Up to the first NUL.
    std::uint32_t mode = 0;
    std::int64_t uid = 0;
    std::int64_t gid = 0;
    std::int64_t size_bytes = 0;
    std::int64_t mtime = 0;
    std::int64_t device_major = 0;
    std::int64_t device_minor = 0;
};
using TarBlock = std::span<const std::byte, kTarBlockBytes>;

bool is_zero(std::span<const std::byte> data);
/// Checks the checksum; refuses numbers that are no numbers, or negative ones where they have no meaning.
TarHeader parse_tar_header(TarBlock block);

/// Octal text or GNU base-256; empty is 0. `what` names the field in the error.
std::int64_t parse_tar_number(std::string_view field, std::string_view what);

/// The records of extended headers that matter here. An empty value takes an earlier one away (POSIX), but of xattrs,
/// which may be empty.
struct PaxRecords {
    std::optional<std::string> path;
    std::optional<std::string> link_path;
    std::optional<std::uint64_t> size_bytes;
    std::optional<std::uint64_t> uid;
    std::optional<std::uint64_t> gid;
    std::optional<Timestamp> mtime;
    std::map<std::string, std::string> xattrs;
    std::uint64_t xattr_bytes = 0;  ///< Names and values of all of them.

    // GNU sparse 0.0, 0.1 and 1.0.
    std::optional<std::string> sparse_name;
    std::optional<std::uint64_t> sparse_size_bytes;
    std::optional<std::uint64_t> sparse_major;
    std::optional<std::uint64_t> sparse_minor;
    std::optional<std::uint64_t> sparse_open_offset;  ///< A 0.0 offset that waits for its size.
    std::optional<std::vector<TarRange>> sparse_map;
    bool is_sparse() const {
        return sparse_name || sparse_size_bytes || sparse_major || sparse_minor || sparse_open_offset || sparse_map;
    }
};
struct PaxLimits {
    std::uint64_t xattr_bytes = 0;
    std::uint64_t sparse_parts = 0;
    bool is_global = false;  ///< Refuses what can only be said of one entry.
};
/// Adds the records of one extended header's body to `records`.
void parse_pax(std::string_view body, const PaxLimits& limits, PaxRecords& records);

/// Decimal seconds with sign and fraction; what is finer than a nanosecond is rounded down.
Timestamp parse_pax_time(std::string_view text);
std::uint64_t parse_decimal(std::string_view text, std::string_view what);  ///< Up to 2^63 - 1.

/// Refuses a map that is out of order, overlaps, leaves the file or does not add up to `stored_bytes`.
void check_sparse_map(std::span<const TarRange> map, std::uint64_t file_bytes, std::uint64_t stored_bytes);

struct PathLimits {
    std::uint32_t name_bytes = 0;
    std::uint32_t path_bytes = 0;
};
/// "./a//b/" becomes "a/b"; "./" becomes "". Refuses absolute paths, "..", NUL, too long names and paths.
std::string normalized_path(std::string_view path, const PathLimits& limits);

}  // namespace lamina::store
