// Start bundles: the chunks of a trace in one blob, and what is said of it.
#include "store/start_bundle.h"

#include "store/error.h"
#include "support/catch.h"

#include <map>
#include <string>
#include <vector>

using namespace lamina;
using store::StartBundle;

namespace {

std::vector<std::byte> bytes_of(std::uint32_t seed, std::size_t size) {
    std::vector<std::byte> bytes(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>((seed = seed * 1'664'525 + 1'013'904'223) >> 24);
    return bytes;
}

/// Holds chunks, and nothing else.
class Chunks : public store::ChunkStore {
public:
    store::ChunkId add(std::vector<std::byte> bytes) {
        const store::ChunkId id{store::Digest::of(bytes)};
        chunks_[id] = std::move(bytes);
        return id;
    }
    std::optional<store::ChunkPlace> find(const store::ChunkId& chunk) override {
        const auto found = chunks_.find(chunk);
        if (found == chunks_.end()) return std::nullopt;
        return store::ChunkPlace{.size_bytes = static_cast<std::uint32_t>(found->second.size())};
    }
    void read(const store::ChunkId& chunk, std::uint32_t offset_bytes, std::span<std::byte> out) override {
        std::copy_n(chunks_.at(chunk).begin() + offset_bytes, out.size(), out.begin());
    }
    bool is_warm(const store::ChunkId&) override { return true; }
    void add_segment(const store::FinishedPack&) override {}
    void replace_packs(const store::FinishedPack*, const std::vector<std::uint32_t>&) override {}
    void compact() override {}
    void rebuild(const std::vector<std::uint32_t>&) override {}
    std::vector<std::uint32_t> indexed_packs() override { return {}; }
    std::uint64_t chunk_count() override { return chunks_.size(); }

private:
    std::map<store::ChunkId, std::vector<std::byte>> chunks_;
};

class Blob : public store::ByteSink {
public:
    void write(std::span<const std::byte> data) override { bytes.insert(bytes.end(), data.begin(), data.end()); }
    std::vector<std::byte> bytes;
};

constexpr std::uint64_t kAll = StartBundle::kMaxBlobBytes;

/// The chunks that the blob holds, as the directory says.
std::vector<store::ChunkId> unpacked(const StartBundle& bundle, const Blob& blob) {
    const store::AccessPoints points = bundle.points({store::Digest::of(blob.bytes)});
    std::vector<store::ChunkId> chunks;
    const store::ChunkMap map = bundle.map();
    for (const auto& part : map.parts()) {
        const auto span = points.span_of(part.tar_offset, part.tar_offset + part.size_bytes);
        const auto tar =
            points.decode(span, std::span(blob.bytes).subspan(span.blob_first, span.blob_end - span.blob_first));
        const auto chunk = std::span(tar).subspan(part.tar_offset - span.tar_first, part.size_bytes);
        CHECK(store::Digest::of(chunk) == part.chunk.digest);
        chunks.push_back(part.chunk);
    }
    return chunks;
}

}  // namespace

TEST_CASE("a start bundle holds the chunks in the order of the trace, each once, and its directory says where") {
    Chunks chunks;
    std::vector<store::ChunkId> wanted;
    for (std::uint32_t i = 0; i < 60; ++i) wanted.push_back(chunks.add(bytes_of(i, 1'000 + 3'000 * i)));
    std::vector<store::ChunkId> trace = wanted;
    trace.insert(trace.begin() + 5, wanted[2]);
    trace.insert(trace.begin() + 7, store::ChunkId{store::Digest::of(store::as_bytes("not stored"))});
    Blob blob;
    const auto [bundle, digest] = write_start_bundle(chunks, trace, kAll, blob);
    CHECK(bundle.chunks() == wanted);
    CHECK(digest.digest == store::Digest::of(blob.bytes));
    CHECK(bundle.blob_bytes() == blob.bytes.size());
    CHECK(bundle.frames.size() > 5);
    CHECK(unpacked(bundle, blob) == wanted);
    CHECK(StartBundle::parse(store::as_bytes(bundle.write())) == bundle);
}

TEST_CASE("a start bundle has no more bytes than it may have, and whole frames") {
    Chunks chunks;
    std::vector<store::ChunkId> wanted;
    for (std::uint32_t i = 0; i < 40; ++i) wanted.push_back(chunks.add(bytes_of(i, 50'000)));
    Blob blob;
    const StartBundle bundle = write_start_bundle(chunks, wanted, 600'000, blob).directory;
    CHECK(blob.bytes.size() <= 600'000);
    CHECK(bundle.blob_bytes() == blob.bytes.size());
    CHECK(bundle.frames.size() == 2);
    const auto held = unpacked(bundle, blob);
    CHECK(held == std::vector<store::ChunkId>(wanted.begin(), wanted.begin() + static_cast<long>(held.size())));
    Blob none;
    CHECK(write_start_bundle(chunks, wanted, 1'000, none).directory.frames.empty());
    CHECK(none.bytes.empty());
}

TEST_CASE("a start bundle's directory that is none is refused") {
    const std::string digest = store::Digest::of({}).text();
    const std::string head = "lamina start bundle 1\n";
    const std::string good = head + "frame 10\n" + digest + " 20\n";
    CHECK_NOTHROW(StartBundle::parse(store::as_bytes(good)));
    for (const std::string& bad :
         {std::string(), head, head + "frame 10\n", head + digest + " 20\n", head + "frame 0\n" + digest + " 20\n",
          head + "frame 10\n" + digest + " 0\n", head + "frame 10\n" + digest + " 262145\n",
          head + "frame 10\n" + digest + "\n", head + "frame 10\n" + digest + " 20", good + digest + " 20\n",
          good + "frame 7\n", head + "frame 99999999999\n" + digest + " 20\n", head + "frame -1\n" + digest + " 20\n",
          head + "frame 10x\n" + digest + " 20\n", "lamina start bundle 2\n" + good.substr(head.size())}) {
        CAPTURE(bad);
        CHECK_THROWS_AS(StartBundle::parse(store::as_bytes(bad)), store::Error);
    }
}

TEST_CASE("a start bundle's frames and blob have their limits") {
    std::string large = "lamina start bundle 1\nframe 10\n";
    for (int i = 0; i < 5; ++i) large += store::Digest::of(store::as_bytes(std::to_string(i))).text() + " 262144\n";
    CHECK_THROWS_AS(StartBundle::parse(store::as_bytes(large)), store::Error);
    std::string heavy = "lamina start bundle 1\n";
    for (int i = 0; i < 2; ++i) {
        heavy += "frame 40000000\n" + store::Digest::of(store::as_bytes(std::to_string(i))).text() + " 20\n";
    }
    CHECK_THROWS_AS(StartBundle::parse(store::as_bytes(heavy)), store::Error);
}
