#pragma once

#include "store/byte_stream.h"
#include "store/digest.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stop_token>

namespace lamina::store {

/// The bytes that a LayerReader parses, as a window that moves forward: no byte is copied to be looked at.
/// One thread at a time.
class TarInput {
public:
    static constexpr std::size_t kMaxPeekBytes = 256 * 1024;
    virtual ~TarInput() = default;
    /// All unread bytes that are at hand: at least `want_bytes` (1 to kMaxPeekBytes), fewer only at the end.
    /// They stay valid until the next call of peek() or consume().
    virtual std::span<const std::byte> peek(std::size_t want_bytes) = 0;
    virtual void consume(std::size_t bytes) = 0;  ///< Of what peek() returned last.
};

/// A tar stream that is hashed while it is parsed, by a thread of its own; the window is a ring of four buffers of a
/// MiB. Borrows `tar`. Each read of `tar` polls `stop` first (cancelled).
class HashedTar : public TarInput {
public:
    HashedTar(ByteSource& tar, std::stop_token stop);
    ~HashedTar() override;
    std::span<const std::byte> peek(std::size_t want_bytes) override;
    void consume(std::size_t bytes) override;

    std::uint64_t bytes_read() const noexcept;
    DiffId finish();  ///< Call once, after everything was consumed.

private:
    class Hashing;
    struct Buffer;
    void next_buffer();

    ByteSource& tar_;
    std::stop_token stop_;
    std::unique_ptr<Hashing> hashing_;
    std::span<const std::byte> window_;
    std::uint64_t bytes_read_ = 0;
    bool is_at_end_ = false;
};

}  // namespace lamina::store
