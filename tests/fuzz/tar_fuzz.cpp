#include "store/chunker.h"
#include "store/error.h"
#include "store/recipe.h"
#include "store/recipe_writer.h"
#include "store/tar_reader.h"
#include "store/tar_writer.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

// Tars out of any bytes. Header checksums are put right first when the first byte says so. What is accepted must keep
// LayerReader's promises about paths and maps; must come back from a recipe, entries and bytes; and must come out equal
// when TarWriter has written it and it is read again.

namespace {

using namespace lamina::store;
using Bytes = std::vector<std::byte>;

constexpr std::uint64_t kMaxWholeBytes = 1 << 20;

void check(bool is_so) {
    if (!is_so) std::abort();
}

class SpanInput : public TarInput {
public:
    SpanInput(std::span<const std::byte> data, std::size_t piece) : left_(data), piece_(piece) {}
    std::span<const std::byte> peek(std::size_t want_bytes) override {
        return left_.first(std::min(left_.size(), std::max(want_bytes, piece_)));
    }
    void consume(std::size_t bytes) override { left_ = left_.subspan(bytes); }
    bool is_empty() const { return left_.empty(); }

private:
    std::span<const std::byte> left_;
    std::size_t piece_;
};

class BytesSink : public ByteSink {
public:
    void write(std::span<const std::byte> data) override { bytes.insert(bytes.end(), data.begin(), data.end()); }
    Bytes bytes;
};

class Chunks : public ChunkSource {
public:
    ChunkId add(std::span<const std::byte> data) {
        const ChunkId id{Digest::of(data)};
        chunks_.try_emplace(id, data.begin(), data.end());
        return id;
    }
    void read(const ChunkId& chunk, std::uint32_t offset_bytes, std::span<std::byte> out) override {
        std::copy_n(chunks_.at(chunk).begin() + offset_bytes, out.size(), out.begin());
    }
    bool is_warm(const ChunkId&) override { return true; }

private:
    std::map<ChunkId, Bytes> chunks_;
};

struct Entry {
    TarEntry tar;
    Bytes body;
};

void put_checksums_right(Bytes& tar) {
    for (std::size_t at = 0; at + kTarBlockBytes <= tar.size(); at += kTarBlockBytes) {
        UstarHeader header;
        std::memcpy(&header, tar.data() + at, sizeof header);
        if (std::memcmp(header.magic, "ustar", 5) != 0) continue;
        std::memset(header.checksum, ' ', sizeof header.checksum);
        unsigned sum = 0;
        for (const std::byte byte : std::as_bytes(std::span(&header, 1))) sum += std::to_integer<unsigned>(byte);
        std::snprintf(header.checksum, sizeof header.checksum, "%06o", sum);
        std::memcpy(tar.data() + at, &header, sizeof header);
    }
}

void check_path(const std::string& path) {
    check(path.size() <= 4096 && path.find('\0') == std::string::npos && !path.starts_with('/') &&
          !path.ends_with('/'));
    const std::string framed = "/" + path + "/";
    check(framed.find("/../") == std::string::npos && framed.find("/./") == std::string::npos);
    check(path.empty() || framed.find("//") == std::string::npos);
}

void check_entry(const Entry& entry) {
    check_path(entry.tar.entry.path);
    check_path(entry.tar.entry.hardlink_target);
    check(entry.body.size() == entry.tar.stored_bytes);
    check(entry.tar.entry.metadata.mtime.nanoseconds < 1'000'000'000);
    std::uint64_t end = 0;
    std::uint64_t sum = 0;
    for (const TarRange& range : entry.tar.data_map) {
        check(range.offset_bytes >= end);
        end = range.offset_bytes + range.size_bytes;
        sum += range.size_bytes;
    }
    check(end <= entry.tar.entry.size_bytes && (!entry.tar.is_sparse || sum == entry.tar.stored_bytes));
}

/// Throws what LayerReader throws.
std::vector<Entry> read(const Bytes& tar, std::size_t piece) {
    SpanInput input(tar, piece);
    BytesSink literals;
    LayerReader reader(input, {.entries = 1000, .sparse_parts = 100'000}, &literals);
    std::vector<Entry> out;
    std::size_t body_bytes = 0;
    while (auto entry = reader.next()) {
        out.push_back({std::move(*entry), {}});
        for (auto data = reader.peek_body(1); !data.empty(); data = reader.peek_body(1)) {
            out.back().body.insert(out.back().body.end(), data.begin(), data.end());
            reader.consume_body(data.size());
        }
        body_bytes += out.back().body.size();
        check_entry(out.back());
    }
    check(input.is_empty() && literals.bytes.size() + body_bytes == tar.size() && reader.offset_bytes() == tar.size());
    return out;
}

void add_body(RecipeWriter& recipe, Chunks& chunks, std::span<const std::byte> body) {
    while (!body.empty()) {
        const auto chunk = body.first(next_boundary(body.first(std::min<std::size_t>(body.size(), kMaxChunkBytes))));
        recipe.add_chunk(chunks.add(chunk), static_cast<std::uint32_t>(chunk.size()));
        body = body.subspan(chunk.size());
    }
}

void check_recipe(const Bytes& tar, const std::string& path) {
    Chunks chunks;
    std::uint64_t entry_count = 0;
    {
        SpanInput input(tar, 1);
        RecipeWriter recipe(path);
        LayerReader reader(input, {}, &recipe);
        while (const auto entry = reader.next()) {
            ++entry_count;
            Bytes body;
            for (auto data = reader.peek_body(1); !data.empty(); data = reader.peek_body(1)) {
                body.insert(body.end(), data.begin(), data.end());
                reader.consume_body(data.size());
            }
            std::span<const std::byte> left = body;
            if (!entry->is_sparse) add_body(recipe, chunks, left);
            for (const TarRange& range : entry->data_map) {
                add_body(recipe, chunks, left.first(range.size_bytes));
                left = left.subspan(range.size_bytes);
            }
        }
        recipe.finish({DiffId{Digest::of(tar)}, tar.size(), entry_count});
    }
    const auto recipe = Recipe::open(path);
    BytesSink out;
    recipe->write_tar(chunks, out);
    check(out.bytes == tar);
    const auto entries = recipe->entries();
    while (const auto entry = entries->next()) {
        --entry_count;
        std::uint64_t size = 0;
        for (const auto& part : entry->content) size += part.size_bytes;
        check(size == entry->size_bytes);
    }
    check(entry_count == 0);
}

/// The file with its holes: TarWriter may store some of their zeros.
Bytes whole(const Entry& entry) {
    if (!entry.tar.is_sparse) return entry.body;
    Bytes out(entry.tar.entry.size_bytes);
    auto from = entry.body.begin();
    for (const TarRange& range : entry.tar.data_map) {
        const auto end = from + static_cast<std::ptrdiff_t>(range.size_bytes);
        std::copy(from, end, out.begin() + static_cast<std::ptrdiff_t>(range.offset_bytes));
        from = end;
    }
    return out;
}

void check_writer(const std::vector<Entry>& entries) {
    BytesSink out;
    TarWriter writer(out);
    for (const Entry& entry : entries) {
        std::vector<TarWriter::Range> map;
        for (const TarRange& range : entry.tar.data_map) map.push_back({range.offset_bytes, range.size_bytes});
        if (entry.tar.is_sparse && map.empty()) map.push_back({entry.tar.entry.size_bytes, 0});
        writer.begin(entry.tar.entry, map);
        writer.write_body(entry.body);
    }
    writer.finish();
    const auto again = read(out.bytes, SIZE_MAX);
    check(again.size() == entries.size());
    for (std::size_t i = 0; i < entries.size(); ++i) {
        const LayerEntry& before = entries[i].tar.entry;
        const LayerEntry& after = again[i].tar.entry;
        check(before.path == after.path && before.is_hardlink == after.is_hardlink);
        check(before.hardlink_target == after.hardlink_target && before.size_bytes == after.size_bytes);
        check(before.is_hardlink || before.metadata == after.metadata);
        if (before.size_bytes <= kMaxWholeBytes) check(whole(entries[i]) == whole(again[i]));
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::string path = "/dev/shm/tar_fuzz." + std::to_string(::getpid());
    if (size < 1) return 0;
    const auto bytes = std::as_bytes(std::span(data, size)).subspan(1);
    Bytes tar(bytes.begin(), bytes.end());
    if (data[0] & 1) put_checksums_right(tar);
    std::vector<Entry> entries;
    try {
        entries = read(tar, data[0] & 2 ? 1 : SIZE_MAX);
    } catch (const Error& error) {
        check(error.code() == Errc::malformed);
        return 0;
    }
    check_recipe(tar, path);
    ::unlink(path.c_str());
    check_writer(entries);
    return 0;
}
