#include "store/decompressor.h"
#include "store/error.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

// Compressed layers out of any bytes. The first byte chooses gzip or zstd, the second how input and output are cut. The
// result must not depend on the cuts: the same bytes, or an error.

namespace {

using namespace lamina::store;
using Bytes = std::vector<std::byte>;

constexpr std::size_t kMaxOutBytes = 256 << 10;

struct Cuts {
    std::size_t in_bytes;
    std::size_t out_bytes;
};

/// nullopt: refused.
std::optional<Bytes> plain(Compression compression, std::span<const std::byte> blob, const Cuts& cuts) {
    Bytes out;
    try {
        const auto decompressor = Decompressor::make(compression, StreamLimits{.zstd_window_bytes = 1 << 20});
        Bytes buffer(cuts.out_bytes);
        unsigned idle = 0;
        for (std::span<const std::byte> unused; idle < 4;) {
            if (unused.empty()) {
                unused = blob.first(std::min(blob.size(), cuts.in_bytes));
                blob = blob.subspan(unused.size());
            }
            const auto step = decompressor->step(unused, buffer);
            unused = unused.subspan(step.used_bytes);
            out.insert(out.end(), buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(step.made_bytes));
            idle = step.used_bytes == 0 && step.made_bytes == 0 ? idle + 1 : 0;
            if (out.size() > kMaxOutBytes) return std::nullopt;
            if (idle == 4 && !unused.empty()) return std::nullopt;
        }
        decompressor->end();
        return out;
    } catch (const Error& error) {
        if (error.code() != Errc::malformed) std::abort();
        return std::nullopt;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size < 2) return 0;
    const Compression compression = data[0] & 1 ? Compression::gzip : Compression::zstd;
    const Cuts cuts{1 + data[1] % 16u, 1 + data[1] / 16u * 37u};
    const auto blob = std::as_bytes(std::span(data, size)).subspan(2);
    if (plain(compression, blob, {SIZE_MAX, 64 * 1024}) != plain(compression, blob, cuts)) std::abort();
    return 0;
}
