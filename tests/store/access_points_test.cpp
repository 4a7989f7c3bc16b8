#include "store/access_points.h"

#include "store/digest.h"
#include "store/error.h"
#include "store/gzip_writer.h"
#include "store/zstd_writer.h"
#include "support/catch.h"
#include "support/oci_archive.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::AccessPoints;
using store::Compression;

namespace {

/// Text that compresses, with references far back, and runs that do not compress.
std::string sample(std::size_t size) {
    std::minstd_rand random(5);
    std::string text;
    while (text.size() < size) {
        const unsigned kind = random() % 4;
        if (kind == 0) {
            for (int i = 0; i < 3000; ++i) text += static_cast<char>(random());
        } else if (kind == 1) {
            text += std::string(random() % 20'000, static_cast<char>('a' + random() % 20));
        } else if (text.size() > 30'000) {
            text += text.substr(text.size() - 1 - random() % 30'000, random() % 5000);
        } else {
            text += "begin " + std::to_string(random());
        }
    }
    text.resize(size);
    return text;
}

template <class Writer>
std::string written(std::string_view text) {
    test::StringSink sink;
    Writer writer(sink);
    writer.write(store::as_bytes(text));
    writer.finish();
    return sink.text;
}

AccessPoints points_of(const std::string& blob, Compression compression, std::size_t piece_bytes) {
    store::AccessPointsMaker maker(compression);
    const auto bytes = store::as_bytes(blob);
    for (std::size_t at = 0; at < bytes.size(); at += piece_bytes) {
        maker.take(bytes.subspan(at, std::min(piece_bytes, bytes.size() - at)));
    }
    return maker.finish();
}

/// Every range that matters gives the tar's bytes from a part of the blob.
void check_ranges(const AccessPoints& points, const std::string& blob, const std::string& tar) {
    std::minstd_rand random(7);
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges = {
        {0, 1}, {tar.size() - 1, tar.size()}, {0, tar.size()}};
    for (const auto& point : points.points) {
        if (point.tar_offset > 0) ranges.emplace_back(point.tar_offset - 1, point.tar_offset + 1);
        if (point.tar_offset < tar.size()) ranges.emplace_back(point.tar_offset, point.tar_offset + 1);
    }
    for (int i = 0; i < 20; ++i) {
        const std::uint64_t first = random() % tar.size();
        ranges.emplace_back(first, std::min<std::uint64_t>(tar.size(), first + 1 + random() % 300'000));
    }
    for (const auto& [first, end] : ranges) {
        CAPTURE(first, end);
        const AccessPoints::Span span = points.span_of(first, end);
        REQUIRE(span.tar_first <= first);
        REQUIRE(span.tar_end >= end);
        REQUIRE(span.blob_end <= blob.size());
        const auto part = store::as_bytes(blob).subspan(span.blob_first, span.blob_end - span.blob_first);
        const auto bytes = points.decode(span, part);
        const std::string_view got(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        REQUIRE(got == std::string_view(tar).substr(span.tar_first, span.tar_end - span.tar_first));
    }
}

}  // namespace

TEST_CASE("any part of a layer's tar is had from a part of its blob", "[store][lazy]") {
    const std::string tar = sample(21'000'000);
    SECTION("gzip") {
        const std::string blob = written<store::GzipWriter>(tar);
        const AccessPoints points = points_of(blob, Compression::gzip, 100'000);
        CHECK(points.points.size() >= 25);
        CHECK(points.points.size() <= 41);
        CHECK(points.tar_bytes == tar.size());
        CHECK(points.blob.digest == store::Digest::of(store::as_bytes(blob)));
        CHECK(points == points_of(blob, Compression::gzip, 777));
        check_ranges(points, blob, tar);
    }
    SECTION("gzip of several members, padded") {
        std::string blob;
        for (std::size_t at = 0; at < tar.size(); at += 1'500'000) {
            blob += written<store::GzipWriter>(std::string_view(tar).substr(at, 1'500'000));
        }
        const std::string padded = blob + std::string(1000, '\0');
        const AccessPoints points = points_of(padded, Compression::gzip, 65'536);
        CHECK(points.points.size() >= 25);
        check_ranges(points, padded, tar);
    }
    SECTION("zstd") {
        const std::string blob = written<store::ZstdWriter>(tar);
        const AccessPoints points = points_of(blob, Compression::zstd, 100'000);
        CHECK(points.points.size() == 6);
        check_ranges(points, blob, tar);
    }
    SECTION("not compressed") {
        const AccessPoints points = points_of(tar, Compression::none, 100'000);
        const AccessPoints::Span span = points.span_of(5'000'000, 5'000'010);
        CHECK(span.blob_end - span.blob_first == 10);
        check_ranges(points, tar, tar);
    }
}

TEST_CASE("access points are small, and read as they were written", "[store][lazy]") {
    const std::string blob = written<store::GzipWriter>(sample(21'000'000));
    const AccessPoints points = points_of(blob, Compression::gzip, 100'000);
    const std::vector<std::byte> file = points.write();
    CHECK(file.size() < points.points.size() * 8'000);
    CHECK(AccessPoints::parse(file) == points);
}

TEST_CASE("access points that are cut short or out of order are refused", "[store][lazy]") {
    const std::string blob = written<store::GzipWriter>(sample(9'000'000));
    const AccessPoints points = points_of(blob, Compression::gzip, 100'000);
    const std::vector<std::byte> file = points.write();
    for (std::size_t size = 0; size < file.size(); size += size < 200 ? 1 : 997) {
        CAPTURE(size);
        CHECK_THAT(test::error_of([&] { AccessPoints::parse(std::span(file).first(size)); }),
                   ContainsSubstring("malformed"));
    }
    const auto refused = [&](const std::function<void(AccessPoints&)>& spoil) {
        AccessPoints spoilt = points;
        spoil(spoilt);
        return test::error_of([&] { AccessPoints::parse(spoilt.write()); }).starts_with("malformed");
    };
    REQUIRE(points.points.size() >= 2);
    CHECK(refused([](AccessPoints& all) { all.points.clear(); }));
    CHECK(refused([](AccessPoints& all) { all.points[0].tar_offset = 1; }));
    CHECK(refused([](AccessPoints& all) { all.points[1].tar_offset = 0; }));
    CHECK(refused([](AccessPoints& all) { all.points[1].tar_offset = all.tar_bytes + 1; }));
    CHECK(refused([](AccessPoints& all) { all.points[1].blob_offset = all.blob_bytes + 1; }));
    CHECK(refused([](AccessPoints& all) { all.points[1].bits = 8; }));
    CHECK(refused([](AccessPoints& all) { std::swap(all.points[0], all.points[1]); }));
    auto longer = file;
    longer.push_back({});
    CHECK_THAT(test::error_of([&] { AccessPoints::parse(longer); }), ContainsSubstring("malformed"));
}

TEST_CASE("a part that does not give what its points promise is refused", "[store][lazy]") {
    const std::string tar = sample(9'000'000);
    for (const Compression compression : {Compression::gzip, Compression::zstd}) {
        const std::string blob =
            compression == Compression::gzip ? written<store::GzipWriter>(tar) : written<store::ZstdWriter>(tar);
        const AccessPoints points = points_of(blob, compression, 100'000);
        const AccessPoints::Span span = points.span_of(5'000'000, 5'000'001);
        const auto part = store::as_bytes(blob).subspan(span.blob_first, span.blob_end - span.blob_first);
        CHECK_THAT(test::error_of([&] { points.decode(span, part.first(part.size() / 2)); }),
                   ContainsSubstring("malformed"));
        const std::vector<std::byte> noise(part.size(), std::byte{0xff});
        CHECK_THAT(test::error_of([&] { points.decode(span, noise); }), ContainsSubstring("malformed"));
        CHECK_THAT(test::error_of([&] { points_of(blob.substr(5), compression, 1000); }),
                   ContainsSubstring("malformed"));
    }
}
