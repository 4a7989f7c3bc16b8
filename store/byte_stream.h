#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace lamina::store {

/// Bytes that are read once, in order. One thread at a time. Throws store::Error.
class ByteSource {
public:
    virtual ~ByteSource() = default;
    virtual std::size_t read(std::span<std::byte> out) = 0;  ///< 0 only at the end (out is never empty).
};

/// Where bytes go, in order. One thread at a time. Throws store::Error.
class ByteSink {
public:
    virtual ~ByteSink() = default;
    virtual void write(std::span<const std::byte> data) = 0;
};

}  // namespace lamina::store
