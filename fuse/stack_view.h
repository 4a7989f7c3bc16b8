#pragma once

#include "fuse/overlay_format.h"
#include "fuse/view.h"
#include "store/file.h"
#include "store/read_view.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lamina::unionfs {

/// One of the things that a stack is made of: a folder, or an image tree.
struct StackSource {
    std::string name;                        ///< For messages.
    store::UniqueFd folder;                  ///< Opened by the caller (O_PATH | O_DIRECTORY), or
    std::unique_ptr<store::ReadView> image;  ///< ... this.
};

/// Where an inode lies in the upper.
struct UpperPlace {
    NodeId parent = 0;
    std::string_view name;  ///< Of the root empty. Lives as long as the view where the view gives it.
};

struct StackOptions {
    bool has_upper = false;                  ///< The first source is the upper: a folder.
    store::UniqueFd work_folder;             ///< The upper's work folder, whose index/ is read; none: no index.
    OverlayXattrs xattrs = OverlayXattrs{};  ///< Which of overlayfs' attributes steer; see overlay_format.h.
    OverrideStat override_stat = OverrideStat::automatic;
    std::size_t descriptor_limit = 256;                   ///< Beside one for each source.
    std::function<void(const std::string& line)> report;  ///< What a layer does wrong, a line each.
};

/// Folders and image trees merged by overlayfs' rules, the first source on top (fuse/SEMANTICS.md, "Stacks").
///
/// A directory is merged when it is first looked into, and stays as it was then, whatever happens to the upper below:
/// so the union can change the upper while this view tells what it held at mount time. Nodes are given in order of
/// first sight. What lies in the folders is reached name by name from their descriptors, never across a symlink, nor
/// out of them; a place that holds another inode than at first sight is ESTALE. Lower folders may not change; if they
/// do, the answer is old, new, or an errno.
///
/// Thread-safe; its own lock is not held while bytes of files are read. What link_target() and xattrs() return lives
/// until their next call.
class StackView : public View {
public:
    /// Throws invalid input as malformed, and errors of the root folders by their own codes.
    StackView(std::vector<StackSource> sources, StackOptions options);
    ~StackView() override;

    Result<Attributes> attributes(NodeId node) const override;
    Result<std::optional<ViewEntry>> lookup(NodeId directory, std::string_view name) const override;
    Result<std::uint32_t> entry_count(NodeId directory) const override;
    Result<ViewEntry> entry(NodeId directory, std::uint32_t position) const override;
    Result<NodeId> parent(NodeId directory) const override;
    Result<std::string_view> link_target(NodeId symlink) const override;
    Result<std::vector<std::pair<std::string_view, std::string_view>>> xattrs(NodeId node) const override;
    Result<std::size_t> read(NodeId file, std::uint64_t offset_bytes, std::span<std::byte> out) const override;
    bool is_warm(NodeId file, std::uint64_t offset_bytes, std::uint64_t size_bytes) const override;
    Result<std::uint64_t> seek_data(NodeId file, std::uint64_t offset_bytes) const override;
    Result<std::uint64_t> seek_hole(NodeId file, std::uint64_t offset_bytes) const override;
    std::uint64_t node_count() const override;  ///< Seen so far.
    std::uint64_t logical_bytes() const override;

    // For the keeper of the upper. "Below" means: in the sources without the upper.

    /// The names of the attributes that steer, as a keeper has to write them.
    const OverlayXattrs& overlay_xattrs() const noexcept;
    /// Where permissions and owners are kept beside the inode's own, by the upper's root and the option; empty:
    /// nowhere.
    std::string_view override_stat_xattr() const noexcept;

    /// Where a node lay in the upper at mount time; nullopt: not there. The root: {0, ""}. Of a file with several names
    /// one of them. What lies in index/ alone is not there: see index_name().
    Result<std::optional<UpperPlace>> upper_place(NodeId node) const;
    /// By which name, in which directory, a node was seen first, in the upper or not.
    Result<UpperPlace> first_place(NodeId node) const;
    /// The name in index/ of a file that is there, whether or not it lies elsewhere in the upper; nullopt: it is not.
    Result<std::optional<std::string>> index_name(NodeId node) const;
    /// Whether what lies in the upper has its bytes below.
    bool is_metacopy(NodeId file) const;
    /// Whether something would show below under a name of a directory.
    Result<bool> shows_below(NodeId directory, std::string_view name) const;
    /// Whether a directory has parts below: to be renamed it needs a redirect, and to be replaced an opaque mark.
    Result<bool> has_lower(NodeId directory) const;
    /// The path, with a leading slash, by which what is below is found: what overlay.redirect must say.
    Result<std::string> redirect_path(NodeId node) const;
    /// The file handle of the lower object (of directories the topmost) as overlay.origin holds it; of what lies in the
    /// upper, what its own overlay.origin says. nullopt: none (an image, or a file system without handles).
    Result<std::optional<FileHandle>> origin(NodeId node) const;
    /// st_nlink of the lower inode that a node shows or has as its origin below; 0: there is none.
    Result<std::uint32_t> lower_nlink(NodeId node) const;
    /// Bytes of a file below, opened for reading, metacopy resolved. EOPNOTSUPP: of an image; use read().
    Result<store::UniqueFd> open_lower(NodeId file) const;
    /// How st_ino is made from what statx says of an inode in the upper.
    std::uint64_t number_of(std::uint64_t device, std::uint64_t inode) const;

    /// Told by the keeper where something of the upper lies now: whatever it has moved there (also files), and each
    /// directory that it has made, which this view needs to find what lies below. Parent 0: the folder work/ in the
    /// work folder (an open file without a name).
    void moved(NodeId node, NodeId parent, std::string_view name);
    /// Not in the upper any more, or another inode in its place: its place, identity and descriptors are forgotten.
    void gone(NodeId node);
    /// A directory of the upper (0: the folder work/ in the work folder), by its present place, O_PATH; ENOENT when it
    /// does not lie there. From the cache of descriptors: one that is open goes with its directory when that is
    /// renamed.
    Result<std::shared_ptr<const store::UniqueFd>> upper_folder(NodeId directory) const;

private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lamina::unionfs
