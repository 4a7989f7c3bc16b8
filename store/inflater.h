#pragma once

#include "store/error.h"

#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <vector>

namespace lamina::store {

/// Where deflated bytes begin within a byte.
struct BitBegin {
    std::uint32_t bits = 0;  ///< How many bits of the byte before come first.
    std::byte byte_before{};
};

/// zlib's inflate, begun anywhere.
class Inflater {
public:
    static constexpr int kAnyHeader = 15 + 32;  ///< The largest window, and gzip headers are read.
    static constexpr int kRaw = -15;
    static constexpr std::size_t kWindowBytes = 32 << 10;  ///< As far back as a deflated byte may refer.

    explicit Inflater(int window_bits) {
        if (::inflateInit2(&stream_, window_bits) != Z_OK) throw std::bad_alloc();
    }
    ~Inflater() { ::inflateEnd(&stream_); }
    Inflater(const Inflater&) = delete;
    Inflater& operator=(const Inflater&) = delete;

    z_stream& stream() { return stream_; }
    void set_input(std::span<const std::byte> in) {
        stream_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(in.data()));
        stream_.avail_in = static_cast<uInt>(in.size());
    }
    /// Of a raw one, first: what lies before its input.
    void begin(const BitBegin& begin, std::span<const std::byte> window) {
        if (begin.bits > 0) {
            const int first = std::to_integer<int>(begin.byte_before) >> (8 - begin.bits);
            ::inflatePrime(&stream_, static_cast<int>(begin.bits), first);
        }
        ::inflateSetDictionary(&stream_, reinterpret_cast<const Bytef*>(window.data()),
                               static_cast<uInt>(window.size()));
    }
    int run(int flush) {
        const int status = ::inflate(&stream_, flush);
        const bool is_good = status == Z_OK || status == Z_STREAM_END || status == Z_BUF_ERROR;
        if (!is_good) throw Error(Errc::malformed, "layer blob: gzip: damaged");
        return status;
    }
    void reset(int window_bits) { ::inflateReset2(&stream_, window_bits); }

private:
    z_stream stream_{};
};

/// The window with zeros for all that `behind`, deflated bytes that begin so, does not refer to.
std::vector<std::byte> used_of(std::span<const std::byte> window, const BitBegin& begin,
                               std::span<const std::byte> behind);

}  // namespace lamina::store
