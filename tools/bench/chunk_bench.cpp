// Measures the chunk path of the store: cutting, adding new and known data, looking up in an index of 1 and 10 million
// chunks, reading warm and cold frames. Seconds are CPU seconds of all threads, so that other work on the machine does
// not show, but where it says "wall".
//
// Usage: chunk_bench [FOLDER [FILE...]]. FOLDER (default /var/tmp) gets a scratch folder that is removed again; it
// needs 1.1 GB for the large index. The FILEs' bytes, 256 MiB of them at most, are the data; without, text and noise in
// halves.

#include "store/chunk_index.h"
#include "store/chunk_store.h"
#include "store/chunker.h"
#include "store/error.h"
#include "store/file.h"
#include "store/pack_writer.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <optional>
#include <span>
#include <string>
#include <vector>

using namespace lamina;

namespace {

constexpr std::size_t kDataBytes = 256 * 1024 * 1024;
constexpr double kMega = 1e6;

/// SplitMix64: the same numbers on every machine.
class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t next() {
        state_ += 0x9E3779B97F4A7C15;
        std::uint64_t mixed = (state_ ^ state_ >> 30) * 0xBF58476D1CE4E5B9;
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB;
        return mixed ^ mixed >> 31;
    }

private:
    std::uint64_t state_;
};

/// Of the clock on the wall, or, where other work on the machine must not count, of all threads of this process.
enum class Count { wall, cpu };

double seconds_now(Count count) {
    timespec now{};
    ::clock_gettime(count == Count::wall ? CLOCK_MONOTONIC : CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

template <class Work>
double seconds_of(Work&& work, Count count = Count::cpu) {
    const double start = seconds_now(count);
    work();
    return seconds_now(count) - start;
}

std::vector<std::byte> made_data() {
    std::vector<std::byte> data(kDataBytes);
    Random random(1);
    for (std::size_t at = 0; at + 8 <= data.size(); at += 8) {
        std::uint64_t word = random.next();
        if (at / (1024 * 1024) % 2 == 0) word = (word & 0x0303030303030303) | 0x6060606060606060;  // Compresses to 1/4.
        std::copy_n(reinterpret_cast<const std::byte*>(&word), 8, data.begin() + static_cast<std::ptrdiff_t>(at));
    }
    return data;
}

std::vector<std::byte> data_of(std::span<char*> paths) {
    if (paths.empty()) return made_data();
    std::vector<std::byte> data;
    for (const char* const path : paths) {
        const auto file = store::read_file(path, std::uint64_t{1} << 40);
        data.insert(data.end(), file.begin(), file.end());
        if (data.size() > kDataBytes) data.resize(kDataBytes);
    }
    return data;
}

std::vector<std::span<const std::byte>> cut(std::span<const std::byte> data) {
    std::vector<std::span<const std::byte>> chunks;
    while (!data.empty()) {
        chunks.push_back(
            data.first(store::next_boundary(data.first(std::min<std::size_t>(data.size(), store::kMaxChunkBytes)))));
        data = data.subspan(chunks.back().size());
    }
    return chunks;
}

void bench_packs(const std::string& folder, std::span<const std::byte> data) {
    std::vector<std::span<const std::byte>> chunks;
    const double mega = static_cast<double>(data.size()) / kMega;
    fmt::print("chunking            {:8.0f} MB/s\n", mega / seconds_of([&] { chunks = cut(data); }));
    fmt::print("                    {:8.0f} bytes a chunk, {} chunks\n",
               static_cast<double>(data.size()) / static_cast<double>(chunks.size()), chunks.size());
    const auto chunk_store = store::ChunkStore::open(folder, 2 * data.size());
    const store::PackWriter::Options options{.packs_folder = folder, .staging_folder = folder, .pack_number = 1};
    store::PackWriter writer(options, *chunk_store);
    std::vector<store::ChunkId> ids;
    std::optional<store::FinishedPack> pack;
    double new_seconds = 0;
    const double wall_seconds = seconds_of(
        [&] {
            new_seconds = seconds_of([&] {
                for (const auto& chunk : chunks) ids.push_back(writer.add(chunk));
                pack = writer.finish();
            });
        },
        Count::wall);
    if (!pack) return;
    fmt::print("add(), new data     {:8.0f} MB/s, {:.0f} MB/s wall, {:.3f} of it on disk\n", mega / new_seconds,
               mega / wall_seconds, static_cast<double>(pack->file_bytes) / static_cast<double>(data.size()));
    fmt::print("add_segment()       {:8.1f} ms\n", 1e3 * seconds_of([&] { chunk_store->add_segment(*pack); }));
    store::PackWriter again({.packs_folder = folder, .staging_folder = folder, .pack_number = 2}, *chunk_store);
    const double known_seconds = seconds_of([&] {
        for (const auto& chunk : chunks) again.add(chunk);
    });
    fmt::print("add(), known data   {:8.0f} MB/s\n", mega / known_seconds);
    std::vector<std::byte> out(store::kMaxChunkBytes);
    for (const char* const state : {"cold", "warm"}) {
        const double seconds = seconds_of([&] {
            for (std::size_t i = 0; i < ids.size(); ++i) {
                chunk_store->read(ids[i], 0, std::span(out).first(chunks[i].size()));
            }
        });
        fmt::print("read(), {} frames {:8.0f} MB/s\n", state, mega / seconds);
    }
    for (const std::uint64_t step : {1, 7}) {
        const double seconds = seconds_of([&] {
            for (std::size_t i = 0; i < 1'000'000; ++i) {
                chunk_store->read(ids[i * step % ids.size()], 0, std::span(out).first(1));
            }
        });
        fmt::print("read() of one byte  {:8.0f} ns, warm, each {}th chunk\n", seconds * 1e3, step);
    }
}

store::ChunkId made_id(std::uint64_t seed) {
    Random random(seed * 0x9E37);
    std::array<std::uint64_t, 4> words{random.next(), random.next(), random.next(), random.next()};
    return {store::Digest::from_bytes(std::as_bytes(std::span(words)).first<store::Digest::kSizeBytes>())};
}

void bench_lookups(store::ChunkIndex& index, std::uint64_t count) {
    constexpr std::uint64_t kLookups = 1'000'000;
    for (const bool is_there : {true, false}) {
        Random random(count);
        std::vector<store::ChunkId> asked;
        for (std::uint64_t i = 0; i < kLookups; ++i) {
            asked.push_back(made_id(is_there ? random.next() % count : count + i));
        }
        for (const char* const state : {"first", "again"}) {
            std::uint64_t found = 0;
            const double seconds = seconds_of([&] {
                for (const auto& id : asked) found += index.snapshot()->find(id).has_value();
            });
            fmt::print("lookup {:>10} {} {} {:6.0f} ns, {} segments\n", count, is_there ? "known " : "absent", state,
                       seconds / kLookups * 1e9, index.snapshot()->segments.size());
            if (found != (is_there ? kLookups : 0)) fmt::print("WRONG: {} found\n", found);
        }
    }
}

/// Packs of mixed sizes, so that the index has as many segments as it comes to have.
void bench_index(const std::string& folder) {
    constexpr std::uint64_t kCounts[] = {1'000'000, 10'000'000};
    store::ChunkIndex index(folder);
    std::uint64_t count = 0;
    std::uint32_t pack = 0;
    double seconds = 0;
    for (const std::uint64_t target : kCounts) {
        while (count < target) {
            const std::uint64_t left = target - count;
            const std::uint64_t size = std::min<std::uint64_t>(left > 1000 ? left / 2 : left, 1'000'000);
            std::vector<store::NewChunk> chunks;
            ++pack;
            for (std::uint64_t i = 0; i < size; ++i) {
                chunks.push_back({made_id(count + i), {pack, 24, 1000, 0, 1000}});
            }
            count += size;
            seconds += seconds_of([&] { index.add(pack, chunks); });
        }
        std::uint64_t bytes = 0;
        for (const auto& segment : index.snapshot()->segments) bytes += segment->file_bytes();
        fmt::print("index of {} chunks: {:.1f} bytes a chunk, {:.1f} s in add()\n", count,
                   static_cast<double>(bytes) / static_cast<double>(count), seconds);
        bench_lookups(index, count);
    }
    const double open_ms = 1e3 * seconds_of([&] { const store::ChunkIndex again(folder); });
    fmt::print("opening it          {:8.1f} ms\n", open_ms);
}

}  // namespace

int main(int argument_count, char** arguments) {
    std::string folder = std::string(argument_count > 1 ? arguments[1] : "/var/tmp") + "/chunk-bench-XXXXXX";
    if (!::mkdtemp(folder.data())) return 1;
    int status = 0;
    try {
        const std::size_t first_file = std::min(2, argument_count);
        const auto data = data_of({arguments + first_file, static_cast<std::size_t>(argument_count) - first_file});
        store::make_folder(folder + "/packs");
        bench_packs(folder + "/packs", data);
        store::make_folder(folder + "/index");
        bench_index(folder + "/index");
    } catch (const store::Error& error) {  // main() of a program.
        fmt::print(stderr, "chunk_bench: {}\n", error.what());
        status = 1;
    }
    store::remove_tree(folder);
    return status;
}
