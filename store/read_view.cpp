#include "store/read_view.h"

#include "store/chunk_store.h"
#include "store/error.h"
#include "store/file.h"
#include "store/store_core.h"
#include "store/tree_read_view.h"

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

namespace lamina::store {

namespace {

class FetchingChunks : public ChunkSource {
public:
    FetchingChunks(std::unique_ptr<ChunkStore> chunks, std::unique_ptr<ChunkFetcher> fetcher)
        : chunks_(std::move(chunks)), fetcher_(std::move(fetcher)) {}

    void read(const ChunkId& chunk, std::uint32_t offset_bytes, std::span<std::byte> out) override {
        try {
            chunks_->read(chunk, offset_bytes, out);
            return fetcher_->has_read(chunk);
        } catch (const Error& error) {  // Of a lazy layer, or lost: whoever is asked knows.
            if (error.code() != Errc::not_found) throw;
        }
        const std::vector<std::byte> bytes = fetcher_->fetch(chunk);
        if (bytes.empty()) {
            chunks_->read(chunk, offset_bytes, out);
        } else if (offset_bytes <= bytes.size() && out.size() <= bytes.size() - offset_bytes) {
            std::ranges::copy(std::span(bytes).subspan(offset_bytes, out.size()), out.begin());
        } else {
            throw Error(Errc::corrupt, "chunk " + chunk.digest.hex() + ": is shorter than the image says");
        }
        fetcher_->has_read(chunk);
    }
    bool is_warm(const ChunkId& chunk) override { return chunks_->is_warm(chunk); }

private:
    std::unique_ptr<ChunkStore> chunks_;
    std::unique_ptr<ChunkFetcher> fetcher_;
};

}  // namespace

bool are_lazy(const std::string& store_root, const std::vector<DiffId>& layers) {
    const StorePaths paths{store_root};
    return std::ranges::any_of(layers, [&](const DiffId& layer) { return exists(paths.lazy(layer)); });
}

std::unique_ptr<ReadView> ReadView::open(const std::string& store_root, const TreeDigest& tree,
                                         std::uint64_t cache_bytes, std::unique_ptr<ChunkFetcher> fetcher) {
    auto opened = ImageTree::open(store_root + "/trees/" + tree.digest.hex() + ".tree", tree);
    auto chunks = ChunkStore::open(store_root + "/packs", cache_bytes, ChunkStore::Ahead::yes);
    if (!fetcher) return make_read_view(std::move(opened), std::move(chunks));
    return make_read_view(std::move(opened), std::make_unique<FetchingChunks>(std::move(chunks), std::move(fetcher)));
}

}  // namespace lamina::store
