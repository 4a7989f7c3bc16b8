#include "store/read_view.h"

#include "store/chunk_store.h"
#include "store/tree_read_view.h"

namespace lamina::store {

std::unique_ptr<ReadView> ReadView::open(const std::string& store_root, const TreeDigest& tree,
                                         std::uint64_t cache_bytes) {
    auto opened = ImageTree::open(store_root + "/trees/" + tree.digest.hex() + ".tree", tree);
    return make_read_view(std::move(opened), ChunkStore::open(store_root + "/packs", cache_bytes));
}

}  // namespace lamina::store
