#include "store/inflater.h"

#include <algorithm>

// Which bytes of a window are used is seen from outside: inflated after two windows that differ in every byte, the
// output differs where it comes from the window. Where in the window from, two more tell, whose bytes are their own
// positions' low and high halves.
namespace lamina::store {

namespace {

class Reader {
public:
    Reader(std::size_t window_bytes, const BitBegin& begin, std::span<const std::byte> behind)
        : window_(window_bytes), begin_(begin), behind_(behind) {}

    /// The first 32 KiB of what comes out, after a window of these bytes.
    template <class ByteAt>
    std::vector<std::byte> after(const ByteAt& byte_at) {
        for (std::size_t i = 0; i < window_.size(); ++i) window_[i] = static_cast<std::byte>(byte_at(i));
        std::vector<std::byte> out(Inflater::kWindowBytes);
        Inflater inflater(Inflater::kRaw);
        inflater.begin(begin_, window_);
        inflater.set_input(behind_);
        z_stream& stream = inflater.stream();
        stream.next_out = reinterpret_cast<Bytef*>(out.data());
        stream.avail_out = static_cast<uInt>(out.size());
        inflater.run(Z_SYNC_FLUSH);
        out.resize(out.size() - stream.avail_out);
        return out;
    }

private:
    std::vector<std::byte> window_;
    const BitBegin begin_;
    const std::span<const std::byte> behind_;
};

}  // namespace

std::vector<std::byte> used_of(std::span<const std::byte> window, const BitBegin& begin,
                               std::span<const std::byte> behind) {
    std::vector<std::byte> used(window.size());
    Reader reader(window.size(), begin, behind);
    const auto zeros = reader.after([](std::size_t) { return 0x00; });
    const auto ones = reader.after([](std::size_t) { return 0xff; });
    const auto low = reader.after([](std::size_t i) { return i & 0xff; });
    const auto high = reader.after([](std::size_t i) { return i >> 8; });
    for (std::size_t i = 0; i < zeros.size(); ++i) {
        if (zeros[i] == ones[i]) continue;
        const std::size_t from = std::to_integer<std::size_t>(high[i]) << 8 | std::to_integer<std::size_t>(low[i]);
        used[from] = window[from];
    }
    return used;
}

}  // namespace lamina::store
