#pragma once

#include "fuse/node.h"
#include "fuse/result.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lamina::unionfs {

struct ViewEntry {
    std::string_view name;  ///< Lives as long as the view.
    NodeId node = 0;
    std::uint32_t type = 0;    ///< S_IFMT bits.
    std::uint64_t number = 0;  ///< d_ino; 0: the same as `node`.
};

/// What lies below a mount's changes and never changes itself: an image tree (image_view.h), or a stack of folders and
/// image trees (stack_view.h).
///
/// Its nodes are below kFirstNewNode. Thread-safe. An error other than "absent" goes to the caller of the mount.
class View {
public:
    virtual ~View() = default;
    virtual Result<Attributes> attributes(NodeId node) const = 0;
    virtual Result<std::optional<ViewEntry>> lookup(NodeId directory, std::string_view name) const = 0;
    /// The entry at a position, 0 to entry_count - 1; positions are stable for ever. Until a name has been looked up,
    /// `node` may differ from what lookup() says of a file with more than one name.
    virtual Result<std::uint32_t> entry_count(NodeId directory) const = 0;
    virtual Result<ViewEntry> entry(NodeId directory, std::uint32_t position) const = 0;
    virtual Result<NodeId> parent(NodeId directory) const = 0;  ///< Of directories only; the root's is itself.
    /// These two: what is returned lives until the next call of the same function, at least.
    virtual Result<std::string_view> link_target(NodeId symlink) const = 0;
    virtual Result<std::vector<std::pair<std::string_view, std::string_view>>> xattrs(NodeId node) const = 0;
    /// Bytes of a file; fewer than asked only at its end.
    virtual Result<std::size_t> read(NodeId file, std::uint64_t offset_bytes, std::span<std::byte> out) const = 0;
    virtual bool is_warm(NodeId file, std::uint64_t offset_bytes, std::uint64_t size_bytes) const = 0;
    /// The first data (or hole) at or after an offset, as lseek(2) has it; ENXIO at or past the end.
    virtual Result<std::uint64_t> seek_data(NodeId file, std::uint64_t offset_bytes) const = 0;
    virtual Result<std::uint64_t> seek_hole(NodeId file, std::uint64_t offset_bytes) const = 0;
    virtual std::uint64_t node_count() const = 0;     ///< For statfs.
    virtual std::uint64_t logical_bytes() const = 0;  ///< For statfs; 0 when not known.
};

}  // namespace lamina::unionfs
