#include "store/access_points.h"

#include "store/error.h"
#include "store/inflater.h"

#include <zstd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <string>

// A deflate block may refer to the 32 KiB before it, and begins at any bit. So a point in gzip is a block's first bit,
// and of those 32 KiB what the bytes behind it do refer to, which is a tenth: all else is zeros, and costs next to
// nothing. zlib stops at each block's end when it is asked to; ISA-L, which reads layers everywhere else, does
// not. In zstd a frame refers to nothing before it.
namespace lamina::store {

namespace {

constexpr std::array<char, 8> kMagic = {'L', 'A', 'M', 'I', 'N', 'A', 'P', '1'};
constexpr std::size_t kMaxPoints = 1 << 20;
constexpr int kWindowLevel = 12;
constexpr std::size_t kTrailerBytes = 8;
constexpr std::uint64_t kZstdBlockBytes = 160 << 10;
constexpr std::uint64_t kDeflateBlockBytes = 16 << 10;

static_assert(std::endian::native == std::endian::little);

struct Header {
    std::array<char, 8> magic;
    std::array<std::byte, Digest::kSizeBytes> blob;
    std::uint64_t blob_bytes;
    std::uint64_t tar_bytes;
    std::uint32_t compression;
    std::uint32_t point_count;
};
static_assert(sizeof(Header) == 64);

struct PointRecord {
    std::uint64_t tar_offset;
    std::uint64_t blob_offset;
    std::uint32_t bits;
    std::uint32_t window_size;  ///< Compressed, in the order of the points behind all records.
};
static_assert(sizeof(PointRecord) == 24);

[[noreturn]] void refuse(const std::string& why) {
    throw Error(Errc::malformed, "access points: " + why);
}

std::vector<std::byte> compressed(std::span<const std::byte> window) {
    if (window.empty()) return {};
    std::vector<std::byte> out(::ZSTD_compressBound(window.size()));
    const std::size_t size = ::ZSTD_compress(out.data(), out.size(), window.data(), window.size(), kWindowLevel);
    if (::ZSTD_isError(size)) throw Error(Errc::internal, "access points: a window cannot be compressed");
    out.resize(size);
    return out;
}

std::vector<std::byte> decompressed(std::span<const std::byte> window) {
    if (window.empty()) return {};
    std::vector<std::byte> out(Inflater::kWindowBytes);
    const std::size_t size = ::ZSTD_decompress(out.data(), out.size(), window.data(), window.size());
    if (::ZSTD_isError(size)) refuse("a window is damaged");
    out.resize(size);
    return out;
}

class Maker {
public:
    virtual ~Maker() = default;
    virtual void take(std::span<const std::byte> in) = 0;
    virtual void end() {}
    virtual std::uint64_t tar_bytes() const = 0;
    std::vector<AccessPoint> points;
};

class PlainMaker : public Maker {
public:
    PlainMaker() { points.push_back({}); }
    void take(std::span<const std::byte> in) override { bytes_ += in.size(); }
    std::uint64_t tar_bytes() const override { return bytes_; }

private:
    std::uint64_t bytes_ = 0;
};

class GzipMaker : public Maker {
public:
    void take(std::span<const std::byte> in) override {
        inflater_.set_input(in);
        z_stream& stream = inflater_.stream();
        while (stream.avail_in > 0) {
            if (is_between_members_) {
                if (*stream.next_in == 0) return;  // Padding behind the last member.
                is_between_members_ = false;
            }
            if (ring_at_ == Inflater::kWindowBytes) ring_at_ = 0;
            stream.next_out = reinterpret_cast<Bytef*>(ring_.data() + ring_at_);
            stream.avail_out = static_cast<uInt>(Inflater::kWindowBytes - ring_at_);
            const uInt in_before = stream.avail_in;
            const uInt out_before = stream.avail_out;
            const auto rest = in.last(in_before);
            const int status = inflater_.run(Z_BLOCK);
            const auto consumed = rest.first(in_before - stream.avail_in);
            blob_bytes_ += consumed.size();
            if (!consumed.empty()) last_byte_ = consumed.back();
            const std::size_t made = out_before - stream.avail_out;
            ring_at_ += made;
            tar_bytes_ += made;
            if (newest_) {
                newest_->behind.insert(newest_->behind.end(), consumed.begin(), consumed.end());
                if (tar_bytes_ >= points.back().tar_offset + Inflater::kWindowBytes) end();
            }
            if (status == Z_STREAM_END) {
                inflater_.reset(Inflater::kAnyHeader);
                is_between_members_ = true;
                continue;
            }
            const bool is_block_end = (stream.data_type & 128) != 0 && (stream.data_type & 64) == 0;
            if (is_block_end && is_due()) add_point(static_cast<std::uint32_t>(stream.data_type & 7));
        }
    }
    /// No byte that is more than 32 KiB behind a point refers to what is before it.
    void end() override {
        if (!newest_) return;
        points.back().window = compressed(used_of(newest_->window, newest_->begin, newest_->behind));
        newest_.reset();
    }
    std::uint64_t tar_bytes() const override { return tar_bytes_; }

private:
    bool is_due() const {
        return points.empty() || tar_bytes_ >= points.back().tar_offset + AccessPoints::kSpacingBytes;
    }
    void add_point(std::uint32_t bits) {
        const std::size_t size = static_cast<std::size_t>(std::min<std::uint64_t>(tar_bytes_, Inflater::kWindowBytes));
        std::vector<std::byte> window;
        for (std::size_t i = 0; i < size; ++i) {
            window.push_back(ring_[(ring_at_ + Inflater::kWindowBytes - size + i) % Inflater::kWindowBytes]);
        }
        points.push_back({.tar_offset = tar_bytes_, .blob_offset = blob_bytes_, .bits = bits, .window = {}});
        newest_ = Newest{.begin = {bits, last_byte_}, .window = std::move(window), .behind = {}};
    }

    /// The last point, until it is known what of its window is used.
    struct Newest {
        BitBegin begin;
        std::vector<std::byte> window;
        std::vector<std::byte> behind;  ///< Blob bytes.
    };
    Inflater inflater_{Inflater::kAnyHeader};
    std::vector<std::byte> ring_ = std::vector<std::byte>(Inflater::kWindowBytes);
    std::size_t ring_at_ = 0;
    std::uint64_t blob_bytes_ = 0;
    std::uint64_t tar_bytes_ = 0;
    std::byte last_byte_{};
    bool is_between_members_ = false;
    std::optional<Newest> newest_;
};

class ZstdMaker : public Maker {
public:
    ZstdMaker() : context_(::ZSTD_createDCtx()) {
        if (!context_) throw std::bad_alloc();
        points.push_back({});
    }
    void take(std::span<const std::byte> in) override {
        ZSTD_inBuffer input{.src = in.data(), .size = in.size(), .pos = 0};
        while (input.pos < input.size) {
            if (is_frame_end_ && tar_bytes_ >= points.back().tar_offset + AccessPoints::kSpacingBytes) {
                points.push_back(
                    {.tar_offset = tar_bytes_, .blob_offset = blob_bytes_ + input.pos, .bits = 0, .window = {}});
            }
            ZSTD_outBuffer output{.dst = out_.data(), .size = out_.size(), .pos = 0};
            const std::size_t status = ::ZSTD_decompressStream(context_.get(), &output, &input);
            if (::ZSTD_isError(status)) throw Error(Errc::malformed, "layer blob: zstd: damaged");
            tar_bytes_ += output.pos;
            is_frame_end_ = status == 0;
        }
        blob_bytes_ += in.size();
    }
    std::uint64_t tar_bytes() const override { return tar_bytes_; }

private:
    struct Free {
        void operator()(ZSTD_DCtx* context) const noexcept { ::ZSTD_freeDCtx(context); }
    };
    std::unique_ptr<ZSTD_DCtx, Free> context_;
    std::vector<std::byte> out_ = std::vector<std::byte>(256 << 10);
    std::uint64_t blob_bytes_ = 0;
    std::uint64_t tar_bytes_ = 0;
    bool is_frame_end_ = false;
};

std::unique_ptr<Maker> make_maker(Compression compression) {
    switch (compression) {
        case Compression::none:
            return std::make_unique<PlainMaker>();
        case Compression::gzip:
            return std::make_unique<GzipMaker>();
        case Compression::zstd:
            return std::make_unique<ZstdMaker>();
    }
    throw Error(Errc::internal, "access points: of no compression");
}

template <class Record>
void append(std::vector<std::byte>& out, const Record& record) {
    const auto bytes = std::as_bytes(std::span(&record, 1));
    out.insert(out.end(), bytes.begin(), bytes.end());
}

template <class Record>
Record take_record(std::span<const std::byte>& file) {
    Record record;
    if (file.size() < sizeof record) refuse("the file is cut short");
    std::memcpy(&record, file.data(), sizeof record);
    file = file.subspan(sizeof record);
    return record;
}

std::vector<std::byte> decode_gzip(const AccessPoint& point, std::span<const std::byte> in, std::size_t size_bytes) {
    std::vector<std::byte> out(size_bytes);
    if (point.bits > 0 && in.empty()) return {};
    Inflater inflater(Inflater::kRaw);
    z_stream& stream = inflater.stream();
    const BitBegin begin{point.bits, point.bits > 0 ? in[0] : std::byte{}};
    inflater.begin(begin, decompressed(point.window));
    inflater.set_input(in.subspan(point.bits > 0 ? 1 : 0));
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = static_cast<uInt>(out.size());
    bool is_raw = true;
    while (stream.avail_out > 0) {
        const int status = inflater.run(Z_NO_FLUSH);
        if (status == Z_STREAM_END) {  // The next member begins behind this one's trailer.
            const std::size_t trailer = is_raw ? kTrailerBytes : 0;
            if (stream.avail_in <= trailer) break;
            stream.next_in += trailer;
            stream.avail_in -= static_cast<uInt>(trailer);
            inflater.reset(Inflater::kAnyHeader);
            is_raw = false;
        } else if (status == Z_BUF_ERROR) {
            break;
        }
    }
    out.resize(out.size() - stream.avail_out);
    return out;
}

std::vector<std::byte> decode_zstd(std::span<const std::byte> in, std::size_t size_bytes) {
    const std::unique_ptr<ZSTD_DCtx, decltype(&::ZSTD_freeDCtx)> context(::ZSTD_createDCtx(), ::ZSTD_freeDCtx);
    if (!context) throw std::bad_alloc();
    std::vector<std::byte> out(size_bytes);
    ZSTD_inBuffer input{.src = in.data(), .size = in.size(), .pos = 0};
    ZSTD_outBuffer output{.dst = out.data(), .size = out.size(), .pos = 0};
    while (output.pos < output.size && input.pos < input.size) {
        if (::ZSTD_isError(::ZSTD_decompressStream(context.get(), &output, &input))) {
            throw Error(Errc::malformed, "layer blob: zstd: damaged");
        }
    }
    out.resize(output.pos);
    return out;
}

}  // namespace

class AccessPointsMaker::Impl {
public:
    explicit Impl(Compression kind) : compression(kind), maker(make_maker(kind)) {}
    const Compression compression;
    std::unique_ptr<Maker> maker;
    Hasher hasher;
    std::uint64_t blob_bytes = 0;
};

AccessPointsMaker::AccessPointsMaker(Compression compression) : impl_(std::make_unique<Impl>(compression)) {}

AccessPointsMaker::~AccessPointsMaker() = default;

void AccessPointsMaker::take(std::span<const std::byte> blob_bytes) {
    impl_->hasher.update(blob_bytes);
    impl_->blob_bytes += blob_bytes.size();
    impl_->maker->take(blob_bytes);
}

AccessPoints AccessPointsMaker::finish() {
    impl_->maker->end();
    if (impl_->maker->points.empty()) throw Error(Errc::malformed, "layer blob: gzip: ends before its stream does");
    return {.blob = {impl_->hasher.finish()},
            .blob_bytes = impl_->blob_bytes,
            .tar_bytes = impl_->maker->tar_bytes(),
            .compression = impl_->compression,
            .points = std::move(impl_->maker->points)};
}

std::vector<std::byte> AccessPoints::write() const {
    Header header{.magic = kMagic,
                  .blob = {},
                  .blob_bytes = blob_bytes,
                  .tar_bytes = tar_bytes,
                  .compression = static_cast<std::uint32_t>(compression),
                  .point_count = static_cast<std::uint32_t>(points.size())};
    std::ranges::copy(blob.digest.bytes(), header.blob.begin());
    std::vector<std::byte> out;
    append(out, header);
    std::vector<std::byte> windows;
    for (const AccessPoint& point : points) {
        append(out, PointRecord{.tar_offset = point.tar_offset,
                                .blob_offset = point.blob_offset,
                                .bits = point.bits,
                                .window_size = static_cast<std::uint32_t>(point.window.size())});
        windows.insert(windows.end(), point.window.begin(), point.window.end());
    }
    out.insert(out.end(), windows.begin(), windows.end());
    return out;
}

AccessPoints AccessPoints::parse(std::span<const std::byte> file) {
    const auto header = take_record<Header>(file);
    if (header.magic != kMagic) refuse("not a file of them, or of another version");
    if (header.compression > static_cast<std::uint32_t>(Compression::zstd)) refuse("an unknown compression");
    if (header.point_count == 0 || header.point_count > kMaxPoints) refuse("none, or too many");
    AccessPoints all{.blob = {Digest::from_bytes(header.blob)},
                     .blob_bytes = header.blob_bytes,
                     .tar_bytes = header.tar_bytes,
                     .compression = static_cast<Compression>(header.compression),
                     .points = {}};
    std::vector<std::uint32_t> window_sizes;
    for (std::uint32_t i = 0; i < header.point_count; ++i) {
        const auto record = take_record<PointRecord>(file);
        const bool is_first = all.points.empty();
        const bool is_in_order = is_first ? record.tar_offset == 0
                                          : record.tar_offset > all.points.back().tar_offset &&
                                                record.blob_offset > all.points.back().blob_offset;
        const bool is_within = record.tar_offset <= all.tar_bytes && record.blob_offset <= all.blob_bytes;
        const bool has_byte_before = record.bits == 0 || record.blob_offset > 0;
        if (!is_in_order || !is_within || record.bits > 7 || !has_byte_before) refuse("an offset is out of order");
        all.points.push_back({record.tar_offset, record.blob_offset, record.bits, {}});
        window_sizes.push_back(record.window_size);
    }
    for (std::uint32_t i = 0; i < header.point_count; ++i) {
        if (window_sizes[i] == 0) continue;
        if (window_sizes[i] > file.size()) refuse("the file is cut short");
        const auto raw_bytes = ::ZSTD_getFrameContentSize(file.data(), window_sizes[i]);
        if (raw_bytes > Inflater::kWindowBytes) refuse("a window is too large");
        all.points[i].window.assign(file.begin(), file.begin() + window_sizes[i]);
        file = file.subspan(window_sizes[i]);
    }
    if (!file.empty()) refuse("bytes follow the last window");
    return all;
}

std::uint64_t AccessPoints::widest_gap_bytes() const {
    if (compression == Compression::none) return 0;
    std::uint64_t widest = tar_bytes - points.back().tar_offset;
    for (std::size_t i = 1; i < points.size(); ++i) {
        widest = std::max(widest, points[i].tar_offset - points[i - 1].tar_offset);
    }
    return widest;
}

AccessPoints::Span AccessPoints::span_of(std::uint64_t tar_first, std::uint64_t tar_end) const {
    if (compression == Compression::none) return {0, tar_first, tar_end, tar_first, tar_end};
    const auto after = [](std::uint64_t offset, const AccessPoint& point) { return offset < point.tar_offset; };
    const auto begin = std::upper_bound(points.begin(), points.end(), tar_first, after) - 1;
    const auto end = std::upper_bound(begin, points.end(), tar_end - 1, after);
    const bool is_last = end == points.end();
    return {.point = static_cast<std::size_t>(begin - points.begin()),
            .blob_first = begin->blob_offset - (begin->bits > 0 ? 1 : 0),
            .blob_end = is_last ? blob_bytes : end->blob_offset,
            .tar_first = begin->tar_offset,
            .tar_end = is_last ? tar_bytes : end->tar_offset};
}

void AccessPoints::extend(Span& span, std::uint64_t tar_end) const {
    if (tar_end <= span.tar_end) return;
    const std::uint64_t more_bytes = tar_end - span.tar_end;
    span.tar_end = tar_end;
    if (compression == Compression::none) {
        span.blob_end = tar_end;
        return;
    }
    // What does not compress grows by less than that; zstd gives nothing before a block of 128 KiB is there.
    const std::uint64_t block_bytes = compression == Compression::zstd ? kZstdBlockBytes : kDeflateBlockBytes;
    span.blob_end += more_bytes + more_bytes / 8 + block_bytes;
    const auto behind = std::ranges::lower_bound(points, tar_end, {}, &AccessPoint::tar_offset);
    span.blob_end = std::min(span.blob_end, behind == points.end() ? blob_bytes : behind->blob_offset);
}

std::vector<std::byte> AccessPoints::decode(const Span& span, std::span<const std::byte> blob_part) const {
    const auto size = static_cast<std::size_t>(span.tar_end - span.tar_first);
    std::vector<std::byte> out;
    if (compression == Compression::none) out.assign(blob_part.begin(), blob_part.end());
    if (compression == Compression::gzip) out = decode_gzip(points[span.point], blob_part, size);
    if (compression == Compression::zstd) out = decode_zstd(blob_part, size);
    if (out.size() == size) return out;
    throw Error(Errc::malformed, "layer blob " + blob.digest.text() + ": a part of it gives " +
                                     std::to_string(out.size()) + " bytes instead of " + std::to_string(size));
}

}  // namespace lamina::store
