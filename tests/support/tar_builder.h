#pragma once

#include "store/byte_stream.h"
#include "store/chunk_sink.h"
#include "store/content.h"
#include "store/tar_header.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lamina::test {

/// What a tar entry has besides name and body.
struct TarAttributes {
    std::uint32_t mode = 0644;
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    store::Timestamp mtime{1'600'000'000, 0};
    std::map<std::string, std::string> xattrs;
};

/// One 512-byte header, field by field, so that tests can also make wrong ones. Texts go into the fields as they are;
/// empty ones stay zero bytes. The checksum is right unless `checksum` is given.
struct RawHeader {
    std::string name;
    char type_flag = '0';
    std::string size = "00000000000";
    std::string mode = "0000644";
    std::string uid = "0000000";
    std::string gid = "0000000";
    std::string mtime = "13727410000";
    std::string checksum;
    std::string link_name;
    std::string magic = std::string(
        "ustar\0"
        "00",
        8);
    std::string device_major;
    std::string device_minor;
    std::string tail;  ///< From offset 345 on: the prefix, or what GNU has there.
    std::string bytes() const;
};

/// A layer tar, entry after entry. What ustar cannot say goes into pax headers.
class TarBuilder {
public:
    using Pax = std::vector<std::pair<std::string, std::string>>;

    TarBuilder& file(const std::string& path, std::string_view body, const TarAttributes& attributes = {});
    TarBuilder& folder(const std::string& path, const TarAttributes& attributes = {.mode = 0755});
    TarBuilder& symlink(const std::string& path, const std::string& target);
    TarBuilder& hardlink(const std::string& path, const std::string& target);
    TarBuilder& device(const std::string& path, char type_flag, std::pair<unsigned, unsigned> numbers);
    TarBuilder& fifo(const std::string& path);
    TarBuilder& whiteout(const std::string& path);  ///< "a/b" makes the entry "a/.wh.b".
    /// GNU sparse 1.0. `data` are the bytes of all ranges, one after another.
    TarBuilder& sparse(const std::string& path, std::uint64_t file_bytes, const std::vector<store::TarRange>& map,
                       std::string_view data);
    TarBuilder& pax(const Pax& records, char type_flag = 'x');  ///< An extended header for what comes next.
    TarBuilder& long_name(const std::string& name, char type_flag = 'L');
    TarBuilder& raw(const RawHeader& header, std::string_view body = {});  ///< With padding. The size field is yours.
    TarBuilder& bytes(std::string_view anything);

    std::string open_tar() const { return tar_; }  ///< Without end marker.
    std::string tar() const { return tar_ + std::string(1024, '\0'); }

private:
    TarBuilder& entry(RawHeader header, std::string_view body, const TarAttributes& attributes);
    std::string tar_;
};

std::string pax_record(const std::string& key, const std::string& value);
std::string octal(std::uint64_t number, std::size_t digits = 11);
std::string base_256(std::int64_t number, std::size_t field_bytes = 12);

/// The bytes of a text, at most `piece_bytes` in one read.
class TextSource : public store::ByteSource {
public:
    explicit TextSource(std::string text, std::size_t piece_bytes = SIZE_MAX)
        : text_(std::move(text)), piece_bytes_(piece_bytes) {}
    std::size_t read(std::span<std::byte> out) override;

private:
    std::string text_;
    std::size_t piece_bytes_;
    std::size_t offset_ = 0;
};

/// Chunks in memory.
class MemoryChunks : public store::ChunkSink, public store::ChunkSource {
public:
    store::ChunkId add(std::span<const std::byte> data) override;
    void read(const store::ChunkId& chunk, std::uint32_t offset_bytes, std::span<std::byte> out) override;
    bool is_warm(const store::ChunkId&) override { return true; }
    std::string text(const store::Content& content) const;  ///< Of a whole file, holes as zeros.
    std::map<store::ChunkId, std::string> chunks;
};

}  // namespace lamina::test
