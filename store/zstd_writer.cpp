#include "store/zstd_writer.h"

#include "store/error.h"

#include <zstd.h>

#include <algorithm>
#include <string>
#include <vector>

namespace lamina::store {

namespace {

constexpr int kLevel = 3;
constexpr std::size_t kInBytes =
    512 * 1024;  // What the library makes of bytes may depend on how they come: in this many.
constexpr std::size_t kOutBytes = 256 * 1024;
constexpr std::size_t kFrameBytes = 8 * kInBytes;

void check(std::size_t status) {
    if (::ZSTD_isError(status)) throw Error(Errc::internal, std::string("zstd: ") + ::ZSTD_getErrorName(status));
}

}  // namespace

struct ZstdWriter::State {
    struct Free {
        void operator()(ZSTD_CCtx* context) const noexcept { ::ZSTD_freeCCtx(context); }
    };
    std::unique_ptr<ZSTD_CCtx, Free> context{::ZSTD_createCCtx()};
    std::vector<std::byte> in = std::vector<std::byte>(kInBytes);
    std::vector<std::byte> out = std::vector<std::byte>(kOutBytes);
    std::size_t in_bytes = 0;
    std::size_t frame_bytes = 0;  ///< Of the frame that was begun.
    bool has_frame = false;
};

ZstdWriter::ZstdWriter(ByteSink& out) : out_(out), state_(std::make_unique<State>()) {
    if (!state_->context) throw Error(Errc::internal, "zstd: no memory");
    check(::ZSTD_CCtx_setParameter(state_->context.get(), ZSTD_c_compressionLevel, kLevel));
    check(::ZSTD_CCtx_setParameter(state_->context.get(), ZSTD_c_checksumFlag, 1));
}

ZstdWriter::~ZstdWriter() = default;

void ZstdWriter::write(std::span<const std::byte> data) {
    while (!data.empty()) {
        const std::size_t count = std::min(data.size(), kInBytes - state_->in_bytes);
        std::copy_n(data.begin(), count, state_->in.begin() + static_cast<std::ptrdiff_t>(state_->in_bytes));
        state_->in_bytes += count;
        data = data.subspan(count);
        if (state_->in_bytes == kInBytes) compress(false);
    }
}

void ZstdWriter::finish() {
    compress(true);
}

void ZstdWriter::compress(bool is_end) {
    state_->frame_bytes += state_->in_bytes;
    if (is_end && state_->frame_bytes == 0 && state_->has_frame) return;
    const bool ends_frame = is_end || state_->frame_bytes >= kFrameBytes;
    ZSTD_inBuffer in{.src = state_->in.data(), .size = state_->in_bytes, .pos = 0};
    std::size_t left = 0;
    do {
        ZSTD_outBuffer out{.dst = state_->out.data(), .size = kOutBytes, .pos = 0};
        left = ::ZSTD_compressStream2(state_->context.get(), &out, &in, ends_frame ? ZSTD_e_end : ZSTD_e_continue);
        check(left);
        if (out.pos > 0) out_.write(std::span(state_->out).first(out.pos));
    } while (in.pos < in.size || (ends_frame && left > 0));
    state_->in_bytes = 0;
    if (ends_frame) state_->frame_bytes = 0;
    state_->has_frame = true;
}

}  // namespace lamina::store
