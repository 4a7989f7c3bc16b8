#pragma once

#include "store/chunk_store.h"
#include "store/file.h"
#include "store/index.h"
#include "store/store_core.h"
#include "support/pack_folders.h"
#include "support/temp_dir.h"

#include <cstddef>

namespace lamina::test {

/// The parts of an open store that a job's packs need.
struct OpenCore {
    OpenCore() {
        for (const auto& path : {core.paths.packs(), core.paths.layers(), core.paths.staging()}) {
            store::make_folders(path);
        }
        core.index = store::Index::open(core.paths.index());
        core.chunks = store::ChunkStore::open(core.paths.packs(), 1 << 20);
    }
    bool has(const Bytes& data) const { return try_read(*core.chunks, data) == ReadResult::right; }
    /// Of all packs that the index names.
    std::size_t stored_chunks() const {
        std::size_t count = 0;
        for (const auto& pack : core.index->packs()) {
            count += store::read_pack_table(core.paths.packs(), pack.number).size();
        }
        return count;
    }

    TempDir root;
    store::StoreCore core{store::StorePaths{root / "s"}};
};

}  // namespace lamina::test
