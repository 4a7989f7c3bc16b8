#pragma once

#include "store/byte_stream.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace lamina::store {

/// Compresses into one gzip member (RFC 1952) without name and time: the same bytes in, in any pieces, give the same
/// bytes out on one kind of CPU. One thread. Borrows `out`.
class GzipWriter : public ByteSink {
public:
    explicit GzipWriter(ByteSink& out);
    ~GzipWriter() override;
    GzipWriter(const GzipWriter&) = delete;
    GzipWriter& operator=(const GzipWriter&) = delete;
    void write(std::span<const std::byte> data) override;
    void finish();  ///< Call once, last. Without it the output is truncated.

private:
    struct State;
    void deflate(bool is_end);
    ByteSink& out_;
    std::unique_ptr<State> state_;
};

}  // namespace lamina::store
