#include "store/digest.h"

#include "store/error.h"
#include "support/catch.h"

using namespace lamina;

namespace {
constexpr auto kAbc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
}

TEST_CASE("a digest is the SHA-256 that the standard gives for its example", "[store][digest]") {
    CHECK(store::Digest::of(store::as_bytes("abc")).text() == kAbc);
}

TEST_CASE("a hasher gives the same digest for the same bytes in any pieces, and may be used again", "[store][digest]") {
    store::Hasher hasher;
    hasher.update(store::as_bytes("a"));
    hasher.update(store::as_bytes("bc"));
    CHECK(hasher.finish().text() == kAbc);
    hasher.update(store::as_bytes("abc"));
    CHECK(hasher.finish().text() == kAbc);
}

TEST_CASE("text that is not a digest is refused", "[store][digest]") {
    const std::string good = kAbc;
    CHECK(store::Digest::parse(good).text() == good);
    const std::string bad[] = {"",
                               "sha256:",
                               good.substr(0, good.size() - 1),
                               good + "0",
                               "sha512:" + good.substr(7),
                               "sha256:" + std::string(64, 'G'),
                               "sha256:" + std::string(64, 'A'),
                               "sha256:../../../../etc/passwd"};
    for (const std::string& text : bad) {
        CAPTURE(text);
        CHECK_THROWS_AS(store::Digest::parse(text), store::Error);
    }
}

TEST_CASE("a chain ID hashes the chain below and the layer as text", "[store][digest]") {
    const store::DiffId layer{store::Digest::parse(kAbc)};
    const store::ChainId bottom = store::chain_id(nullptr, layer);
    CHECK(bottom.digest == layer.digest);
    const store::ChainId second = store::chain_id(&bottom, layer);
    CHECK(second.digest == store::Digest::of(store::as_bytes(std::string(kAbc) + " " + kAbc)));
}
