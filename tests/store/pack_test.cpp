#include "store/chunk_store.h"
#include "store/error.h"
#include "store/file.h"
#include "store/pack_writer.h"
#include "support/catch.h"
#include "support/random_bytes.h"
#include "support/temp_dir.h"

#include <vector>

using namespace lamina;

namespace {

using Bytes = std::vector<std::byte>;
constexpr std::uint64_t kCacheBytes = 8 * 1024 * 1024;

struct Folders {
    Folders() {
        store::make_folder(packs);
        store::make_folder(staging);
    }
    store::PackWriter::Options options(std::uint32_t number) const {
        return {.packs_folder = packs, .staging_folder = staging, .pack_number = number};
    }
    test::TempDir root;
    std::string packs = root / "packs";
    std::string staging = root / "staging";
};

Bytes read_chunk(store::ChunkSource& source, const store::ChunkId& id, std::size_t size_bytes) {
    Bytes out(size_bytes);
    source.read(id, 0, out);
    return out;
}

}  // namespace

TEST_CASE("what a pack was given can be read back, whole and in part", "[store][pack]") {
    const Folders folders;
    const auto chunks = store::ChunkStore::open(folders.packs, kCacheBytes);
    store::PackWriter writer(folders.options(1), *chunks);
    std::vector<std::pair<store::ChunkId, Bytes>> added;
    for (const std::size_t size : {1, 100, 4096, 65536, 200000, 262144, 7, 262144, 50000}) {
        for (const bool is_text : {false, true}) {
            Bytes data = is_text ? test::text_bytes(size, added.size()) : test::random_bytes(size, added.size());
            const store::ChunkId id = writer.add(data);
            added.emplace_back(id, std::move(data));
        }
    }
    const auto pack = writer.finish();
    REQUIRE(pack);
    CHECK(pack->file_bytes == store::file_size(store::pack_path(folders.packs, 1)));
    chunks->add_segment(*pack);
    for (const auto& [id, data] : added) {
        REQUIRE(read_chunk(*chunks, id, data.size()) == data);
        Bytes part(data.size() / 3 + 1);
        const std::size_t from = (data.size() - part.size()) / 2;
        chunks->read(id, static_cast<std::uint32_t>(from), part);
        REQUIRE(std::equal(part.begin(), part.end(), data.begin() + static_cast<std::ptrdiff_t>(from)));
    }
    CHECK(store::check_pack(folders.packs, 1, true, nullptr).empty());
    CHECK(store::list_folder(folders.staging).empty());
}
