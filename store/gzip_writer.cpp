#include "store/gzip_writer.h"

#include "store/error.h"

#include <isa-l/igzip_lib.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>

namespace lamina::store {

namespace {

constexpr std::uint32_t kLevel = 3;  // ISA-L's best: about zlib's level 2 in size at three times its speed.
constexpr std::size_t kLevelBufferBytes = ISAL_DEF_LVL3_DEFAULT;
constexpr std::size_t kOutBytes = 256 * 1024;
constexpr std::size_t kInBytes = 256 * 1024;  // What the library makes of bytes depends on how they come: in this many.

}  // namespace

struct GzipWriter::State {
    isal_zstream stream;
    std::array<std::uint8_t, kLevelBufferBytes> level_buffer;
    std::array<std::uint8_t, kOutBytes> out;
    std::array<std::byte, kInBytes> in;
    std::size_t in_bytes = 0;
};

GzipWriter::GzipWriter(ByteSink& out) : out_(out), state_(std::make_unique<State>()) {
    isal_zstream& stream = state_->stream;
    isal_deflate_init(&stream);
    stream.level = kLevel;
    stream.level_buf = state_->level_buffer.data();
    stream.level_buf_size = kLevelBufferBytes;
    stream.gzip_flag = IGZIP_GZIP;
    stream.flush = NO_FLUSH;
}

GzipWriter::~GzipWriter() = default;

void GzipWriter::write(std::span<const std::byte> data) {
    while (!data.empty()) {
        const std::size_t count = std::min(data.size(), kInBytes - state_->in_bytes);
        std::copy_n(data.begin(), count, state_->in.begin() + static_cast<std::ptrdiff_t>(state_->in_bytes));
        state_->in_bytes += count;
        data = data.subspan(count);
        if (state_->in_bytes == kInBytes) deflate(false);
    }
}

void GzipWriter::finish() {
    deflate(true);
}

void GzipWriter::deflate(bool is_end) {
    isal_zstream& stream = state_->stream;
    stream.next_in = reinterpret_cast<std::uint8_t*>(state_->in.data());
    stream.avail_in = static_cast<std::uint32_t>(state_->in_bytes);
    stream.end_of_stream = is_end ? 1 : 0;
    do {
        stream.next_out = state_->out.data();
        stream.avail_out = kOutBytes;
        const int status = isal_deflate(&stream);
        if (status != COMP_OK) throw Error(Errc::internal, "gzip: ISA-L fails with " + std::to_string(status));
        const std::size_t made = kOutBytes - stream.avail_out;
        if (made > 0) out_.write(std::as_bytes(std::span(state_->out.data(), made)));
    } while (stream.avail_in > 0 || stream.avail_out == 0 || (is_end && stream.internal_state.state != ZSTATE_END));
    state_->in_bytes = 0;
}

}  // namespace lamina::store
