#include "store/layer_stream.h"

#include <algorithm>
#include <array>

namespace lamina::store {

Compression compression_of(std::span<const std::byte> first_bytes) {
    constexpr std::array gzip = {std::byte{0x1f}, std::byte{0x8b}};
    constexpr std::array zstd = {std::byte{0x28}, std::byte{0xb5}, std::byte{0x2f}, std::byte{0xfd}};
    const auto begins_with = [&](std::span<const std::byte> magic) {
        return first_bytes.size() >= magic.size() && std::equal(magic.begin(), magic.end(), first_bytes.begin());
    };
    if (begins_with(gzip)) return Compression::gzip;
    return begins_with(zstd) ? Compression::zstd : Compression::none;
}

}  // namespace lamina::store
