#pragma once

#include "store/byte_stream.h"

#include <memory>

namespace lamina::store {

/// Compresses into zstd frames (RFC 8878) of 4 MiB each, with checksums, so that reading can begin at any of them: the
/// same bytes in, in any pieces, give the same bytes out of one version of the library. One thread. Borrows `out`.
class ZstdWriter : public ByteSink {
public:
    explicit ZstdWriter(ByteSink& out);
    ~ZstdWriter() override;
    ZstdWriter(const ZstdWriter&) = delete;
    ZstdWriter& operator=(const ZstdWriter&) = delete;
    void write(std::span<const std::byte> data) override;
    void finish();  ///< Call once, last. Without it the output is truncated.

private:
    struct State;
    void compress(bool is_end);
    ByteSink& out_;
    std::unique_ptr<State> state_;
};

}  // namespace lamina::store
