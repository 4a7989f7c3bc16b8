#pragma once

#include "store/byte_stream.h"
#include "store/chunk_sink.h"
#include "store/content.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace lamina::store {

/// What gives back a layer's tar byte for byte (FORMAT.md, "Recipe"): its literal bytes (headers, padding, trailer),
/// compressed, and for each file body its chunks. Also what images that share the layer are merged from.
///
/// Lies at <root>/layers/<diff ID hex>.recipe. Checked when opened and while read: throws corrupt.
class Recipe {
public:
    static std::unique_ptr<Recipe> open(const std::string& path);
    virtual ~Recipe() = default;

    virtual DiffId diff_id() const = 0;
    virtual std::uint64_t tar_bytes() const = 0;
    virtual std::uint64_t entry_count() const = 0;

    /// The layer's entries in tar order; begins anew on each call. Touches no chunk data.
    class Entries {
    public:
        virtual ~Entries() = default;
        virtual std::optional<LayerEntry> next() = 0;
    };
    virtual std::unique_ptr<Entries> entries() const = 0;

    /// The chunks that it needs, each once, as they come first in the tar.
    virtual std::vector<ChunkId> chunks() const = 0;

    /// Writes the layer's tar. The caller hashes it if it must know that it is whole.
    virtual void write_tar(ChunkSource& chunks, ByteSink& out) const = 0;
};

}  // namespace lamina::store
