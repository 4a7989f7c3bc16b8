#include "store/tar_header.h"

#include "store/printable.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

// Tar headers come in dialects that grew on each other: V7, POSIX ustar, GNU, and pax records that override fields of
// all of them. The functions here take one piece each and are strict where readers of the world disagree, because a
// layer that two readers see differently is how one hides something; they are lenient where real archives are sloppy
// and all readers agree (padding of number fields, garbage after a NUL).

namespace lamina::store {

namespace {

constexpr auto kMaxSigned = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
constexpr std::string_view kXattrPrefix = "SCHILY.xattr.";
constexpr std::string_view kSparsePrefix = "GNU.sparse.";

[[noreturn]] void refuse(const std::string& text) {
    throw TarProblem(text);
}

template <std::size_t Size>
std::string_view field_of(const char (&field)[Size]) {
    return {field, Size};
}

std::string_view until_nul(std::string_view field) {
    return field.substr(0, field.find('\0'));
}

std::int64_t parse_base_256(std::string_view field, std::string_view what) {
    const auto first = static_cast<unsigned char>(field[0]);
    const unsigned char flip = first & 0x40 ? 0xff : 0;  // Two's complement; bit 7 is the mark, bit 6 the sign.
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < field.size(); ++i) {
        auto byte = static_cast<unsigned char>(static_cast<unsigned char>(field[i]) ^ flip);
        if (i == 0) byte &= 0x7f;
        if (value > kMaxSigned >> 8) refuse(fmt::format("{} is too large", what));
        value = value << 8 | byte;
    }
    const auto number = static_cast<std::int64_t>(value);
    return flip ? ~number : number;
}

std::uint32_t byte_sum(TarBlock block, bool is_signed) {
    constexpr std::size_t begin = offsetof(UstarHeader, checksum);
    constexpr std::size_t end = begin + sizeof(UstarHeader::checksum);
    std::int32_t sum = 8 * ' ';
    for (std::size_t i = 0; i < block.size(); ++i) {
        if (i >= begin && i < end) continue;
        const auto byte = std::to_integer<unsigned char>(block[i]);
        sum += is_signed ? static_cast<signed char>(byte) : byte;
    }
    return static_cast<std::uint32_t>(sum);
}

void check_checksum(TarBlock block, const UstarHeader& header) {
    const auto wanted = static_cast<std::uint32_t>(parse_tar_number(field_of(header.checksum), "checksum"));
    if (wanted == byte_sum(block, false)) return;
    if (wanted == byte_sum(block, true)) return;  // Very old writers summed signed characters.
    refuse("header checksum is wrong");
}

std::string full_name(const UstarHeader& header) {
    std::string name(until_nul(field_of(header.name)));
    const bool is_posix = std::memcmp(header.magic, "ustar", sizeof header.magic) == 0;
    if (!is_posix) return name;
    std::string_view prefix = field_of(header.prefix);
    // Star's variant of ustar keeps times where the last 24 bytes of the prefix are.
    if (std::memcmp(header.padding + 8, "tar", 4) == 0) prefix = prefix.substr(0, 131);
    prefix = until_nul(prefix);
    if (prefix.empty()) return name;
    return std::string(prefix) + "/" + name;
}

void parse_xattr(std::string_view key, std::string_view value, const PaxLimits& limits, PaxRecords& records) {
    std::string name;
    for (std::size_t i = 0; i < key.size(); ++i) {  // GNU tar writes "=" and "%" of a name as %3D and %25.
        const bool is_escaped = key.substr(i, 3) == "%3D" || key.substr(i, 3) == "%25";
        name += is_escaped ? (key[i + 1] == '3' ? '=' : '%') : key[i];
        if (is_escaped) i += 2;
    }
    if (name.empty() || name.size() > 255 || name.find('\0') != std::string::npos) {
        refuse(fmt::format("xattr name {} is not 1 to 255 bytes without NUL", quote(name)));
    }
    const auto [known, is_new] = records.xattrs.try_emplace(name);
    records.xattr_bytes += is_new ? name.size() : 0;
    records.xattr_bytes += value.size() - known->second.size();
    if (records.xattr_bytes > limits.xattr_bytes) {
        refuse(fmt::format("xattrs of more than {} bytes", limits.xattr_bytes));
    }
    known->second = std::string(value);
}

void add_sparse_part(const TarRange& range, const PaxLimits& limits, PaxRecords& records) {
    if (!records.sparse_map) records.sparse_map.emplace();
    if (records.sparse_map->size() >= limits.sparse_parts) {
        refuse(fmt::format("sparse map of more than {} parts", limits.sparse_parts));
    }
    records.sparse_map->push_back(range);
}

/// "offset,size,offset,size ..."
void parse_sparse_list(std::string_view text, const PaxLimits& limits, PaxRecords& records) {
    records.sparse_map.emplace();
    while (!text.empty()) {
        const auto after_offset = text.find(',');
        if (after_offset == std::string_view::npos) refuse("sparse map ends within a part");
        const auto size_end = std::min(text.find(',', after_offset + 1), text.size());
        const TarRange range{parse_decimal(text.substr(0, after_offset), "sparse offset"),
                             parse_decimal(text.substr(after_offset + 1, size_end - after_offset - 1), "sparse size")};
        add_sparse_part(range, limits, records);
        text.remove_prefix(std::min(size_end + 1, text.size()));
    }
}

void parse_sparse_record(std::string_view key, std::string_view value, const PaxLimits& limits, PaxRecords& records) {
    if (limits.is_global) refuse("sparse file record in a global header");
    if (key == "name") {
        records.sparse_name = std::string(value);
    } else if (key == "size" || key == "realsize") {
        records.sparse_size_bytes = parse_decimal(value, "sparse file size");
    } else if (key == "major") {
        records.sparse_major = parse_decimal(value, "sparse format");
    } else if (key == "minor") {
        records.sparse_minor = parse_decimal(value, "sparse format");
    } else if (key == "map") {
        parse_sparse_list(value, limits, records);
    } else if (key == "offset") {
        if (records.sparse_open_offset) refuse("two sparse offsets without a size between");
        records.sparse_open_offset = parse_decimal(value, "sparse offset");
    } else if (key == "numbytes") {
        if (!records.sparse_open_offset) refuse("sparse size without an offset");
        add_sparse_part({*records.sparse_open_offset, parse_decimal(value, "sparse size")}, limits, records);
        records.sparse_open_offset.reset();
    }
}

void set_text(std::optional<std::string>& field, std::string_view value, const PaxLimits& limits) {
    if (limits.is_global) refuse("path of one entry in a global header");
    if (value.empty()) {
        field.reset();
    } else {
        field = std::string(value);
    }
}

void set_number(std::optional<std::uint64_t>& field, std::string_view value, std::string_view what) {
    if (value.empty()) {
        field.reset();
    } else {
        field = parse_decimal(value, what);
    }
}

void parse_record(std::string_view key, std::string_view value, const PaxLimits& limits, PaxRecords& records) {
    if (key == "path") {
        set_text(records.path, value, limits);
    } else if (key == "linkpath") {
        set_text(records.link_path, value, limits);
    } else if (key == "size") {
        if (limits.is_global) refuse("size of one entry in a global header");
        set_number(records.size_bytes, value, "size");
    } else if (key == "uid") {
        set_number(records.uid, value, "uid");
    } else if (key == "gid") {
        set_number(records.gid, value, "gid");
    } else if (key == "mtime") {
        records.mtime = value.empty() ? std::nullopt : std::optional(parse_pax_time(value));
    } else if (key.starts_with(kXattrPrefix)) {
        parse_xattr(key.substr(kXattrPrefix.size()), value, limits, records);
    } else if (key.starts_with(kSparsePrefix)) {
        parse_sparse_record(key.substr(kSparsePrefix.size()), value, limits, records);
    }
    // Other keys (atime, ctime, uname, comment, vendor's) say nothing that an image keeps.
}

}  // namespace

bool is_zero(std::span<const std::byte> data) {
    return std::ranges::all_of(data, [](std::byte byte) { return byte == std::byte{0}; });
}

std::int64_t parse_tar_number(std::string_view field, std::string_view what) {
    if (static_cast<unsigned char>(field[0]) & 0x80) return parse_base_256(field, what);
    const auto begin = field.find_first_not_of(std::string_view(" \0", 2));
    if (begin == std::string_view::npos) return 0;
    std::uint64_t value = 0;  // Twelve octal digits are 36 bits.
    for (const char c : field.substr(begin)) {
        if (c == ' ' || c == '\0') break;
        if (c < '0' || c > '7') refuse(fmt::format("{} is not a number", what));
        value = value << 3 | static_cast<std::uint64_t>(c - '0');
    }
    return static_cast<std::int64_t>(value);
}

TarHeader parse_tar_header(TarBlock block) {
    UstarHeader raw;
    std::memcpy(&raw, block.data(), sizeof raw);
    check_checksum(block, raw);
    TarHeader header;
    header.type_flag = raw.type_flag;
    header.is_gnu = std::memcmp(raw.magic, "ustar  ", 7) == 0;
    header.name = full_name(raw);
    header.link_name = until_nul(field_of(raw.link_name));
    header.mode = static_cast<std::uint32_t>(parse_tar_number(field_of(raw.mode), "mode")) & 07777;
    header.uid = parse_tar_number(field_of(raw.uid), "uid");
    header.gid = parse_tar_number(field_of(raw.gid), "gid");
    header.size_bytes = parse_tar_number(field_of(raw.size), "size");
    header.mtime = parse_tar_number(field_of(raw.mtime), "mtime");
    if (header.size_bytes < 0) refuse("size is negative");
    if (std::memcmp(raw.magic, "ustar", 5) == 0 && (raw.type_flag == '3' || raw.type_flag == '4')) {
        header.device_major = parse_tar_number(field_of(raw.device_major), "device number");
        header.device_minor = parse_tar_number(field_of(raw.device_minor), "device number");
    }
    return header;
}

std::uint64_t parse_decimal(std::string_view text, std::string_view what) {
    std::uint64_t value = 0;
    if (text.empty()) refuse(fmt::format("{} is empty", what));
    for (const char c : text) {
        if (c < '0' || c > '9') refuse(fmt::format("{} {} is not a number", what, quote(text, 24)));
        const auto digit = static_cast<std::uint64_t>(c - '0');
        if (value > (kMaxSigned - digit) / 10) refuse(fmt::format("{} {} is too large", what, quote(text, 24)));
        value = value * 10 + digit;
    }
    return value;
}

Timestamp parse_pax_time(std::string_view text) {
    const bool is_negative = text.starts_with('-');
    if (is_negative) text.remove_prefix(1);
    const auto point = std::min(text.find('.'), text.size());
    Timestamp time;
    time.seconds = static_cast<std::int64_t>(parse_decimal(text.substr(0, point), "time"));
    bool is_finer = false;
    std::uint32_t digits = 0;
    for (const char c : text.substr(std::min(point + 1, text.size()))) {
        if (c < '0' || c > '9') refuse(fmt::format("time {} is not a number", quote(text, 40)));
        if (digits < 9) {
            time.nanoseconds = time.nanoseconds * 10 + static_cast<std::uint32_t>(c - '0');
            ++digits;
        } else {
            is_finer = is_finer || c != '0';
        }
    }
    for (; digits < 9; ++digits) time.nanoseconds *= 10;
    if (!is_negative) return time;
    time.nanoseconds += is_finer ? 1 : 0;  // Down, as the kernel's clocks do.
    time.seconds = -time.seconds;
    if (time.nanoseconds > 0) {
        --time.seconds;
        time.nanoseconds = 1'000'000'000 - time.nanoseconds;
    }
    return time;
}

void parse_pax(std::string_view body, const PaxLimits& limits, PaxRecords& records) {
    while (!body.empty()) {  // "LENGTH KEY=VALUE\n", the length being that of all of it.
        const auto space = body.substr(0, 20).find(' ');
        if (space == std::string_view::npos) refuse("extended header has a record without length");
        const std::uint64_t length = parse_decimal(body.substr(0, space), "extended record length");
        if (length <= space + 1 || length > body.size()) refuse("extended header has a record of a wrong length");
        std::string_view record = body.substr(space + 1, length - space - 1);
        if (!record.ends_with('\n')) refuse("extended header has a record that does not end its line");
        record.remove_suffix(1);
        const auto equals = record.find('=');
        if (equals == 0 || equals == std::string_view::npos) refuse("extended header has a record without key");
        parse_record(record.substr(0, equals), record.substr(equals + 1), limits, records);
        body.remove_prefix(length);
    }
}

void check_sparse_map(std::span<const TarRange> map, std::uint64_t file_bytes, std::uint64_t stored_bytes) {
    std::uint64_t end = 0;
    std::uint64_t sum = 0;  // Cannot overflow: ranges that do not overlap lie within file_bytes.
    for (const TarRange& range : map) {
        if (range.offset_bytes < end) refuse("sparse map is out of order");
        if (range.offset_bytes > file_bytes || range.size_bytes > file_bytes - range.offset_bytes) {
            refuse("sparse map leaves the file");
        }
        end = range.offset_bytes + range.size_bytes;
        sum += range.size_bytes;
    }
    if (sum != stored_bytes) refuse(fmt::format("sparse map has {} bytes, the archive {}", sum, stored_bytes));
}

std::string normalized_path(std::string_view path, const PathLimits& limits) {
    if (path.find('\0') != std::string_view::npos) refuse("path has a NUL byte");
    if (path.starts_with('/')) refuse("path is absolute");
    std::string out;
    while (!path.empty()) {
        const auto end = std::min(path.find('/'), path.size());
        const std::string_view name = path.substr(0, end);
        path.remove_prefix(std::min(end + 1, path.size()));
        if (name.empty() || name == ".") continue;
        if (name == "..") refuse("path has \"..\"");
        if (name.size() > limits.name_bytes) {
            refuse(fmt::format("name of {} bytes, at most {}", name.size(), limits.name_bytes));
        }
        if (!out.empty()) out += '/';
        out += name;
        if (out.size() > limits.path_bytes) refuse(fmt::format("path of more than {} bytes", limits.path_bytes));
    }
    return out;
}

}  // namespace lamina::store
