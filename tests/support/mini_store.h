#pragma once

#include "store/byte_stream.h"
#include "store/digest.h"
#include "store/read_view.h"

#include <cstdint>
#include <string>
#include <vector>

namespace lamina::test {

/// A store folder with packs, trees and mounts but without an index: what lamina-fuse reads, made with the store's own
/// parts. For tests and measurements of mounts alone.
class MiniStore {
public:
    explicit MiniStore(std::string root);  ///< Creates the folder.
    /// Imports an uncompressed layer tar; layers are added bottom first.
    void add_layer(store::ByteSource& tar);
    void add_layer(const std::string& tar_bytes);
    /// Merges the layers and makes mounts/<id> with its base. Returns the mount folder.
    std::string make_mount(const std::string& id, bool is_read_only = false);
    const std::string& root() const noexcept { return root_; }

private:
    std::string root_;
    std::vector<store::DiffId> layers_;
    std::uint32_t next_pack_ = 1;
};

}  // namespace lamina::test
