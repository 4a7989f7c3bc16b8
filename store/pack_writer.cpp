#include "store/pack_writer.h"

#include "store/error.h"

namespace lamina::store {

PackWriter::PackWriter(const Options& options, ChunkStore& known)
    : known_(known),
      pool_(options.thread_count, options.compression_level),
      pack_({.packs_folder = options.packs_folder,
             .staging_folder = options.staging_folder,
             .pack_number = options.pack_number},
            pool_),
      lane_(pack_.add_lane()) {}

ChunkId PackWriter::add(std::span<const std::byte> data) {
    if (data.empty()) throw Error(Errc::internal, "chunk of an impossible size");
    const ChunkId id{Digest::of(data)};
    if (pack_.contains(id) || known_.find(id)) return id;
    if (!pack_.add(lane_, id, data)) throw Error(Errc::internal, "this pack is finished");
    return id;
}

}  // namespace lamina::store
