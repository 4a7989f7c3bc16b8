#include "store/decompressor.h"

#include "store/error.h"

#include <fmt/format.h>
#include <isa-l/igzip_lib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <new>

// Each kind is a small state machine around its library. Both gzip and zstd are sequences of members (frames): at the
// start of one, its first bytes are gathered and looked at here, so that what follows the last member is judged by our
// rule and not by the library's: after gzip only zeros (tapes and some registries pad), after zstd nothing. And so that
// zstd's formats before 1.0, which the library may still read, are refused.

namespace lamina::store {

namespace {

[[noreturn]] void refuse(const std::string& problem) {
    throw Error(Errc::malformed, "layer blob: " + problem);
}

class Copier : public Decompressor {
public:
    Step step(std::span<const std::byte> in, std::span<std::byte> out) override {
        const std::size_t count = std::min(in.size(), out.size());
        std::memcpy(out.data(), in.data(), count);
        return {count, count};
    }
    void end() override {}
};

class GzipDecompressor : public Decompressor {
public:
    GzipDecompressor() : state_(std::make_unique<inflate_state>()) {}

    Step step(std::span<const std::byte> in, std::span<std::byte> out) override {
        if (where_ == Where::in_member) return inflate(in, out);
        if (where_ == Where::in_padding) {
            if (!std::ranges::all_of(in, [](std::byte byte) { return byte == std::byte{0}; })) {
                refuse("gzip: data after the end of the stream");
            }
            return {in.size(), 0};
        }
        return begin_member(in);
    }

    void end() override {
        if (where_ == Where::in_member || magic_count_ > 0 || !has_member_) refuse("gzip: ends before its stream does");
    }

private:
    enum class Where { before_member, in_member, in_padding };
    static constexpr std::array<std::uint8_t, 2> kMagic = {0x1f, 0x8b};

    /// Compares one byte after the other, because they may come one by one, then shows them to the library.
    Step begin_member(std::span<const std::byte> in) {
        if (in.empty()) return {};
        const auto byte = std::to_integer<std::uint8_t>(in[0]);
        if (magic_count_ == 0 && byte == 0 && has_member_) {
            where_ = Where::in_padding;
            return {};
        }
        if (byte != kMagic[magic_count_]) refuse(has_member_ ? "gzip: data after the end of the stream" : "not gzip");
        if (++magic_count_ < kMagic.size()) return {1, 0};
        magic_count_ = 0;
        has_member_ = true;
        where_ = Where::in_member;
        isal_inflate_init(state_.get());
        state_->crc_flag = ISAL_GZIP;
        auto magic = kMagic;
        std::byte nothing;
        run(std::as_writable_bytes(std::span(magic)), {&nothing, 1});
        return {1, 0};
    }

    Step inflate(std::span<const std::byte> in, std::span<std::byte> out) {
        const Step step = run(in, out);
        if (state_->block_state == ISAL_BLOCK_FINISH) where_ = Where::before_member;
        return step;
    }

    Step run(std::span<const std::byte> in, std::span<std::byte> out) {
        // The library takes a pointer to non-const and does not write through it.
        auto* const begin = const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(in.data()));
        state_->next_in = begin;
        state_->avail_in = static_cast<std::uint32_t>(in.size());
        state_->next_out = reinterpret_cast<std::uint8_t*>(out.data());
        state_->avail_out = static_cast<std::uint32_t>(out.size());
        const int result = isal_inflate(state_.get());
        if (result == ISAL_INCORRECT_CHECKSUM) refuse("gzip: checksum is wrong");
        if (result < 0 || result == ISAL_NEED_DICT) refuse("gzip: damaged");
        return {in.size() - state_->avail_in, out.size() - state_->avail_out};
    }

    std::unique_ptr<inflate_state> state_;
    Where where_ = Where::before_member;
    std::size_t magic_count_ = 0;
    bool has_member_ = false;
};

class ZstdDecompressor : public Decompressor {
public:
    explicit ZstdDecompressor(std::uint64_t window_bytes) : context_(ZSTD_createDCtx()) {
        if (!context_) throw std::bad_alloc();
        const int window_log = std::clamp(static_cast<int>(std::bit_width(window_bytes)) - 1, 10, 31);
        check(ZSTD_DCtx_setParameter(context_.get(), ZSTD_d_windowLogMax, window_log));
    }

    Step step(std::span<const std::byte> in, std::span<std::byte> out) override {
        if (is_in_frame_) return decompress(in, out);
        const std::size_t count = std::min(in.size(), magic_.size() - magic_count_);
        std::memcpy(magic_.data() + magic_count_, in.data(), count);
        magic_count_ += count;
        if (magic_count_ == magic_.size()) begin_frame();
        return {count, 0};
    }

    void end() override {
        if (is_in_frame_ || magic_count_ > 0 || !has_frame_) refuse("zstd: ends before its stream does");
    }

private:
    struct Free {
        void operator()(ZSTD_DCtx* context) const noexcept { ZSTD_freeDCtx(context); }
    };

    static std::size_t check(std::size_t result) {
        if (ZSTD_isError(result)) refuse(fmt::format("zstd: {}", ZSTD_getErrorName(result)));
        return result;
    }

    void begin_frame() {
        std::uint32_t number;
        std::memcpy(&number, magic_.data(), sizeof number);
        const bool is_skippable = (number & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
        if (number != ZSTD_MAGICNUMBER && !is_skippable) {
            refuse(has_frame_ ? "zstd: data after the end of the stream" : "not zstd");
        }
        magic_count_ = 0;
        has_frame_ = true;
        is_in_frame_ = true;
        std::byte nothing;
        decompress(magic_, {&nothing, 1});
    }

    Step decompress(std::span<const std::byte> in, std::span<std::byte> out) {
        ZSTD_inBuffer input{in.data(), in.size(), 0};
        ZSTD_outBuffer output{out.data(), out.size(), 0};
        if (check(ZSTD_decompressStream(context_.get(), &output, &input)) == 0) is_in_frame_ = false;
        return {input.pos, output.pos};
    }

    std::unique_ptr<ZSTD_DCtx, Free> context_;
    std::array<std::byte, 4> magic_{};
    std::size_t magic_count_ = 0;
    bool is_in_frame_ = false;
    bool has_frame_ = false;
};

}  // namespace

std::unique_ptr<Decompressor> Decompressor::make(Compression compression, const StreamLimits& limits) {
    switch (compression) {
        case Compression::none:
            return std::make_unique<Copier>();
        case Compression::gzip:
            return std::make_unique<GzipDecompressor>();
        case Compression::zstd:
            return std::make_unique<ZstdDecompressor>(limits.zstd_window_bytes);
    }
    throw Error(Errc::internal, "layer blob: unknown compression");
}

}  // namespace lamina::store
