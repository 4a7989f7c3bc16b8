#include "store/chunker.h"

#include <algorithm>
#include <array>

namespace lamina::store {

namespace {

/// The rolling hash sees this many bytes: each step shifts one bit out of 64.
constexpr std::size_t kWindowBytes = 64;
constexpr std::uint64_t kGearSeed = 0x4C616D696E610001;  // "Lamina", 1: FORMAT.md, "Chunking".
/// A boundary needs this many leading zero bits: 18 before the average size, 14 after it (normalised chunking).
constexpr unsigned kHardBits = 18;
constexpr unsigned kEasyBits = 14;

/// SplitMix64 (Steele, Lea, Flood 2014), started at kGearSeed: entry i is its (i + 1)th output.
constexpr std::array<std::uint64_t, 256> make_gear() {
    std::array<std::uint64_t, 256> gear{};
    std::uint64_t state = kGearSeed;
    for (std::uint64_t& entry : gear) {
        state += 0x9E3779B97F4A7C15;
        std::uint64_t mixed = state;
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9;
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB;
        entry = mixed ^ mixed >> 31;
    }
    return gear;
}
constexpr std::array<std::uint64_t, 256> kGear = make_gear();

std::uint64_t roll(std::uint64_t hash, std::byte next) {
    return (hash << 1) + kGear[std::to_integer<unsigned>(next)];
}

struct Scan {
    std::uint64_t hash;
    std::size_t length;  ///< Of the chunk, when found.
    bool is_found;
};

/// Looks for a boundary after one of the bytes [from, to).
template <unsigned Bits>
Scan scan(std::uint64_t hash, const std::byte* data, std::size_t from, std::size_t to) {
    constexpr std::uint64_t kLimit = std::uint64_t{1} << (64 - Bits);  // Below it: Bits leading zeros.
    std::size_t at = from;
    // Four a round: the tests of one round are independent of its hash chain but for the values.
    for (; at + 4 <= to; at += 4) {
        const std::uint64_t a = roll(hash, data[at]);
        const std::uint64_t b = roll(a, data[at + 1]);
        const std::uint64_t c = roll(b, data[at + 2]);
        const std::uint64_t d = roll(c, data[at + 3]);
        if (std::min(std::min(a, b), std::min(c, d)) < kLimit) [[unlikely]] {
            const std::size_t length = a < kLimit ? at + 1 : b < kLimit ? at + 2 : c < kLimit ? at + 3 : at + 4;
            return {0, length, true};
        }
        hash = d;
    }
    for (; at < to; ++at) {
        hash = roll(hash, data[at]);
        if (hash < kLimit) return {0, at + 1, true};
    }
    return {hash, to, false};
}

}  // namespace

std::size_t next_boundary(std::span<const std::byte> data) {
    if (data.size() <= kSmallFileBytes) return data.size();
    // The window is filled before the first possible boundary, so that a boundary depends on the 64 bytes before it
    // and not on where its chunk began.
    std::uint64_t hash = 0;
    for (std::size_t at = kMinChunkBytes - kWindowBytes; at < kMinChunkBytes; ++at) hash = roll(hash, data[at]);
    const Scan hard = scan<kHardBits>(hash, data.data(), kMinChunkBytes, kAverageChunkBytes);
    if (hard.is_found) return hard.length;
    const std::size_t end = std::min<std::size_t>(data.size(), kMaxChunkBytes);
    return scan<kEasyBits>(hard.hash, data.data(), kAverageChunkBytes, end).length;
}

}  // namespace lamina::store
