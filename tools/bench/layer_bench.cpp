#include "store/digest.h"
#include "store/error.h"
#include "store/file.h"
#include "store/layer_importer.h"
#include "store/layer_stream.h"
#include "store/recipe.h"

#include <sys/resource.h>
#include <unistd.h>

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <unordered_map>
#include <vector>

// What reading a layer costs before anything is packed: `layer_bench BLOB...` reads each layer blob (gzip, zstd or
// plain) through LayerStream and import_layer into a sink that only hashes, then gives the tar back from the recipe and
// compares. Prints CPU seconds per 10^9 bytes of tar, and what the recipe takes beside 36 bytes per distinct chunk.

using namespace lamina;

namespace {

class FileSource : public store::ByteSource {
public:
    explicit FileSource(const std::string& path) : path_(path), fd_(store::open_read(path)) {}
    std::size_t read(std::span<std::byte> out) override {
        const std::size_t size = store::read_some(fd_.get(), offset_, out, path_);
        offset_ += size;
        return size;
    }

private:
    std::string path_;
    store::UniqueFd fd_;
    std::uint64_t offset_ = 0;
};

class HashingSink : public store::ChunkSink {
public:
    explicit HashingSink(bool keep) : keep_(keep) {}
    store::ChunkId add(std::span<const std::byte> data) override {
        const store::ChunkId id{store::Digest::of(data)};
        if (keep_) chunks.try_emplace(id, data.begin(), data.end());
        return id;
    }
    std::unordered_map<store::ChunkId, std::vector<std::byte>> chunks;

private:
    bool keep_;
};

class KeptChunks : public store::ChunkSource {
public:
    explicit KeptChunks(const HashingSink& sink) : sink_(sink) {}
    void read(const store::ChunkId& chunk, std::uint32_t offset_bytes, std::span<std::byte> out) override {
        const auto& data = sink_.chunks.at(chunk);
        std::copy_n(data.begin() + offset_bytes, out.size(), out.begin());
    }
    bool is_warm(const store::ChunkId&) override { return true; }

private:
    const HashingSink& sink_;
};

class HashSink : public store::ByteSink {
public:
    void write(std::span<const std::byte> data) override { hasher.update(data); }
    store::Hasher hasher;
};

double cpu_seconds() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + time.tv_usec / 1e6; };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

store::ImportedLayer import(const std::string& path, HashingSink& sink, const std::string& recipe_path) {
    FileSource whole(path);
    std::vector<std::byte> buffer(1 << 20);
    store::Hasher hasher;
    std::uint64_t size = 0;
    std::vector<std::byte> magic;
    while (const std::size_t got = whole.read(buffer)) {
        if (magic.empty()) magic.assign(buffer.begin(), buffer.begin() + std::min<std::ptrdiff_t>(4, got));
        hasher.update(std::span(buffer).first(got));
        size += got;
    }
    const store::LayerStream::Expected expected{store::BlobDigest{hasher.finish()}, size};
    const double cpu = cpu_seconds();
    const auto start = std::chrono::steady_clock::now();
    const auto stream = store::LayerStream::open(std::make_unique<FileSource>(path), store::compression_of(magic),
                                                 expected, store::StreamLimits{});
    const auto layer = store::import_layer(*stream, sink, recipe_path, store::LayerLimits{}, {});
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
    const double gigabytes = static_cast<double>(layer.tar_bytes) / 1e9;
    fmt::print("{}: {} -> {} bytes, {} entries, {:.3f} s wall, {:.2f} CPU s per GB of tar\n", path, size,
               layer.tar_bytes, layer.entry_count, wall.count(), (cpu_seconds() - cpu) / gigabytes);
    return layer;
}

void run(const std::string& path) {
    const std::string recipe_path = fmt::format("/var/tmp/layer_bench.{}.recipe", ::getpid());
    store::remove_file(recipe_path);
    HashingSink hashing(false);
    import(path, hashing, recipe_path);
    store::remove_file(recipe_path);
    HashingSink keeping(true);
    const store::ImportedLayer layer = import(path, keeping, recipe_path);
    const auto recipe = store::Recipe::open(recipe_path);
    KeptChunks chunks(keeping);
    HashSink out;
    recipe->write_tar(chunks, out);
    const bool is_same = out.hasher.finish() == layer.diff_id.digest;
    const auto cpu = cpu_seconds();
    const auto entries = recipe->entries();
    std::uint64_t count = 0;
    while (entries->next()) ++count;
    const double parsing = cpu_seconds() - cpu;
    const std::uint64_t size = store::file_size(recipe_path);
    const std::uint64_t ids = recipe->chunks().size() * 36;
    fmt::print(
        "  recipe {} bytes: {} distinct chunks, {:.1f} bytes per entry besides; read again in {:.3f} s; tar {}\n", size,
        recipe->chunks().size(), static_cast<double>(size - ids) / static_cast<double>(count), parsing,
        is_same ? "is the same" : "IS NOT THE SAME");
    store::remove_file(recipe_path);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        for (int i = 1; i < argc; ++i) run(argv[i]);
        return 0;
    } catch (const std::exception& error) {
        fmt::print(stderr, "layer_bench: {}\n", error.what());
        return 1;
    }
}
