#pragma once

#include "store/layer_stream.h"

#include <cstddef>
#include <memory>
#include <span>

namespace lamina::store {

/// Turns compressed bytes into plain ones, piece by piece. One thread. Throws malformed on a damaged stream.
class Decompressor {
public:
    struct Step {
        std::size_t used_bytes = 0;
        std::size_t made_bytes = 0;
    };
    static std::unique_ptr<Decompressor> make(Compression compression, const StreamLimits& limits);
    virtual ~Decompressor() = default;
    /// Uses bytes of `in` and makes bytes in `out`, as many as it can of both. `out` is not empty.
    virtual Step step(std::span<const std::byte> in, std::span<std::byte> out) = 0;
    /// No more input will come, and step() makes nothing more: throws when the stream is not complete.
    virtual void end() = 0;
};

}  // namespace lamina::store
