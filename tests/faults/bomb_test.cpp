#include "store/error.h"
#include "store/layer_stream.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/tar_builder.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

// Layers that are small and would become large, made while they are read. Each is refused with one line, while memory
// stays small and the store as it was. What is large but may be is taken.

using namespace lamina;
using store::Store;
using test::TarBuilder;

namespace {

constexpr long kMostMemoryKib = 256 << 10;
constexpr std::uint64_t kPromisedBytes = 1 << 20;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kCountsMemory = false;  // The sanitizer's own would count too.
#else
constexpr bool kCountsMemory = true;
#endif

/// Text that is made piece by piece: `next(n)` gives the nth, an empty one ends it.
class MadeSource : public store::ByteSource {
public:
    explicit MadeSource(std::function<std::string(std::uint64_t)> next) : next_(std::move(next)) {}
    std::size_t read(std::span<std::byte> out) override {
        if (at_ == piece_.size()) {
            piece_ = next_(number_++);
            at_ = 0;
        }
        const std::size_t size = std::min(out.size(), piece_.size() - at_);
        std::memcpy(out.data(), piece_.data() + at_, size);
        at_ += size;
        return size;
    }

private:
    std::function<std::string(std::uint64_t)> next_;
    std::uint64_t number_ = 0;
    std::string piece_;
    std::size_t at_ = 0;
};

using Source = std::unique_ptr<store::ByteSource>;
using MakeSource = std::function<Source()>;

Source once(std::string text) {
    return std::make_unique<test::TextSource>(std::move(text));
}

/// `first`, then `again` so many times, then `last`.
Source repeated(std::string first, std::string again, std::uint64_t times, std::string last = "") {
    if (first.empty()) first = again;  // An empty piece would be the end.
    return std::make_unique<MadeSource>([=](std::uint64_t n) {
        return n == 0 ? first : n <= times ? again : n == times + 1 ? last : std::string();
    });
}

/// As a blob of this size would come from a registry; its digest is never reached.
Source decompressed(Source blob, store::Compression compression, std::uint64_t blob_bytes) {
    const store::LayerStream::Expected expected{.digest = {store::Digest::of({})}, .size_bytes = blob_bytes};
    return store::LayerStream::open(std::move(blob), compression, expected, {});
}

/// A blob that is what its digest says.
Source whole(const std::string& blob, store::Compression compression) {
    const store::LayerStream::Expected expected{.digest = {store::Digest::of(store::as_bytes(blob))},
                                                .size_bytes = blob.size()};
    return store::LayerStream::open(once(blob), compression, expected, {});
}

struct Outcome {
    std::string text;  ///< The error; "taken" when there was none.
    long memory_kib = 0;
};

/// In a process of its own, whose memory is measured. `layer`: of a new image on top of kept:1.
Outcome commit_of(const std::string& root, const store::ImageSummary& base, const MakeSource& layer) {
    std::array<int, 2> ends{};
    REQUIRE(::pipe(ends.data()) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        std::string text = test::error_of([&] {
            const auto opened = Store::open(root);
            const Source tar = layer();
            opened->commit({.base_config_digest = base.config.digest.text(),
                            .base_layers = base.layers,
                            .name = store::ImageName::parse("bomb:1"),
                            .created_by = "test",
                            .progress = {}},
                           *tar, {});
        });
        if (text.empty()) text = "taken";
        ::_exit(::write(ends[1], text.data(), text.size()) == ssize_t(text.size()) ? 0 : 1);
    }
    ::close(ends[1]);
    Outcome outcome;
    std::array<char, 4096> piece;
    ssize_t got = 0;
    while ((got = ::read(ends[0], piece.data(), piece.size())) > 0) outcome.text.append(piece.data(), std::size_t(got));
    ::close(ends[0]);
    int status = 0;
    rusage usage{};
    REQUIRE(::wait4(child, &status, 0, &usage) == child);
    REQUIRE(status == 0);
    outcome.memory_kib = usage.ru_maxrss;
    return outcome;
}

/// A store with one image, to which nothing may happen.
class Target {
public:
    Target() {
        const auto opened = Store::open(folder_ / "s");
        base_ = test::import_from(*opened, test::write_layout(folder_ / "l", {{"kept:1", {{{"kept", "x"}}}}})).at(0);
    }
    Outcome offer(const std::string& what, const MakeSource& layer) const {
        const Outcome outcome = commit_of(folder_ / "s", base_, layer);
        std::printf("%-28s %4ld MiB  %s\n", what.c_str(), outcome.memory_kib >> 10, outcome.text.c_str());
        CAPTURE(what, outcome.text, outcome.memory_kib);
        if (kCountsMemory) CHECK(outcome.memory_kib < kMostMemoryKib);
        return outcome;
    }
    void refuses(const std::string& what, const std::string& why, const MakeSource& layer) const {
        const std::string before = bytes();
        const Outcome outcome = offer(what, layer);
        CAPTURE(what);
        CHECK((outcome.text.starts_with("malformed: ") || outcome.text.starts_with("corrupt: ")));
        CHECK_THAT(outcome.text, Catch::Matchers::ContainsSubstring(why));
        CHECK(outcome.text.find('\n') == std::string::npos);
        CHECK(bytes() == before);
        const auto opened = Store::open(folder_ / "s");
        CHECK(test::problems_of(*opened) == "");
        CHECK(opened->images().size() == 1);
    }

private:
    std::string bytes() const {
        std::string text;
        for (const char* const part : {"packs", "layers", "trees", "staging", "mounts"}) {
            text += std::to_string(test::bytes_on_disk(folder_ / "s/" + part)) + " ";
        }
        return text;
    }
    test::TempDir folder_{"/dev/shm"};
    store::ImageSummary base_{
        .manifest = {store::Digest::of({})}, .config = {store::Digest::of({})}, .tree = {store::Digest::of({})}};
};

/// A file's header with so many bytes to follow.
std::string file_header(std::uint64_t size_bytes) {
    return TarBuilder()
        .raw({.name = "zeros", .size = test::base_256(static_cast<std::int64_t>(size_bytes))})
        .open_tar();
}

}  // namespace

TEST_CASE("a compressed blob that would become too much is refused", "[bombs]") {
    const Target target;
    const std::string zeros(16 << 20, '\0');
    target.refuses("gzip of zeros", "200 times", [&] {
        // Members of 16 MiB of zeros, one after the other, are one stream of zeros.
        return decompressed(repeated(test::gzipped(file_header(1ULL << 40)), test::gzipped(zeros), 100'000),
                            store::Compression::gzip, kPromisedBytes);
    });
    target.refuses("zstd of zeros", "200 times", [&] {
        return decompressed(
            repeated(test::zstd_compressed(file_header(1ULL << 40)), test::zstd_compressed(zeros), 100'000),
            store::Compression::zstd, kPromisedBytes);
    });
    target.refuses("zstd window of 2 GiB", "zstd: ", [&] {
        // Magic, no single segment, window descriptor 2^31, then a raw block.
        return decompressed(once(std::string("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00", 9) + "x"),
                            store::Compression::zstd, 1000);
    });
    target.refuses("nested frames", "", [&] {
        std::string nested = test::zstd_compressed(zeros);
        for (int depth = 0; depth < 20; ++depth) nested = test::zstd_compressed(nested);
        return whole(nested, store::Compression::zstd);
    });
    target.refuses("gzip in gzip", "",
                   [&] { return whole(test::gzipped(test::gzipped(zeros)), store::Compression::gzip); });
    target.refuses("a million empty frames", "", [&] {
        return decompressed(repeated("", test::zstd_compressed(""), 1'000'000), store::Compression::zstd,
                            kPromisedBytes);
    });
}

TEST_CASE("a tar that claims what no file system holds is refused", "[bombs]") {
    const Target target;
    target.refuses("sparse file of 8 EiB", "file of more than", [] {
        return once(TarBuilder().sparse("huge", (1ULL << 63) - 1, {{0, 1}}, "x").tar());
    });
    target.refuses("a sparse map of millions", "sparse map of more than", [] {
        return repeated(TarBuilder()
                                .pax({{"GNU.sparse.major", "1"},
                                      {"GNU.sparse.minor", "0"},
                                      {"GNU.sparse.name", "s"},
                                      {"GNU.sparse.realsize", "1000000000"}})
                                .raw({.name = "s", .size = test::octal(1 << 30)})
                                .open_tar() +
                            "99999999\n",
                        "0\n0\n0\n0\n0\n0\n0\n0\n", 10'000'000, "");
    });
    target.refuses("pax header of 8 GiB", "extended header of", [] {
        return repeated(
            TarBuilder().raw({.name = "pax", .type_flag = 'x', .size = test::base_256(8LL << 30)}).open_tar(),
            std::string(1 << 20, 'x'), 8 << 10);
    });
    target.refuses("long name of 8 GiB", "extended header of", [] {
        return repeated(
            TarBuilder().raw({.name = "name", .type_flag = 'L', .size = test::base_256(8LL << 30)}).open_tar(),
            std::string(1 << 20, 'x'), 8 << 10);
    });
    target.refuses("a path 100,000 deep", "4096", [] {
        std::string path;
        for (int depth = 0; depth < 100'000; ++depth) path += "d/";
        return once(TarBuilder().long_name(path).file("x", "x").tar());
    });
    target.refuses("files of 1 EiB together", "together", [] {
        const std::string file = TarBuilder().sparse("huge", 1ULL << 43, {{0, 1}}, "x").open_tar();
        return repeated("", file, 200'000);
    });
}

TEST_CASE("millions of entries are refused or taken in little memory", "[bombs]") {
    const Target target;
    target.refuses("10 million empty entries", "entries", [] {
        return std::make_unique<MadeSource>([](std::uint64_t n) {
            std::string batch;
            for (std::uint64_t i = 0; i < 1000 && n < 10'000; ++i) {
                batch += TarBuilder().raw({.name = "d/" + std::to_string(n * 1000 + i)}).open_tar();
            }
            return batch;
        });
    });
    const std::uint64_t thousands = std::getenv("LAMINA_EVERY") ? 1000 : 200;
    const auto links = [=] {
        return std::make_unique<MadeSource>([=](std::uint64_t n) {
            if (n == 0) return TarBuilder().file("file", "x").open_tar();
            std::string batch;
            for (std::uint64_t i = 0; i < 1000 && n <= thousands; ++i) {
                const std::string name = "l" + std::to_string(n * 1000 + i);
                batch += TarBuilder().raw({.name = name, .type_flag = '1', .link_name = "file"}).open_tar();
            }
            return batch;
        });
    };
    target.offer(std::to_string(thousands) + ",000 hard links", links);
}
