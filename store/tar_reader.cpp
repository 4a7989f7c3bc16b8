#include "store/tar_reader.h"

#include "store/printable.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

// next() collects what stands in front of an entry (extended headers, GNU long names), reads the entry's own header and
// makes one TarEntry of both; the body is left to the caller. Everything but bodies passes consume_literal(), so that a
// recipe sees each literal byte exactly once and in order. The same code parses a recipe's literal bytes again
// (Bodies::absent): only skip_body() and peek_body() look at that difference.
//
// Types without a body (links, folders, devices) have none whatever their size field says, as in Go's archive/tar and
// libarchive. A file whose path ends in a slash is a folder in V7 archives (type NUL) and refused elsewhere, because
// there readers disagree.

namespace lamina::store {

namespace {

constexpr unsigned kMaxExtensions = 16;    // In front of one entry; tar needs three.
constexpr std::int64_t kMaxMajor = 0xfff;  // Of Linux' dev_t.
constexpr std::int64_t kMaxMinor = 0xfffff;

bool is_extension(char type_flag) {
    return type_flag == 'x' || type_flag == 'X' || type_flag == 'g' || type_flag == 'L' || type_flag == 'K';
}

bool is_file(char type_flag) {
    return type_flag == '0' || type_flag == '\0' || type_flag == '7' || type_flag == 'S';
}

std::uint32_t checked_id(std::uint64_t id, std::string_view what) {
    if (id > 0xffffffff) throw TarProblem(fmt::format("{} {} is more than 32 bits", what, id));
    return static_cast<std::uint32_t>(id);
}

std::uint32_t header_id(std::int64_t id, std::string_view what) {
    if (id < 0) throw TarProblem(fmt::format("{} is negative", what));
    return checked_id(static_cast<std::uint64_t>(id), what);
}

std::uint32_t device_number(std::int64_t number, std::int64_t limit) {
    if (number < 0 || number > limit) throw TarProblem(fmt::format("device number {} does not exist", number));
    return static_cast<std::uint32_t>(number);
}

template <std::size_t Size>
std::uint64_t sparse_number(const char (&field)[Size]) {
    const std::int64_t number = parse_tar_number({field, Size}, "sparse map");
    if (number < 0) throw TarProblem("sparse map has a negative number");
    return static_cast<std::uint64_t>(number);
}

}  // namespace

LayerReader::LayerReader(TarInput& tar, const LayerLimits& limits, ByteSink* literals, Bodies bodies)
    : tar_(tar), limits_(limits), literals_(literals), bodies_(bodies) {}

void LayerReader::fail(const std::string& problem) const {
    const std::string entry = entry_name_.empty() ? "" : fmt::format("entry {}: ", quote(entry_name_));
    throw Error(Errc::malformed, fmt::format("layer tar, offset {}: {}{}", entry_offset_bytes_, entry, problem));
}

std::optional<TarEntry> LayerReader::next() {
    if (is_at_end_) return std::nullopt;
    try {
        skip_body();
        return read_entry();
    } catch (const TarProblem& problem) {  // Said by code that does not know where.
        fail(problem.what());
    }
}

std::span<const std::byte> LayerReader::peek_body(std::size_t want_bytes) {
    if (body_left_bytes_ == 0) return {};
    const auto want = std::min<std::uint64_t>({want_bytes, body_left_bytes_, TarInput::kMaxPeekBytes});
    const auto data = tar_.peek(static_cast<std::size_t>(want));
    if (data.size() < want) fail(fmt::format("ends {} bytes before its body does", body_left_bytes_ - data.size()));
    return data.first(static_cast<std::size_t>(std::min<std::uint64_t>(data.size(), body_left_bytes_)));
}

void LayerReader::consume_body(std::size_t bytes) {
    tar_.consume(bytes);
    body_left_bytes_ -= bytes;
    offset_bytes_ += bytes;
}

void LayerReader::skip_body() {
    while (body_left_bytes_ > 0) consume_body(peek_body(1).size());
    drop(std::exchange(padding_bytes_, 0));
}

void LayerReader::consume_literal(std::span<const std::byte> data) {
    if (literals_) literals_->write(data);
    offset_bytes_ += data.size();
    tar_.consume(data.size());
}

void LayerReader::take(std::span<std::byte> out) {
    while (!out.empty()) {
        auto data = tar_.peek(1);
        if (data.empty()) throw TarProblem("the archive ends within it");
        data = data.first(std::min(data.size(), out.size()));
        std::memcpy(out.data(), data.data(), data.size());
        out = out.subspan(data.size());
        consume_literal(data);
    }
}

void LayerReader::drop(std::uint64_t bytes) {
    while (bytes > 0) {
        const auto data = tar_.peek(1);
        if (data.empty()) throw TarProblem("the archive ends within it");
        const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(data.size(), bytes));
        consume_literal(data.first(count));
        bytes -= count;
    }
}

bool LayerReader::read_block(std::span<std::byte, kTarBlockBytes> out) {
    if (tar_.peek(1).empty()) return false;
    take(out);
    return true;
}

std::optional<TarEntry> LayerReader::read_entry() {
    Extensions extensions;
    extensions.pax = global_;
    entry_offset_bytes_ = offset_bytes_;
    entry_name_.clear();
    std::array<std::byte, kTarBlockBytes> block;
    for (;;) {
        const bool has_block = read_block(block);
        if (!has_block || is_zero(block)) {
            if (extensions.count > 0) throw TarProblem("extended header without an entry");
            if (has_block) read_to_end();
            is_at_end_ = true;
            return std::nullopt;
        }
        const TarHeader header = parse_tar_header(block);
        if (entry_name_.empty()) entry_name_ = header.name;
        if (is_extension(header.type_flag)) {
            add_extension(header, extensions);
            continue;
        }
        if (entry_count_ >= limits_.entries) {
            throw TarProblem(fmt::format("a layer has at most {} entries", limits_.entries));
        }
        ++entry_count_;
        return make_entry(header, block, extensions);
    }
}

void LayerReader::read_to_end() {
    const auto next = tar_.peek(kTarBlockBytes);
    if (!is_zero(next.first(std::min(next.size(), kTarBlockBytes)))) {
        throw TarProblem("data after a zero block that is no end marker");
    }
    for (auto data = next; !data.empty(); data = tar_.peek(1)) consume_literal(data);
}

std::string LayerReader::read_text(const TarHeader& header) {
    const auto size = static_cast<std::uint64_t>(header.size_bytes);
    if (size > limits_.pax_bytes) {
        throw TarProblem(fmt::format("extended header of {} bytes, at most {}", size, limits_.pax_bytes));
    }
    std::string text(static_cast<std::size_t>(size), '\0');
    take(std::as_writable_bytes(std::span(text)));
    drop(tar_padding(size));
    return text;
}

void LayerReader::add_extension(const TarHeader& header, Extensions& extensions) {
    if (extensions.count >= kMaxExtensions) throw TarProblem("too many extended headers");
    const std::string text = read_text(header);
    const PaxLimits limits{limits_.xattr_bytes, limits_.sparse_parts, header.type_flag == 'g'};
    if (limits.is_global) {
        if (extensions.count > 0) throw TarProblem("global header between an entry and its extended header");
        parse_pax(text, limits, global_);
        extensions.pax = global_;
        entry_name_.clear();
        return;
    }
    ++extensions.count;
    if (header.type_flag == 'x' || header.type_flag == 'X') {
        parse_pax(text, limits, extensions.pax);
        if (extensions.pax.path) entry_name_ = *extensions.pax.path;
        return;
    }
    const std::string name = text.substr(0, text.find('\0'));
    if (text.find_first_not_of('\0', name.size()) != std::string::npos) throw TarProblem("long name has a NUL byte");
    if (header.type_flag == 'L') {
        extensions.long_name = name;
        entry_name_ = name;
    } else {
        extensions.long_link = name;
    }
}

TarEntry LayerReader::make_entry(const TarHeader& header, TarBlock block, Extensions& extensions) {
    PaxRecords& pax = extensions.pax;
    entry_name_ = pax.sparse_name ? *pax.sparse_name
                  : pax.path      ? *pax.path
                                  : extensions.long_name.value_or(header.name);
    TarEntry out;
    out.offset_bytes = entry_offset_bytes_;
    out.entry.path = normalized_path(entry_name_, path_limits());
    set_type(header, out.entry);
    set_attributes(header, pax, out.entry.metadata);
    set_target(pax.link_path ? *pax.link_path : extensions.long_link.value_or(header.link_name), out.entry);
    if (out.entry.path.empty() && out.entry.metadata.type != FileType::directory) {
        throw TarProblem("the root is not a folder");
    }
    if (is_file(header.type_flag) && out.entry.metadata.type == FileType::regular) {
        set_body(header, block, pax, out);
    } else if (pax.is_sparse()) {
        throw TarProblem("sparse map of what is no file");
    }
    return out;
}

void LayerReader::set_type(const TarHeader& header, LayerEntry& entry) const {
    Metadata& metadata = entry.metadata;
    switch (header.type_flag) {
        case '\0':
        case '0':
        case '7':
        case 'S':
            if (!entry_name_.ends_with('/')) return;
            if (header.type_flag != '\0' || header.size_bytes != 0) throw TarProblem("path of a file ends in a slash");
            metadata.type = FileType::directory;
            return;
        case '1':
            entry.is_hardlink = true;
            return;
        case '2':
            metadata.type = FileType::symlink;
            return;
        case '3':
            metadata.type = FileType::char_device;
            return;
        case '4':
            metadata.type = FileType::block_device;
            return;
        case '5':
            metadata.type = FileType::directory;
            return;
        case '6':
            metadata.type = FileType::fifo;
            return;
        default:
            throw TarProblem(fmt::format("unknown type flag {}", quote({&header.type_flag, 1})));
    }
}

void LayerReader::set_attributes(const TarHeader& header, PaxRecords& pax, Metadata& metadata) const {
    metadata.mode = header.mode;
    metadata.uid = pax.uid ? checked_id(*pax.uid, "uid") : header_id(header.uid, "uid");
    metadata.gid = pax.gid ? checked_id(*pax.gid, "gid") : header_id(header.gid, "gid");
    metadata.mtime = pax.mtime.value_or(Timestamp{header.mtime, 0});
    metadata.xattrs = std::move(pax.xattrs);
    if (metadata.type == FileType::char_device || metadata.type == FileType::block_device) {
        metadata.device_major = device_number(header.device_major, kMaxMajor);
        metadata.device_minor = device_number(header.device_minor, kMaxMinor);
    }
}

void LayerReader::set_target(const std::string& target, LayerEntry& entry) const {
    if (entry.is_hardlink) {
        try {
            entry.hardlink_target = normalized_path(target, path_limits());
        } catch (const TarProblem& problem) {  // The same words are about another path here.
            throw TarProblem(fmt::format("hard link to {}: {}", quote(target), problem.what()));
        }
        if (entry.hardlink_target.empty()) throw TarProblem("hard link to nothing");
    } else if (entry.metadata.type == FileType::symlink) {
        if (target.empty()) throw TarProblem("symbolic link to nothing");
        if (target.find('\0') != std::string::npos) throw TarProblem("target of the link has a NUL byte");
        if (target.size() > limits_.path_bytes) {
            throw TarProblem(fmt::format("target of the link has more than {} bytes", limits_.path_bytes));
        }
        entry.metadata.link_target = target;
    }
}

void LayerReader::set_body(const TarHeader& header, TarBlock block, PaxRecords& pax, TarEntry& entry) {
    entry.stored_bytes = pax.size_bytes.value_or(static_cast<std::uint64_t>(header.size_bytes));
    entry.entry.size_bytes = entry.stored_bytes;
    if (header.type_flag == 'S') {
        if (!header.is_gnu || pax.is_sparse()) throw TarProblem("two kinds of sparse map");
        read_old_sparse(block, entry);
    } else if (pax.is_sparse()) {
        set_pax_sparse(pax, entry);
    }
    if (entry.entry.size_bytes > limits_.file_bytes || entry.stored_bytes > limits_.file_bytes) {
        throw TarProblem(fmt::format("file of more than {} bytes", limits_.file_bytes));
    }
    logical_bytes_ += entry.entry.size_bytes;
    if (logical_bytes_ > limits_.logical_bytes) {
        throw TarProblem(fmt::format("files of more than {} bytes together", limits_.logical_bytes));
    }
    if (entry.is_sparse) check_sparse_map(entry.data_map, entry.entry.size_bytes, entry.stored_bytes);
    padding_bytes_ = tar_padding(entry.stored_bytes);
    if (bodies_ == Bodies::present) {
        body_left_bytes_ = entry.stored_bytes;
    } else {
        offset_bytes_ += entry.stored_bytes;
    }
}

void LayerReader::set_pax_sparse(PaxRecords& pax, TarEntry& entry) {
    if (!pax.sparse_size_bytes) throw TarProblem("sparse map without the file's size");
    if (pax.sparse_open_offset) throw TarProblem("sparse map ends within a part");
    entry.is_sparse = true;
    entry.entry.size_bytes = *pax.sparse_size_bytes;
    const std::uint64_t major = pax.sparse_major.value_or(0);
    const std::uint64_t minor = pax.sparse_minor.value_or(0);
    if (major == 1 && minor == 0) {
        if (pax.sparse_map) throw TarProblem("two kinds of sparse map");
        read_sparse_map(entry);
    } else if (major == 0 && minor <= 1) {
        if (!pax.sparse_map) throw TarProblem("sparse file without a map");
        entry.data_map = std::move(*pax.sparse_map);
    } else {
        throw TarProblem(fmt::format("unknown sparse format {}.{}", major, minor));
    }
}

void LayerReader::add_sparse(const TarRange& range, TarEntry& entry) const {
    if (entry.data_map.size() >= limits_.sparse_parts) {
        throw TarProblem(fmt::format("sparse map of more than {} parts", limits_.sparse_parts));
    }
    entry.data_map.push_back(range);
}

void LayerReader::read_old_sparse(TarBlock block, TarEntry& entry) {
    bool is_ended = false;
    const auto add = [&](const GnuSparsePart& part) {
        const bool is_unused = part.offset[0] == '\0' || part.size[0] == '\0';
        if (!is_unused && is_ended) throw TarProblem("sparse map has a gap");
        is_ended = is_ended || is_unused;
        if (is_unused) return;
        add_sparse({sparse_number(part.offset), sparse_number(part.size)}, entry);
    };
    GnuSparseHeader header;
    std::memcpy(&header, block.data(), sizeof header);
    entry.is_sparse = true;
    entry.entry.size_bytes = sparse_number(header.real_size);
    std::ranges::for_each(header.parts, add);
    bool is_extended = header.is_extended != 0;
    while (is_extended) {
        std::array<std::byte, kTarBlockBytes> raw;
        take(raw);
        GnuSparseExtension extension;
        std::memcpy(&extension, raw.data(), sizeof extension);
        std::ranges::for_each(extension.parts, add);
        is_extended = extension.is_extended != 0;
    }
}

void LayerReader::read_sparse_map(TarEntry& entry) {
    MapText text;
    const std::uint64_t count = read_map_number(text, entry);
    if (count > limits_.sparse_parts) {
        throw TarProblem(fmt::format("sparse map of more than {} parts", limits_.sparse_parts));
    }
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t offset = read_map_number(text, entry);
        add_sparse({offset, read_map_number(text, entry)}, entry);
    }
}

std::uint64_t LayerReader::read_map_number(MapText& text, TarEntry& entry) {
    std::string number;
    for (;;) {
        if (text.used_bytes == text.block.size()) {
            if (entry.stored_bytes < kTarBlockBytes) throw TarProblem("sparse map is larger than the body");
            take(text.block);
            entry.stored_bytes -= kTarBlockBytes;
            text.used_bytes = 0;
        }
        const char c = static_cast<char>(text.block[text.used_bytes++]);
        if (c == '\n') return parse_decimal(number, "sparse map");
        number += c;
        if (number.size() > 20) throw TarProblem("sparse map has a number of more than 20 digits");
    }
}

}  // namespace lamina::store
