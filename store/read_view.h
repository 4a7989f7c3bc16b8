#pragma once

#include "store/chunk_sink.h"
#include "store/image_tree.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lamina::store {

/// Gets chunks that are in no pack, from whoever can. Thread-safe.
class ChunkFetcher {
public:
    virtual ~ChunkFetcher() = default;
    /// Returns the chunk's bytes when it has come and is not stored yet; none when it is stored. Throws what kept it
    /// from that: unavailable, timed_out, corrupt, not_found.
    virtual std::vector<std::byte> fetch(const ChunkId& chunk) = 0;
    /// Told of each read of a chunk that went well. Must cost next to nothing.
    virtual void has_read(const ChunkId& chunk) noexcept = 0;
};

/// Whether some of the layers are known from an index only (FORMAT.md, "Lazy layer").
bool are_lazy(const std::string& store_root, const std::vector<DiffId>& layers);

/// All that a mount may see of the store: one image's tree and the bytes of its files. Reads only; thread-safe.
class ReadView {
public:
    /// `store_root` is the store's folder. Throws not_found when the tree is gone, corrupt when it is damaged. With a
    /// `fetcher`, read() waits for chunks that are not stored.
    static std::unique_ptr<ReadView> open(const std::string& store_root, const TreeDigest& tree,
                                          std::uint64_t cache_bytes, std::unique_ptr<ChunkFetcher> fetcher = nullptr);
    virtual ~ReadView() = default;
    virtual const ImageTree& tree() const = 0;
    /// Bytes of a regular file; fewer than asked only at its end; holes are zeros.
    virtual std::size_t read(TreeIno file, std::uint64_t offset_bytes, std::span<std::byte> out) = 0;
    /// True when read() of this range would touch no disk and decompress nothing.
    virtual bool is_warm(TreeIno file, std::uint64_t offset_bytes, std::uint64_t size_bytes) = 0;
};

/// What a mount is made of; durable in <mount folder>/base before it starts (FORMAT.md, "Mount base").
struct MountBase {
    TreeDigest tree;
    std::vector<DiffId> layers;   ///< Bottom first.
    std::string image;            ///< As named when it was mounted; for people.
    std::string manifest_digest;  ///< Text; the parent of a commit.
    std::string config_digest;    ///< Text.
    std::string mountpoint;       ///< Absolute, of the last mount.
    bool is_read_only = false;
};
MountBase read_mount_base(const std::string& mount_folder);  ///< not_found, malformed.
void write_mount_base(const std::string& mount_folder, const MountBase& base);
/// Makes the folder with its base, and in the file `name` that, unless it is empty: all of it or nothing, durably.
/// `staged` is where it is made, on the same file system; may stay there when this fails.
void create_mount_folder(const std::string& mount_folder, const std::string& staged, const MountBase& base,
                         const std::string& name);

}  // namespace lamina::store
