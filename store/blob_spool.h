#pragma once

#include "store/digest.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <string>

namespace lamina::store {

/// The bytes of a lazy layer's blob that have come, kept until all of them have, and the blob's digest can be told:
/// <root>/layers/<diff ID hex>.blob (FORMAT.md, "Lazy layer"). Nothing but that digest is ever made from them, so that
/// they need not be durable: what is lost, or was never written on a full disk, is fetched again. Thread-safe.
class BlobSpool {
public:
    explicit BlobSpool(std::string path) : path_(std::move(path)) {}
    void put(std::uint64_t offset_bytes, std::span<const std::byte> bytes) const noexcept;
    /// Whether bytes first to end - 1 seem to be there.
    bool has(std::uint64_t first, std::uint64_t end) const noexcept;
    /// Of a file of exactly this size; nullopt: there is none. cancelled on stop.
    std::optional<BlobDigest> digest(std::uint64_t size_bytes, const std::stop_token& stop) const;

private:
    const std::string path_;
};

}  // namespace lamina::store
