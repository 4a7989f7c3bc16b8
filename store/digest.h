#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace lamina::store {

/// SHA-256 of some bytes; the only algorithm this store writes (OCI image-spec 1.1, descriptor.md, "Digests").
class Digest {
public:
    static constexpr std::size_t kSizeBytes = 32;

    static Digest of(std::span<const std::byte> data);
    static Digest parse(std::string_view text);      ///< "sha256:" + 64 lower-case hex, else Errc::malformed.
    static Digest parse_hex(std::string_view text);  ///< 64 lower-case hex, else Errc::malformed.
    static Digest from_bytes(std::span<const std::byte, kSizeBytes> bytes);  ///< From a checked file or message.

    std::span<const std::byte, kSizeBytes> bytes() const noexcept { return bytes_; }
    std::string hex() const;   ///< 64 characters; safe as a file name.
    std::string text() const;  ///< "sha256:" + hex().
    auto operator<=>(const Digest&) const = default;

private:
    explicit Digest(const std::array<std::byte, kSizeBytes>& bytes) : bytes_(bytes) {}
    std::array<std::byte, kSizeBytes> bytes_;
};

/// Same bytes, different promise: handing a blob's digest to code that wants a diff ID does not compile.
template <class Role>
struct RoleDigest {
    Digest digest;
    auto operator<=>(const RoleDigest&) const = default;
};
using BlobDigest =
    RoleDigest<struct BlobRole>;               ///< Of a blob as it is transferred: compressed layer, config, manifest.
using DiffId = RoleDigest<struct DiffIdRole>;  ///< Of a layer's uncompressed tar.
using ChainId = RoleDigest<struct ChainRole>;  ///< Of a stack of layers (OCI image-spec, config.md).
using ChunkId = RoleDigest<struct ChunkRole>;  ///< Of a chunk's bytes.
using TreeDigest = RoleDigest<struct TreeRole>;  ///< Of an image tree's header, which pins all of the tree.

/// SHA-256 of bytes that arrive in pieces. One thread at a time; may be moved.
class Hasher {
public:
    Hasher();
    ~Hasher();
    Hasher(Hasher&&) noexcept;
    Hasher& operator=(Hasher&&) noexcept;
    void update(std::span<const std::byte> data);
    Digest finish();  ///< Call once; the hasher is then empty and may be used again.

private:
    struct Free {
        void operator()(void* context) const noexcept;
    };
    std::unique_ptr<void, Free> context_;
};

ChainId chain_id(const ChainId* below, const DiffId& layer);  ///< `below` null: the bottom layer.

inline std::span<const std::byte> as_bytes(std::string_view text) {
    return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace lamina::store

/// A digest is already uniform: its first eight bytes are its hash.
template <>
struct std::hash<lamina::store::Digest> {
    std::size_t operator()(const lamina::store::Digest& digest) const noexcept {
        std::size_t value;
        std::memcpy(&value, digest.bytes().data(), sizeof value);
        return value;
    }
};
template <class Role>
struct std::hash<lamina::store::RoleDigest<Role>> {
    std::size_t operator()(const lamina::store::RoleDigest<Role>& id) const noexcept {
        return std::hash<lamina::store::Digest>{}(id.digest);
    }
};
