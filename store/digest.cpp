#include "store/digest.h"

#include "store/error.h"

// The plain functions: to fetch the algorithm from a provider takes 10 ms in each process, and nothing is gained.
#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/sha.h>

namespace lamina::store {

namespace {

constexpr std::string_view kPrefix = "sha256:";
constexpr std::string_view kHexDigits = "0123456789abcdef";

SHA256_CTX* context_of(void* pointer) {
    return static_cast<SHA256_CTX*>(pointer);
}

}  // namespace

void Hasher::Free::operator()(void* context) const noexcept {
    delete context_of(context);
}

Hasher::Hasher() : context_(new SHA256_CTX) {
    SHA256_Init(context_of(context_.get()));
}
Hasher::~Hasher() = default;
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher& Hasher::operator=(Hasher&&) noexcept = default;

void Hasher::update(std::span<const std::byte> data) {
    SHA256_Update(context_of(context_.get()), data.data(), data.size());
}

Digest Hasher::finish() {
    std::array<std::byte, Digest::kSizeBytes> out;
    SHA256_Final(reinterpret_cast<unsigned char*>(out.data()), context_of(context_.get()));
    SHA256_Init(context_of(context_.get()));
    return Digest::from_bytes(out);
}

Digest Digest::of(std::span<const std::byte> data) {
    thread_local Hasher hasher;
    hasher.update(data);
    return hasher.finish();
}

Digest Digest::from_bytes(std::span<const std::byte, kSizeBytes> bytes) {
    std::array<std::byte, kSizeBytes> copy;
    std::memcpy(copy.data(), bytes.data(), copy.size());
    return Digest(copy);
}

Digest Digest::parse(std::string_view text) {
    if (!text.starts_with(kPrefix)) {
        throw Error(Errc::malformed, "digest \"" + std::string(text.substr(0, 80)) + "\": not sha256:<64 hex digits>");
    }
    return parse_hex(text.substr(kPrefix.size()));
}

Digest Digest::parse_hex(std::string_view text) {
    const auto bad = [&] {
        return Error(Errc::malformed,
                     "digest \"" + std::string(text.substr(0, 80)) + "\": not 64 lower-case hex digits");
    };
    if (text.size() != 2 * kSizeBytes) throw bad();
    std::array<std::byte, kSizeBytes> bytes;
    for (std::size_t i = 0; i < kSizeBytes; ++i) {
        const auto high = kHexDigits.find(text[2 * i]);
        const auto low = kHexDigits.find(text[2 * i + 1]);
        if (high == std::string_view::npos || low == std::string_view::npos) throw bad();
        bytes[i] = static_cast<std::byte>(high << 4 | low);
    }
    return Digest(bytes);
}

std::string Digest::hex() const {
    std::string out;
    out.reserve(2 * kSizeBytes);
    for (const std::byte byte : bytes_) {
        out += kHexDigits[std::to_integer<unsigned>(byte) >> 4];
        out += kHexDigits[std::to_integer<unsigned>(byte) & 15];
    }
    return out;
}

std::string Digest::text() const {
    return std::string(kPrefix) + hex();
}

ChainId chain_id(const ChainId* below, const DiffId& layer) {
    if (!below) return ChainId{layer.digest};
    return ChainId{Digest::of(as_bytes(below->digest.text() + " " + layer.digest.text()))};
}

}  // namespace lamina::store
