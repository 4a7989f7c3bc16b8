#pragma once

#include "store/access_points.h"
#include "store/content.h"
#include "store/oci.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace lamina::store {

/// Where the missing chunks of a layer are: <root>/layers/<diff ID hex>.lazy (FORMAT.md, "Lazy layer"). As long as this
/// file is there the layer is not whole, and its recipe is only what somebody published.
struct LazyLayer {
    std::string repository;  ///< "host/repository", as registries.conf understands it.
    bool verifies_tls = true;
    std::string auth_file;  ///< Like the next: empty where the default ones count.
    std::string cert_dir;
    oci::Descriptor blob;
    AccessPoints points;

    std::vector<std::byte> write() const;
    static LazyLayer parse(std::span<const std::byte> file);  ///< malformed.
};

/// Where each chunk of a recipe lies in its layer's tar.
class ChunkMap {
public:
    struct Part {
        ChunkId chunk;
        std::uint64_t tar_offset = 0;
        std::uint64_t size_bytes = 0;
    };
    explicit ChunkMap(const std::string& recipe_path);
    explicit ChunkMap(std::vector<Part> parts);  ///< By offset.
    const Part* find(const ChunkId& chunk) const;  ///< Its first occurrence; null: none.
    /// The parts that begin in a range of the tar, in order.
    std::span<const Part> beginning_in(std::uint64_t tar_first, std::uint64_t tar_end) const;
    /// Where in the tar the file lies whose part this is; nullopt: it has more than `limit_bytes`.
    struct Range {
        std::uint64_t first = 0;
        std::uint64_t end = 0;
    };
    std::optional<Range> file_of(const Part& part, std::uint64_t limit_bytes) const;
    const std::vector<Part>& parts() const noexcept { return parts_; }

private:
    void number_chunks();

    std::vector<Part> parts_;  ///< By offset.
    std::unordered_map<ChunkId, std::size_t> by_chunk_;
};

}  // namespace lamina::store
