#include "store/error.h"
#include "store/recipe.h"
#include "store/recipe_format.h"

#include <fcntl.h>
#include <unistd.h>

#include <xxhash.h>
#include <zstd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

// Recipe files out of any bytes. With the first byte even they come as they are. Odd: the rest is three streams
// (literals, steps, chunk records; two 16-bit lengths cut it), and a file with right checksums is made of them whose
// footer takes some numbers from the input. Whatever is accepted must give a tar as long as it says.

namespace {

using namespace lamina::store;
using namespace lamina::store::recipe_format;
using Bytes = std::vector<std::byte>;

void check(bool is_so) {
    if (!is_so) std::abort();
}

class ZeroChunks : public ChunkSource {
public:
    void read(const ChunkId&, std::uint32_t, std::span<std::byte> out) override {
        std::ranges::fill(out, std::byte{0});
    }
    bool is_warm(const ChunkId&) override { return true; }
};

class CountingSink : public ByteSink {
public:
    void write(std::span<const std::byte> data) override {
        bytes += data.size();
        if (bytes > 64u << 20) throw Error(Errc::no_space, "enough");
    }
    std::uint64_t bytes = 0;
};

template <class Value>
void append(Bytes& out, const Value& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    out.insert(out.end(), bytes.begin(), bytes.end());
}

void add_block(Bytes& file, std::vector<BlockRecord>& records, BlockKind kind, std::span<const std::byte> raw) {
    if (raw.empty()) return;
    Bytes stored(raw.begin(), raw.end());
    if (kind != BlockKind::chunks) {
        stored.resize(ZSTD_compressBound(raw.size()));
        stored.resize(ZSTD_compress(stored.data(), stored.size(), raw.data(), raw.size(), 1));
    }
    BlockRecord record{};
    record.offset_bytes = file.size();
    record.checksum = XXH3_64bits(stored.data(), stored.size());
    record.stored_bytes = static_cast<std::uint32_t>(stored.size());
    record.raw_bytes = static_cast<std::uint32_t>(raw.size());
    record.kind = static_cast<std::uint32_t>(kind);
    records.push_back(record);
    file.insert(file.end(), stored.begin(), stored.end());
}

Bytes made_recipe(std::span<const std::byte> input) {
    if (input.size() < 12) return {};
    std::uint16_t cut[6];
    std::memcpy(cut, input.data(), sizeof cut);
    input = input.subspan(sizeof cut);
    const auto take = [&](std::size_t size) {
        const auto part = input.first(std::min(size, input.size()));
        input = input.subspan(part.size());
        return part;
    };
    const auto steps = take(cut[0]);
    const auto chunks = take(cut[1] % 64 * sizeof(ChunkRecord));
    Bytes file;
    append(file, FileHeader{kMagic, kVersion, 0});
    std::vector<BlockRecord> records;
    add_block(file, records, BlockKind::steps, steps);
    add_block(file, records, BlockKind::chunks, chunks);
    add_block(file, records, BlockKind::literals, input);
    const auto record_bytes = std::as_bytes(std::span(records));
    Footer footer{};
    footer.tar_bytes = input.size() + cut[2] + (std::uint64_t{cut[3]} << 16);
    footer.literal_bytes = input.size();
    footer.entry_count = cut[4];
    footer.chunk_count = chunks.size() / sizeof(ChunkRecord);
    footer.block_count = records.size();
    footer.blocks_checksum = XXH3_64bits(record_bytes.data(), record_bytes.size());
    footer.magic = kMagic;
    footer.checksum = XXH3_64bits(&footer, offsetof(Footer, checksum));
    file.insert(file.end(), record_bytes.begin(), record_bytes.end());
    append(file, footer);
    return file;
}

void read_all(const std::string& path) {
    const auto recipe = Recipe::open(path);
    check(recipe->chunks().size() <= 10'000);
    try {
        const auto entries = recipe->entries();
        while (const auto entry = entries->next()) {
            std::uint64_t size = 0;
            for (const auto& part : entry->content) size += part.size_bytes;
            check(size == entry->size_bytes);
        }
    } catch (const Error& error) {
        check(error.code() == Errc::corrupt);
    }
    ZeroChunks chunks;
    CountingSink out;
    recipe->write_tar(chunks, out);
    check(out.bytes == recipe->tar_bytes());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::string path = "/dev/shm/recipe_fuzz." + std::to_string(::getpid());
    if (size < 1) return 0;
    const auto input = std::as_bytes(std::span(data, size)).subspan(1);
    const Bytes file = data[0] & 1 ? made_recipe(input) : Bytes(input.begin(), input.end());
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    check(::write(fd, file.data(), file.size()) == static_cast<ssize_t>(file.size()));
    ::close(fd);
    try {
        read_all(path);
    } catch (const Error& error) {
        check(error.code() == Errc::corrupt || error.code() == Errc::unsupported || error.code() == Errc::no_space);
    }
    ::unlink(path.c_str());
    return 0;
}
