#include "store/blob_source.h"
#include "store/error.h"
#include "store/file.h"
#include "store/image_tree.h"
#include "store/layer_importer.h"
#include "store/oci.h"
#include "store/tree_builder.h"

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>

// What an image tree costs: `tree_bench FOLDER SOURCE...` builds the tree of each image of each SOURCE ("oci:DIR", or
// "entries:N", a made-up image of N files) in FOLDER, where it stays, and prints its bytes per inode, the seconds to
// build it, and the nanoseconds of CPU per lookup of a name, per attributes and per full path, warm, in random order.

using namespace lamina;

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kRounds = 2'000'000;

class HashingSink : public store::ChunkSink {
public:
    store::ChunkId add(std::span<const std::byte> data) override { return {store::Digest::of(data)}; }
};

// A layer of N files, 50 to a folder, folders in groups.
class MadeUpLayer : public store::Recipe {
public:
    explicit MadeUpLayer(std::uint64_t count) : count_(count) {}
    store::DiffId diff_id() const override { return {store::Digest::of({})}; }
    std::uint64_t tar_bytes() const override { return 0; }
    std::uint64_t entry_count() const override { return count_; }
    std::vector<store::ChunkId> chunks() const override { return {}; }
    void write_tar(store::ChunkSource&, store::ByteSink&) const override {}
    std::unique_ptr<Entries> entries() const override { return std::make_unique<Walk>(count_); }

private:
    class Walk : public Entries {
    public:
        explicit Walk(std::uint64_t count) : count_(count) {}
        std::optional<store::LayerEntry> next() override {
            if (at_ == count_) return std::nullopt;
            store::LayerEntry entry;
            entry.path = fmt::format("usr/share/group{}/package-{}/file{}.txt", at_ / 5000, at_ / 50, at_ % 50);
            entry.size_bytes = 1000;
            entry.metadata.mode = 0644;
            entry.content = {{.chunk = {store::Digest::of(store::as_bytes(entry.path))}, .size_bytes = 1000}};
            ++at_;
            return entry;
        }

    private:
        std::uint64_t count_;
        std::uint64_t at_ = 0;
    };
    std::uint64_t count_;
};

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

long peak_memory_mib() {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss / 1024;
}

struct Place {
    store::TreeIno directory;
    std::string_view name;
    std::string path;
};

void collect(const store::ImageTree& tree, store::TreeIno directory, const std::string& prefix,
             std::vector<Place>& places) {
    for (std::uint32_t i = 0; i < tree.entry_count(directory); ++i) {
        const store::TreeName found = tree.entry(directory, i);
        places.push_back({directory, found.name, prefix + std::string(found.name)});
        if (found.type == store::FileType::directory) collect(tree, found.ino, places.back().path + "/", places);
    }
}

store::TreeIno walk(const store::ImageTree& tree, std::string_view path) {
    store::TreeIno at = store::kTreeRoot;
    while (!path.empty()) {
        const auto slash = path.find('/');
        at = tree.lookup(at, path.substr(0, slash))->ino;
        path.remove_prefix(slash == std::string_view::npos ? path.size() : slash + 1);
    }
    return at;
}

// Of this thread, so that other work on the machine counts less.
double cpu_seconds() {
    timespec now{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

template <class Call>
double nanoseconds(const std::vector<Place>& places, std::size_t rounds, Call&& call) {
    std::uint64_t sum = 0;
    for (const Place& place : places) sum += call(place);  // Warm.
    const double start = cpu_seconds();
    for (std::size_t i = 0; i < rounds; ++i) sum += call(places[i % places.size()]);
    const double taken = (cpu_seconds() - start) * 1e9 / static_cast<double>(rounds);
    if (sum == 1) fmt::print("\n");  // So that nothing is left out as unused.
    return taken;
}

void measure(const std::string& name, const std::string& folder,
             const std::vector<std::unique_ptr<store::Recipe>>& layers) {
    const auto start = Clock::now();
    const store::BuiltTree built = store::build_tree(layers, folder, {});
    const double build_seconds = seconds_since(start);
    const auto opening = Clock::now();
    const auto tree = store::ImageTree::open(folder + "/" + built.digest.digest.hex(), built.digest);
    const double open_us = seconds_since(opening) * 1e6;
    fmt::print("{}: {} layers, {} inodes, tree {} bytes, {:.1f} bytes per inode\n", name, layers.size(),
               built.inode_count, built.file_bytes,
               static_cast<double>(built.file_bytes) / static_cast<double>(built.inode_count));
    fmt::print("  {}\n  built in {:.3f} s, peak memory of this process {} MiB, opened in {:.0f} us\n",
               built.digest.digest.hex(), build_seconds, peak_memory_mib(), open_us);

    std::vector<Place> places;
    const auto reading = Clock::now();
    collect(*tree, store::kTreeRoot, "", places);
    fmt::print("  first walk through all names, which checks the blocks: {:.1f} ms\n", seconds_since(reading) * 1e3);
    std::shuffle(places.begin(), places.end(), std::mt19937(1));
    const double lookup = nanoseconds(
        places, kRounds, [&](const Place& place) { return tree->lookup(place.directory, place.name)->ino; });
    const double both = nanoseconds(places, kRounds, [&](const Place& place) {
        return tree->attributes(tree->lookup(place.directory, place.name)->ino).size_bytes;
    });
    const double path = nanoseconds(places, kRounds / 4, [&](const Place& place) { return walk(*tree, place.path); });
    fmt::print("  warm, random order: lookup {:.0f} ns, lookup + attributes {:.0f} ns, path {:.0f} ns\n", lookup, both,
               path);
}

void measure_source(const std::string& source_name, const std::string& folder) {
    const auto source = store::open_source(source_name, {});
    const auto images = source->images();
    for (std::size_t i = 0; i < images.size(); ++i) {
        std::vector<std::unique_ptr<store::Recipe>> layers;
        for (std::size_t n = 0; n < images[i].layers.size(); ++n) {
            const auto& layer = images[i].layers[n];
            const std::string recipe_path = fmt::format("{}/{}-{}.recipe", folder, i, n);
            store::remove_file(recipe_path);
            const auto stream = store::LayerStream::open(source->open_layer(i, n), layer.compression, *layer.blob,
                                                         store::StreamLimits{});
            HashingSink sink;
            store::import_layer(*stream, sink, recipe_path, store::LayerLimits{}, {});
            layers.push_back(store::Recipe::open(recipe_path));
        }
        measure(images[i].name, folder, layers);
    }
}

void run(const std::string& source, const std::string& folder) {
    if (!source.starts_with("entries:")) return measure_source(source, folder);
    std::vector<std::unique_ptr<store::Recipe>> layers;
    layers.push_back(std::make_unique<MadeUpLayer>(std::stoull(source.substr(8))));
    measure(source, folder, layers);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        fmt::print(stderr, "usage: tree_bench FOLDER SOURCE...\n");
        return 2;
    }
    try {
        store::make_folders(argv[1]);
        for (int i = 2; i < argc; ++i) run(argv[i], argv[1]);
        return 0;
    } catch (const std::exception& error) {
        fmt::print(stderr, "tree_bench: {}\n", error.what());
        return 1;
    }
}
