#pragma once

#include "store/byte_stream.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace lamina::store {

/// Bytes that it owns.
class MemorySource : public ByteSource {
public:
    explicit MemorySource(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {}
    std::size_t read(std::span<std::byte> out) override {
        const auto rest = std::span<const std::byte>(bytes_).subspan(at_);
        const std::size_t count = std::min(out.size(), rest.size());
        std::copy_n(rest.begin(), count, out.begin());
        at_ += count;
        return count;
    }

private:
    std::vector<std::byte> bytes_;
    std::size_t at_ = 0;
};

}  // namespace lamina::store
