#include "store/tar_writer.h"

#include "store/error.h"
#include "store/tar_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

// Each entry is one ustar header, after an extended header ('x') when something does not fit into it. Fields that do
// not fit are zero (a name: cut) in the ustar header, for readers that know no pax. Nothing depends on when, where or
// as whom it is written. A body is a list of runs: data that the caller brings, and zeros that widen the ranges of a
// sparse file to whole blocks.

namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxOctal7 = 07777777;       // Ids and device numbers.
constexpr std::uint64_t kMaxOctal11 = 077777777777;  // Sizes and times.

/// Zero if the number does not fit.
template <std::size_t Size>
void put_octal(char (&field)[Size], std::uint64_t number) {
    const std::uint64_t limit = (std::uint64_t{1} << 3 * (Size - 1)) - 1;
    const std::string text = fmt::format("{:0{}o}", number > limit ? 0 : number, Size - 1);
    std::memcpy(field, text.data(), text.size());
}

template <std::size_t Size>
void put_text(char (&field)[Size], std::string_view text) {
    std::memcpy(field, text.data(), std::min(text.size(), Size));
}

char type_flag_of(const LayerEntry& entry) {
    if (entry.is_hardlink) return '1';
    switch (entry.metadata.type) {
        case FileType::regular:
            return '0';
        case FileType::symlink:
            return '2';
        case FileType::char_device:
            return '3';
        case FileType::block_device:
            return '4';
        case FileType::directory:
            return '5';
        case FileType::fifo:
            return '6';
        case FileType::socket:
            break;
    }
    throw Error(Errc::internal, "write tar: no such file type");
}

class PaxText {
public:
    /// "LENGTH KEY=VALUE\n", the length being that of all of it, its own digits too.
    void add(std::string_view key, std::string_view value) {
        const std::size_t rest = key.size() + value.size() + 3;
        std::size_t length = rest + 1;
        while (std::to_string(length).size() + rest != length) ++length;
        text_ += fmt::format("{} {}=", length, key);
        text_ += value;
        text_ += '\n';
    }
    const std::string& text() const { return text_; }

private:
    std::string text_;
};

std::string time_text(const Timestamp& time) {
    if (time.nanoseconds == 0) return std::to_string(time.seconds);
    if (time.seconds >= 0) return fmt::format("{}.{:09}", time.seconds, time.nanoseconds);
    return fmt::format("-{}.{:09}", -(time.seconds + 1), 1'000'000'000 - time.nanoseconds);
}

/// As GNU tar has it: the key ends at the first "=".
std::string xattr_key(std::string_view name) {
    std::string key = "SCHILY.xattr.";
    for (const char c : name) {
        if (c == '=' || c == '%') {
            key += c == '=' ? "%3D" : "%25";
        } else {
            key += c;
        }
    }
    return key;
}

std::string leaf_of(const std::string& path) {
    return path.substr(path.rfind('/') + 1);  // All of it when there is no slash.
}

std::string tar_name(const LayerEntry& entry) {
    if (entry.is_hardlink || entry.metadata.type != FileType::directory) return entry.path;
    return entry.path.empty() ? "./" : entry.path + "/";
}

std::string padded(std::string text) {
    text.resize(text.size() + tar_padding(text.size()), '\0');
    return text;
}

UstarHeader begin_header(char type_flag, std::string_view name) {
    UstarHeader header{};
    put_text(header.name, name);
    header.type_flag = type_flag;
    put_text(header.magic, "ustar");
    put_text(header.version, "00");
    return header;
}

void put_attributes(const Metadata& metadata, UstarHeader& header) {
    const std::int64_t seconds = std::max<std::int64_t>(metadata.mtime.seconds, 0);
    put_octal(header.mode, metadata.mode & 07777);
    put_octal(header.uid, metadata.uid);
    put_octal(header.gid, metadata.gid);
    put_octal(header.mtime, static_cast<std::uint64_t>(seconds));
    if (metadata.type != FileType::char_device && metadata.type != FileType::block_device) return;
    if (metadata.device_major > kMaxOctal7 || metadata.device_minor > kMaxOctal7) {
        throw Error(Errc::internal, "write tar: device number does not exist");
    }
    put_octal(header.device_major, metadata.device_major);
    put_octal(header.device_minor, metadata.device_minor);
}

void add_attributes(const LayerEntry& entry, PaxText& pax) {
    const Metadata& metadata = entry.metadata;
    if (metadata.uid > kMaxOctal7) pax.add("uid", std::to_string(metadata.uid));
    if (metadata.gid > kMaxOctal7) pax.add("gid", std::to_string(metadata.gid));
    const bool fits = metadata.mtime.seconds >= 0 && static_cast<std::uint64_t>(metadata.mtime.seconds) <= kMaxOctal11;
    if (!fits || metadata.mtime.nanoseconds > 0) pax.add("mtime", time_text(metadata.mtime));
    if (entry.is_hardlink) return;
    for (const auto& [name, value] : metadata.xattrs) pax.add(xattr_key(name), value);
}

void write_text(ByteSink& out, std::string_view text) {
    out.write(as_bytes(text));
}

void write_header(ByteSink& out, UstarHeader header) {
    put_text(header.checksum, "        ");
    std::uint32_t sum = 0;
    for (const std::byte byte : std::as_bytes(std::span(&header, 1))) sum += std::to_integer<std::uint32_t>(byte);
    const std::string text = fmt::format("{:06o}", sum) + std::string("\0 ", 2);
    put_text(header.checksum, text);
    out.write(std::as_bytes(std::span(&header, 1)));
}

void write_extended_header(ByteSink& out, const std::string& leaf, const std::string& text) {
    if (text.empty()) return;
    UstarHeader header = begin_header('x', "PaxHeaders/" + leaf);
    put_octal(header.mode, 0644);
    put_octal(header.uid, 0);
    put_octal(header.gid, 0);
    put_octal(header.mtime, 0);
    put_octal(header.size, text.size());
    write_header(out, header);
    write_text(out, padded(text));
}

}  // namespace

/// Fills runs_; returns the map in GNU sparse 1.0's form, which stands in front of the data.
std::string TarWriter::plan_sparse_body(std::span<const Range> data_map, std::uint64_t file_bytes) {
    std::vector<Range> map;
    std::uint64_t at = 0;  // What runs_ have reached in the file.
    for (const Range& range : data_map) {
        const bool is_inside = range.offset_bytes <= file_bytes && range.size_bytes <= file_bytes - range.offset_bytes;
        if (range.offset_bytes < at || !is_inside) throw Error(Errc::internal, "write tar: data map is out of order");
        if (range.size_bytes == 0) continue;
        const std::uint64_t begin = range.offset_bytes / kTarBlockBytes * kTarBlockBytes;
        const std::uint64_t end = range.offset_bytes + range.size_bytes;
        const std::uint64_t wide_end = std::min(end + tar_padding(end), file_bytes);
        const bool continues = !map.empty() && map.back().offset_bytes + map.back().size_bytes >= begin;
        if (!continues) {
            if (!map.empty()) runs_.push_back({map.back().offset_bytes + map.back().size_bytes - at, 0});
            map.push_back({begin, 0});
            at = begin;
        }
        runs_.push_back({range.offset_bytes - at, range.size_bytes});
        map.back().size_bytes = wide_end - map.back().offset_bytes;
        at = end;
    }
    const std::uint64_t map_end = map.empty() ? 0 : map.back().offset_bytes + map.back().size_bytes;
    if (!map.empty()) runs_.push_back({map_end - at, 0});
    if (map_end < file_bytes) map.push_back({file_bytes, 0});  // Tells GNU tar where the last hole ends.
    std::string text = std::to_string(map.size()) + "\n";
    for (const Range& range : map) text += fmt::format("{}\n{}\n", range.offset_bytes, range.size_bytes);
    return padded(std::move(text));
}

void TarWriter::begin(const LayerEntry& entry, std::span<const Range> data_map) {
    end_body();
    if (!entry.is_hardlink && entry.metadata.type == FileType::socket) return;
    const bool has_body = !entry.is_hardlink && entry.metadata.type == FileType::regular;
    const std::string name = tar_name(entry);
    std::string header_name = name;
    const std::string& target = entry.is_hardlink ? entry.hardlink_target : entry.metadata.link_target;
    std::string map;
    PaxText pax;
    if (has_body && !data_map.empty()) {
        pax.add("GNU.sparse.major", "1");
        pax.add("GNU.sparse.minor", "0");
        pax.add("GNU.sparse.name", name);
        pax.add("GNU.sparse.realsize", std::to_string(entry.size_bytes));
        header_name = "GNUSparseFile.0/" + leaf_of(entry.path);
        map = plan_sparse_body(data_map, entry.size_bytes);
    } else {
        if (name.size() > sizeof(UstarHeader::name)) pax.add("path", name);
        if (has_body) runs_.push_back({0, entry.size_bytes});
    }
    if (target.size() > sizeof(UstarHeader::link_name)) pax.add("linkpath", target);
    std::uint64_t size = map.size();
    for (const Run& run : runs_) {
        size += run.zero_bytes + run.data_bytes;
        data_left_bytes_ += run.data_bytes;
    }
    if (size > kMaxOctal11) pax.add("size", std::to_string(size));
    add_attributes(entry, pax);
    write_extended_header(out_, leaf_of(entry.path), pax.text());

    UstarHeader header = begin_header(type_flag_of(entry), header_name);
    put_attributes(entry.metadata, header);
    put_octal(header.size, size);
    put_text(header.link_name, target);
    write_header(out_, header);
    write_text(out_, map);
}

void TarWriter::write_body(std::span<const std::byte> data) {
    if (data.size() > data_left_bytes_) throw Error(Errc::internal, "write tar: body is longer than its header says");
    data_left_bytes_ -= data.size();
    while (!data.empty()) {
        write_zeros();
        Run& run = runs_[run_];
        const auto part = data.first(static_cast<std::size_t>(std::min<std::uint64_t>(data.size(), run.data_bytes)));
        out_.write(part);
        run.data_bytes -= part.size();
        body_bytes_ += part.size();
        data = data.subspan(part.size());
    }
}

/// The zeros of the run in hand and of those after it, up to one that waits for data.
void TarWriter::write_zeros() {
    constexpr std::array<std::byte, 2 * kTarBlockBytes> zeros{};  // A run has less: two ends of a block.
    for (; run_ < runs_.size(); ++run_) {
        Run& run = runs_[run_];
        out_.write(std::span(zeros).first(static_cast<std::size_t>(run.zero_bytes)));
        body_bytes_ += std::exchange(run.zero_bytes, 0);
        if (run.data_bytes > 0) return;
    }
}

void TarWriter::end_body() {
    if (data_left_bytes_ > 0) throw Error(Errc::internal, "write tar: body is shorter than its header says");
    write_zeros();
    runs_.clear();
    run_ = 0;
    const std::uint64_t padding = tar_padding(std::exchange(body_bytes_, 0));
    if (padding == 0) return;
    constexpr std::array<std::byte, kTarBlockBytes> zeros{};
    out_.write(std::span(zeros).first(static_cast<std::size_t>(padding)));
}

void TarWriter::finish() {
    end_body();
    constexpr std::array<std::byte, 2 * kTarBlockBytes> zeros{};
    out_.write(zeros);
}

}  // namespace lamina::store
