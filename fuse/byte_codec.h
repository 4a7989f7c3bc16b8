#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

/// Reading and writing of little-endian fields and of variable-length numbers, for the mount's files (fuse/FORMAT.md).
namespace lamina::unionfs::codec {

static_assert(std::endian::native == std::endian::little, "the formats are little-endian and copied as they are");

inline constexpr std::size_t kMaxVarintBytes = 10;

class Writer {
public:
    explicit Writer(std::vector<std::byte>& out) : out_(out) {}

    void byte(std::uint8_t value) { out_.push_back(std::byte{value}); }
    /// Seven bits a byte, low ones first, the top bit set on all but the last byte.
    void varint(std::uint64_t value) {
        while (value >= 0x80) {
            byte(static_cast<std::uint8_t>(value | 0x80));
            value >>= 7;
        }
        byte(static_cast<std::uint8_t>(value));
    }
    void bytes(std::string_view text) {
        const auto* const data = reinterpret_cast<const std::byte*>(text.data());
        out_.insert(out_.end(), data, data + text.size());
    }
    /// A length, then so many bytes.
    void text(std::string_view text) {
        varint(text.size());
        bytes(text);
    }

private:
    std::vector<std::byte>& out_;
};

/// Reads what Writer wrote. After the first thing that is not there or not in its one shortest form, ok() is false and
/// everything reads as zero or empty.
class Reader {
public:
    explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}

    std::uint8_t byte() {
        if (left_.empty()) return broken(), std::uint8_t{0};
        const auto value = std::to_integer<std::uint8_t>(left_.front());
        left_ = left_.subspan(1);
        return value;
    }
    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (unsigned shift = 0; shift < 70; shift += 7) {
            const std::uint64_t part = byte();
            const bool is_last = part < 0x80;
            if (shift == 63 && part > 1) break;             // More than 64 bits.
            if (is_last && part == 0 && shift != 0) break;  // A longer form than needed.
            value |= (part & 0x7f) << shift;
            if (is_last) return ok_ ? value : 0;
        }
        broken();
        return 0;
    }
    std::uint64_t varint_up_to(std::uint64_t limit) {
        const std::uint64_t value = varint();
        if (value <= limit) return value;
        broken();
        return 0;
    }
    std::string_view text(std::size_t limit_bytes) {
        const std::uint64_t size_bytes = varint_up_to(limit_bytes);
        if (size_bytes > left_.size()) return broken(), std::string_view{};
        const std::string_view value(reinterpret_cast<const char*>(left_.data()), static_cast<std::size_t>(size_bytes));
        left_ = left_.subspan(static_cast<std::size_t>(size_bytes));
        return value;
    }
    void require(bool condition) {
        if (!condition) broken();
    }
    bool ok() const noexcept { return ok_; }
    bool at_end() const noexcept { return left_.empty(); }

private:
    void broken() {
        ok_ = false;
        left_ = {};
    }
    std::span<const std::byte> left_;
    bool ok_ = true;
};

template <class T>
T load_little(const std::byte* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class T>
void store_little(std::byte* to, T value) {
    std::memcpy(to, &value, sizeof value);
}

}  // namespace lamina::unionfs::codec
