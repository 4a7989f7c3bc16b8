#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lamina::test {

/// Bytes that do not compress, the same for the same seed on every machine (SplitMix64).
inline std::vector<std::byte> random_bytes(std::size_t size_bytes, std::uint64_t seed) {
    std::vector<std::byte> out(size_bytes);
    std::uint64_t state = seed;
    for (std::size_t i = 0; i < out.size(); ++i) {
        if (i % 8 == 0) state += 0x9E3779B97F4A7C15;
        std::uint64_t mixed = (state ^ state >> 30) * 0xBF58476D1CE4E5B9;
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB;
        out[i] = static_cast<std::byte>((mixed ^ mixed >> 31) >> (i % 8 * 8));
    }
    return out;
}

/// Bytes that compress about as text does: words from a small list.
inline std::vector<std::byte> text_bytes(std::size_t size_bytes, std::uint64_t seed) {
    static constexpr const char* kWords[] = {"layer ", "chunk ", "frame ",   "mount\n", "of ", "the ",
                                             "whole ", "small ", "library ", "/usr/",   "is ", "0123 "};
    std::vector<std::byte> out;
    const std::vector<std::byte> choice = random_bytes(size_bytes, seed);
    for (std::size_t i = 0; out.size() < size_bytes; ++i) {
        for (const char* at = kWords[std::to_integer<unsigned>(choice[i]) % 12]; *at; ++at) {
            out.push_back(static_cast<std::byte>(*at));
        }
    }
    out.resize(size_bytes);
    return out;
}

}  // namespace lamina::test
