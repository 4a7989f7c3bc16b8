#include "store/layer_stream.h"

#include "store/error.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/tar_builder.h"

#include <zstd.h>

#include <atomic>
#include <random>
#include <thread>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::Compression;

namespace {

struct Blob {
    std::string bytes;
    Compression compression = Compression::gzip;
    std::size_t piece_bytes = SIZE_MAX;
    store::StreamLimits limits = {};
};

std::unique_ptr<store::LayerStream> open(const Blob& blob) {
    const store::LayerStream::Expected expected{store::BlobDigest{store::Digest::of(store::as_bytes(blob.bytes))},
                                                blob.bytes.size()};
    return store::LayerStream::open(std::make_unique<test::TextSource>(blob.bytes, blob.piece_bytes), blob.compression,
                                    expected, blob.limits);
}

std::string plain(const Blob& blob) {
    return test::read_all(*open(blob));
}

std::string problem(const Blob& blob) {
    return test::error_of([&] { plain(blob); });
}

/// Text that compresses about as a layer does.
std::string sample(std::size_t size) {
    std::mt19937 random(7);
    std::string out;
    while (out.size() < size) out += "line " + std::to_string(random() % 5000) + (random() % 4 ? " and on" : "\n");
    out.resize(size);
    return out;
}

/// A frame that says its window but not its size.
std::string zstd_with_window(const std::string& text, int window_log) {
    ZSTD_CCtx* const context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window_log);
    std::string out(ZSTD_compressBound(text.size()) + 100, '\0');
    ZSTD_outBuffer output{out.data(), out.size(), 0};
    ZSTD_inBuffer input{text.data(), text.size(), 0};
    while (input.pos < input.size) ZSTD_compressStream2(context, &output, &input, ZSTD_e_continue);
    while (ZSTD_compressStream2(context, &output, &input, ZSTD_e_end) != 0) {
    }
    ZSTD_freeCCtx(context);
    out.resize(output.pos);
    return out;
}

std::string skippable_frame(const std::string& text) {
    std::string out("\x5e\x2a\x4d\x18", 4);
    for (int shift = 0; shift < 32; shift += 8) out += static_cast<char>(text.size() >> shift);
    return out + text;
}

/// A valid frame of `blocks` RLE blocks of 128 KiB zeros: 4 bytes each.
std::string zstd_bomb(std::size_t blocks) {
    std::string out("\x28\xb5\x2f\xfd\x00\x38", 6);  // No content size; window 128 KiB.
    for (std::size_t i = 0; i < blocks; ++i) {
        const std::uint32_t header = (i + 1 == blocks ? 1 : 0) | 1 << 1 | (128 * 1024) << 3;
        for (int shift = 0; shift < 24; shift += 8) out += static_cast<char>(header >> shift);
        out += '\0';
    }
    return out;
}

}  // namespace

TEST_CASE("a blob of each compression comes out as it went in, in whatever pieces it arrives", "[store][stream]") {
    const std::string text = sample(3'000'000);
    const std::vector<Blob> blobs = {{test::gzipped(text), Compression::gzip},
                                     {test::zstd_compressed(text), Compression::zstd},
                                     {text, Compression::none}};
    for (Blob blob : blobs) {
        for (const std::size_t piece : {SIZE_MAX, std::size_t{100'003}, std::size_t{1013}}) {
            blob.piece_bytes = piece;
            const bool is_same = plain(blob) == text;
            CHECK(is_same);
        }
    }
    CHECK(plain({test::gzipped(""), Compression::gzip}).empty());
    CHECK(plain({test::zstd_compressed(""), Compression::zstd}).empty());
    CHECK(plain({"", Compression::none}).empty());
}

TEST_CASE("several gzip members are one stream, cut anywhere by reads; zeros may follow", "[store][stream]") {
    const std::string blob = test::gzipped(sample(5000)) + test::gzipped("") + test::gzipped("end");
    const std::string expected = sample(5000) + "end";
    for (std::size_t piece = 1; piece < 60; ++piece) {
        CAPTURE(piece);
        CHECK(plain({blob, Compression::gzip, piece}) == expected);
        CHECK(plain({blob + std::string(70, '\0'), Compression::gzip, piece}) == expected);
    }
}

TEST_CASE("several zstd frames and skippable ones are one stream, cut anywhere by reads", "[store][stream]") {
    const std::string blob = skippable_frame("first") + test::zstd_compressed(sample(5000)) + skippable_frame("") +
                             zstd_with_window("end", 20) + skippable_frame(std::string(1000, 'x'));
    const std::string expected = sample(5000) + "end";
    for (std::size_t piece = 1; piece < 60; ++piece) {
        CAPTURE(piece);
        CHECK(plain({blob, Compression::zstd, piece}) == expected);
    }
}

TEST_CASE("anything else after the end of a stream is malformed", "[store][stream]") {
    const std::string gzip = test::gzipped("hello");
    const std::string zstd = test::zstd_compressed("hello");
    for (const std::string tail : {"x", "\x1f", "\x1fx"}) {
        CHECK_THAT(problem({gzip + tail}), ContainsSubstring("malformed: layer blob: gzip"));
        CHECK_THAT(problem({zstd + tail + "abc", Compression::zstd}), ContainsSubstring("malformed: layer blob: zstd"));
    }
    CHECK_THAT(problem({gzip + std::string(10, '\0') + "x"}), ContainsSubstring("data after the end"));
    CHECK_THAT(problem({gzip + std::string(10, '\0') + gzip}), ContainsSubstring("data after the end"));
    CHECK_THAT(problem({zstd + std::string(4, '\0'), Compression::zstd}), ContainsSubstring("data after the end"));
}

TEST_CASE("a stream that is cut at any byte is malformed", "[store][stream]") {
    const std::string gzip = test::gzipped(sample(300));
    const std::string zstd = test::zstd_compressed(sample(300));
    for (std::size_t size = 0; size < gzip.size(); ++size) {
        CAPTURE(size);
        CHECK_THAT(problem({gzip.substr(0, size)}), ContainsSubstring("malformed: "));
    }
    for (std::size_t size = 0; size < zstd.size(); ++size) {
        CAPTURE(size);
        CHECK_THAT(problem({zstd.substr(0, size), Compression::zstd}), ContainsSubstring("malformed: "));
    }
}

TEST_CASE("a wrong bit gives an error or the same bytes, never other ones", "[store][stream]") {
    const std::string text = sample(300);
    for (const Compression compression : {Compression::gzip, Compression::zstd}) {
        const std::string blob = compression == Compression::gzip ? test::gzipped(text) : test::zstd_compressed(text);
        const store::BlobDigest digest{store::Digest::of(store::as_bytes(blob))};
        for (std::size_t bit = 0; bit < 8 * blob.size(); ++bit) {
            std::string broken = blob;
            broken[bit / 8] = static_cast<char>(broken[bit / 8] ^ (1 << bit % 8));
            const std::string error = test::error_of([&] {
                test::read_all(*store::LayerStream::open(std::make_unique<test::TextSource>(broken), compression,
                                                         {digest, blob.size()}, {}));
            });
            if (error.starts_with("malformed: ") || error.starts_with("corrupt: ")) continue;
            CAPTURE(bit, error);
            FAIL("wrong bytes passed");
        }
    }
}

TEST_CASE("a blob that is not what its descriptor promised is corrupt, after its bytes", "[store][stream]") {
    const std::string blob = test::gzipped("hello");
    const store::BlobDigest digest{store::Digest::of(store::as_bytes(blob))};
    const auto read = [&](const store::BlobDigest& promised, std::uint64_t size) {
        return test::error_of([&] {
            const auto stream = store::LayerStream::open(std::make_unique<test::TextSource>(blob), Compression::gzip,
                                                         {promised, size}, {});
            std::vector<std::byte> out(5);
            CHECK(stream->read(out) == 5);
            stream->read(out);
        });
    };
    CHECK(read(digest, blob.size()).empty());
    CHECK_THAT(read(digest, blob.size() + 1), ContainsSubstring("corrupt: layer blob sha256:"));
    CHECK_THAT(read(store::BlobDigest{store::Digest::of({})}, blob.size()),
               ContainsSubstring("its bytes are those of"));
    const auto longer = test::error_of([&] {
        test::read_all(*store::LayerStream::open(std::make_unique<test::TextSource>(blob), Compression::gzip,
                                                 {digest, blob.size() - 1}, {}));
    });
    CHECK_THAT(longer, ContainsSubstring("corrupt: layer blob sha256:"));
}

TEST_CASE("a bomb is refused when it passes its limit, and not after", "[store][stream]") {
    const std::string bomb = zstd_bomb(2600);  // 10 KiB, 325 MiB.
    std::uint64_t made = 0;
    const std::string error = test::error_of([&] {
        const auto stream = open({bomb, Compression::zstd});
        std::vector<std::byte> out(1 << 20);
        while (const std::size_t size = stream->read(out)) made += size;
    });
    CHECK_THAT(error, ContainsSubstring("expands to more than 200 times its size"));
    CHECK(made <= (64u << 20) + 200 * bomb.size());
    CHECK(plain({zstd_bomb(8), Compression::zstd}).size() == 1 << 20);

    const std::string zeros = test::gzipped(std::string(4'000'000, '\0'));
    CHECK_THAT(problem({.bytes = zeros, .limits = {.slack_bytes = 1'000'000}}), ContainsSubstring("expands to more"));
    CHECK(problem({.bytes = zeros, .limits = {.slack_bytes = 4'000'000}}).empty());
}

TEST_CASE("a descriptor that promises more than there is gains a bomb little", "[store][stream]") {
    const std::string bomb = zstd_bomb(100'000);  // 12 GiB.
    std::uint64_t made = 0;
    const std::string error = test::error_of([&] {
        const auto stream =
            store::LayerStream::open(std::make_unique<test::TextSource>(bomb), Compression::zstd,
                                     {store::BlobDigest{store::Digest::of({})}, UINT64_MAX}, {.ratio = 2});
        std::vector<std::byte> out(1 << 20);
        while (const std::size_t size = stream->read(out)) made += size;
    });
    CHECK_THAT(error, ContainsSubstring("expands to more than 2 times"));
    CHECK(made <= (64u << 20) + 2 * (16u << 20) + 2 * bomb.size());
}

TEST_CASE("a zstd window beyond the limit is refused", "[store][stream]") {
    const std::string text = sample(2000);
    CHECK(plain({zstd_with_window(text, 20), Compression::zstd, SIZE_MAX, {.zstd_window_bytes = 1 << 20}}) == text);
    CHECK_THAT(problem({zstd_with_window(text, 21), Compression::zstd, SIZE_MAX, {.zstd_window_bytes = 1 << 20}}),
               ContainsSubstring("malformed: layer blob: zstd"));
    CHECK(plain({zstd_with_window(text, 27), Compression::zstd}) == text);
    CHECK_THAT(problem({std::string("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00", 9), Compression::zstd}),
               ContainsSubstring("malformed: layer blob: zstd"));  // 2^31
}

TEST_CASE("zstd formats older than its first stable one are refused", "[store][stream]") {
    for (const char version : {'\x1e', '\x22', '\x23', '\x24', '\x25', '\x26', '\x27'}) {
        const std::string old = std::string(1, version) + "\xb5\x2f\xfd" + std::string(20, '\0');
        CHECK_THAT(problem({old, Compression::zstd}), ContainsSubstring("not zstd"));
    }
}

TEST_CASE("an error of the blob's source comes out of read, again and again", "[store][stream]") {
    class Failing : public store::ByteSource {
    public:
        std::size_t read(std::span<std::byte>) override { throw store::Error(store::Errc::unavailable, "no network"); }
    };
    const auto stream = store::LayerStream::open(std::make_unique<Failing>(), Compression::gzip,
                                                 {store::BlobDigest{store::Digest::of({})}, 10}, {});
    std::vector<std::byte> out(10);
    for (int i = 0; i < 2; ++i) CHECK(test::error_of([&] { stream->read(out); }) == "unavailable: no network");
}

TEST_CASE("a stream that is dropped half read ends its thread and reads no further", "[store][stream]") {
    class Endless : public store::ByteSource {
    public:
        explicit Endless(std::atomic<int>& reads) : reads_(reads) {}
        std::size_t read(std::span<std::byte> out) override {
            ++reads_;
            return out.size();
        }

    private:
        std::atomic<int>& reads_;
    };
    std::atomic<int> reads{0};
    {
        const auto stream = store::LayerStream::open(std::make_unique<Endless>(reads), Compression::none,
                                                     {store::BlobDigest{store::Digest::of({})}, UINT64_MAX}, {});
        std::vector<std::byte> out(10);
        stream->read(out);
    }
    CHECK(reads <= 5 * 4);  // Four buffers of half a MiB, and the one in hand.
}
