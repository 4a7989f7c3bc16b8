#include "support/tar_builder.h"

#include "store/error.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cstring>

namespace lamina::test {

namespace {

template <std::size_t Size>
void put(char (&field)[Size], std::string_view text) {
    assert(text.size() <= Size);
    std::memcpy(field, text.data(), text.size());
}

std::string padded(std::string_view body) {
    return std::string(body) + std::string(store::tar_padding(body.size()), '\0');
}

std::string decimal_time(const store::Timestamp& time) {
    const bool is_negative = time.seconds < 0;
    const std::int64_t seconds = is_negative && time.nanoseconds > 0 ? time.seconds + 1 : time.seconds;
    const std::uint32_t fraction =
        is_negative && time.nanoseconds > 0 ? 1'000'000'000 - time.nanoseconds : time.nanoseconds;
    return fmt::format("{}{}.{:09}", is_negative ? "-" : "", seconds < 0 ? -seconds : seconds, fraction);
}

}  // namespace

std::string octal(std::uint64_t number, std::size_t digits) {
    return fmt::format("{:0{}o}", number, digits);
}

std::string base_256(std::int64_t number, std::size_t field_bytes) {
    std::string out(field_bytes, number < 0 ? '\xff' : '\0');
    for (std::size_t i = 0; i < std::min<std::size_t>(8, field_bytes - 1); ++i) {
        out[field_bytes - 1 - i] = static_cast<char>(number >> (8 * i));
    }
    out[0] = static_cast<char>(out[0] | '\x80');
    return out;
}

std::string pax_record(const std::string& key, const std::string& value) {
    const std::string rest = " " + key + "=" + value + "\n";
    std::size_t length = rest.size() + 1;
    while (std::to_string(length).size() + rest.size() != length) ++length;
    return std::to_string(length) + rest;
}

std::string RawHeader::bytes() const {
    store::UstarHeader header{};
    put(header.name, name);
    put(header.mode, mode);
    put(header.uid, uid);
    put(header.gid, gid);
    put(header.size, size);
    put(header.mtime, mtime);
    header.type_flag = type_flag;
    put(header.link_name, link_name);
    assert(magic.size() <= 8 && tail.size() <= 167);
    std::memcpy(header.magic, magic.data(), magic.size());
    put(header.device_major, device_major);
    put(header.device_minor, device_minor);
    std::memcpy(header.prefix, tail.data(), tail.size());
    std::ranges::fill(header.checksum, ' ');
    std::string out(reinterpret_cast<const char*>(&header), sizeof header);
    unsigned sum = 0;
    for (const char c : out) sum += static_cast<unsigned char>(c);
    const std::string text = checksum.empty() ? octal(sum, 6) + std::string("\0 ", 2) : checksum;
    out.replace(offsetof(store::UstarHeader, checksum), text.size(), text);
    return out;
}

TarBuilder& TarBuilder::bytes(std::string_view anything) {
    tar_ += anything;
    return *this;
}

TarBuilder& TarBuilder::raw(const RawHeader& header, std::string_view body) {
    return bytes(header.bytes() + padded(body));
}

TarBuilder& TarBuilder::pax(const Pax& records, char type_flag) {
    std::string body;
    for (const auto& [key, value] : records) body += pax_record(key, value);
    return raw({.name = "PaxHeaders/0", .type_flag = type_flag, .size = octal(body.size())}, body);
}

TarBuilder& TarBuilder::long_name(const std::string& name, char type_flag) {
    const std::string body = name + std::string(1, '\0');
    const RawHeader header{.name = "././@LongLink",
                           .type_flag = type_flag,
                           .size = octal(body.size()),
                           .magic = std::string("ustar  \0", 8)};
    return raw(header, body);
}

TarBuilder& TarBuilder::entry(RawHeader header, std::string_view body, const TarAttributes& attributes) {
    Pax records;
    if (header.name.size() > sizeof(store::UstarHeader::name)) {
        records.emplace_back("path", header.name);
        header.name.resize(sizeof(store::UstarHeader::name));
    }
    if (header.link_name.size() > sizeof(store::UstarHeader::link_name)) {
        records.emplace_back("linkpath", header.link_name);
        header.link_name.resize(sizeof(store::UstarHeader::link_name));
    }
    if (attributes.uid > 07777777) records.emplace_back("uid", std::to_string(attributes.uid));
    if (attributes.gid > 07777777) records.emplace_back("gid", std::to_string(attributes.gid));
    if (attributes.mtime.nanoseconds > 0 || attributes.mtime.seconds < 0 || attributes.mtime.seconds > 077777777777) {
        records.emplace_back("mtime", decimal_time(attributes.mtime));
    } else {
        header.mtime = octal(static_cast<std::uint64_t>(attributes.mtime.seconds));
    }
    for (const auto& [name, value] : attributes.xattrs) records.emplace_back("SCHILY.xattr." + name, value);
    header.mode = octal(attributes.mode, 7);
    header.uid = octal(std::min<std::uint32_t>(attributes.uid, 07777777), 7);
    header.gid = octal(std::min<std::uint32_t>(attributes.gid, 07777777), 7);
    header.size = octal(body.size());
    if (!records.empty()) pax(records);
    return raw(header, body);
}

TarBuilder& TarBuilder::file(const std::string& path, std::string_view body, const TarAttributes& attributes) {
    return entry({.name = path, .type_flag = '0'}, body, attributes);
}

TarBuilder& TarBuilder::folder(const std::string& path, const TarAttributes& attributes) {
    return entry({.name = path + "/", .type_flag = '5'}, {}, attributes);
}

TarBuilder& TarBuilder::symlink(const std::string& path, const std::string& target) {
    return entry({.name = path, .type_flag = '2', .link_name = target}, {}, {.mode = 0777});
}

TarBuilder& TarBuilder::hardlink(const std::string& path, const std::string& target) {
    return entry({.name = path, .type_flag = '1', .link_name = target}, {}, {});
}

TarBuilder& TarBuilder::device(const std::string& path, char type_flag, std::pair<unsigned, unsigned> numbers) {
    const RawHeader header{.name = path,
                           .type_flag = type_flag,
                           .device_major = octal(numbers.first, 7),
                           .device_minor = octal(numbers.second, 7)};
    return entry(header, {}, {.mode = 0600});
}

TarBuilder& TarBuilder::fifo(const std::string& path) {
    return entry({.name = path, .type_flag = '6'}, {}, {});
}

TarBuilder& TarBuilder::whiteout(const std::string& path) {
    const auto slash = path.rfind('/');
    const std::string parent = slash == std::string::npos ? "" : path.substr(0, slash + 1);
    return file(parent + ".wh." + path.substr(parent.size()), "");
}

TarBuilder& TarBuilder::sparse(const std::string& path, std::uint64_t file_bytes,
                               const std::vector<store::TarRange>& map, std::string_view data) {
    std::string body = std::to_string(map.size()) + "\n";
    for (const auto& range : map) body += fmt::format("{}\n{}\n", range.offset_bytes, range.size_bytes);
    body = padded(body) + std::string(data);
    pax({{"GNU.sparse.major", "1"},
         {"GNU.sparse.minor", "0"},
         {"GNU.sparse.name", path},
         {"GNU.sparse.realsize", std::to_string(file_bytes)}});
    return raw({.name = "GNUSparseFile.0/file", .size = octal(body.size())}, body);
}

std::size_t TextSource::read(std::span<std::byte> out) {
    const std::size_t count = std::min({out.size(), text_.size() - offset_, piece_bytes_});
    std::memcpy(out.data(), text_.data() + offset_, count);
    offset_ += count;
    return count;
}

store::ChunkId MemoryChunks::add(std::span<const std::byte> data) {
    const store::ChunkId id{store::Digest::of(data)};
    chunks.try_emplace(id, reinterpret_cast<const char*>(data.data()), data.size());
    return id;
}

void MemoryChunks::read(const store::ChunkId& chunk, std::uint32_t offset_bytes, std::span<std::byte> out) {
    const auto found = chunks.find(chunk);
    if (found == chunks.end()) throw store::Error(store::Errc::not_found, "chunk " + chunk.digest.hex());
    assert(offset_bytes + out.size() <= found->second.size());
    std::memcpy(out.data(), found->second.data() + offset_bytes, out.size());
}

std::string MemoryChunks::text(const store::Content& content) const {
    std::string out;
    for (const auto& part : content) out += part.is_hole ? std::string(part.size_bytes, '\0') : chunks.at(part.chunk);
    return out;
}

}  // namespace lamina::test
