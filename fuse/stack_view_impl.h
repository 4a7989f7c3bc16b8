#pragma once

#include "fuse/descriptor_cache.h"
#include "fuse/image_view.h"
#include "fuse/layer_folder.h"
#include "fuse/stack_records.h"
#include "fuse/stack_view.h"

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lamina::unionfs {

/// What the files of a stack share: stack_view.cpp answers the view's calls, stack_merge.cpp lists a directory's parts
/// into one, stack_search.cpp follows redirects through the sources, stack_resolve.cpp finds what a name stands for,
/// stack_upper.cpp answers the
/// keeper, stack_places.cpp opens what lies in the sources. All but what says otherwise needs the lock.
class StackView::Impl {
public:
    Impl(std::vector<StackSource> sources, StackOptions options);

    struct Source {
        std::string name;
        SharedFd root;
        std::unique_ptr<ImageView> image;
        std::uint64_t device = 0;   ///< Of the root; of images a number that no device has.
        std::string override_stat;  ///< The attribute that keeps owners and modes; empty: none.
        std::uint32_t folder = 0;   ///< Of its root.
        std::optional<std::array<std::uint8_t, 16>> uuid;
        store::UniqueFd handle_root;  ///< For open_by_handle_at; one for each device.
    };

    std::mutex mutex;
    std::vector<Source> sources;
    StackOptions options;
    StackRecords records;
    mutable DescriptorCache descriptors;
    store::UniqueFd index_folder;  ///< index/ of the work folder.
    store::UniqueFd work_folder;   ///< work/ of it.
    std::vector<std::uint64_t> devices;

    // Places.
    bool is_upper(std::uint32_t source) const noexcept { return options.has_upper && source == 0; }
    bool is_image(std::uint32_t folder) const noexcept {
        return sources[records.folders[folder].source].image != nullptr;
    }
    const ImageView& image(std::uint32_t folder) const { return *sources[records.folders[folder].source].image; }
    void add_source(StackSource given);
    void find_override_stat(Source& source, int root_fd, std::uint32_t number) const;
    std::uint32_t add_folder(std::uint32_t parent, std::string_view name, std::uint32_t node);
    Result<store::UniqueFd> open_known(int parent_fd, std::string_view name, FolderRecord& folder);
    Result<SharedFd> folder_fd(std::uint32_t folder);
    void remember_folder(std::uint32_t folder, store::UniqueFd opened) const;
    std::uint32_t first_upper_folder(NodeId node) const;
    Result<SharedFd> upper_folder(NodeId directory);
    struct Opened {
        SharedFd folder;
        std::string_view name;
    };
    Result<Opened> opened_place(const ObjectRecord& object, NodeId node);
    Result<layer::Stat> object_stat(const ObjectRecord& object, NodeId node);  ///< ESTALE when it is another inode.
    Result<store::UniqueFd> open_object(const ObjectRecord& object, NodeId node, bool for_reading);
    Result<SharedFd> data_fd(NodeId file);

    // Attributes that steer.
    struct Marks {
        bool is_opaque = false;
        bool has_whiteout_xattrs = false;
        bool is_metacopy = false;
        std::optional<std::string> redirect;
        std::optional<std::string> origin;
        std::optional<std::string> fuse_overlay_origin;
        std::optional<std::string> nlink;
        std::optional<std::string> override_stat;
    };
    Result<Marks> marks_of(int folder_fd, std::string_view name, const Source& source, bool is_root);
    Result<bool> is_aufs_mark(int folder_fd, std::string_view name);      ///< Of a name with AUFS' prefix.
    Result<bool> is_whiteout_file(int folder_fd, std::string_view name);  ///< By attribute.

    // Merging.
    Result<void> load(NodeId directory);
    struct Merge;
    Result<void> merge_part(Merge& merge, std::uint32_t folder);
    Result<void> merge_image(Merge& merge, std::uint32_t folder);
    Result<void> merge_entry(Merge& merge, std::uint32_t folder, int fd, const layer::Listed& entry);
    void append_entries(Merge& merge, NodeId directory);
    std::uint32_t find_entry(const DirectoryRecord& directory, std::string_view name, bool hidden) const;

    // Searching by path in the sources below one.
    struct Search {
        std::vector<std::string> names;
        bool from_root = false;  ///< Else from the parts of `parent`.
        NodeId parent = 0;
        std::uint32_t source = 0;  ///< The last one that was searched.
        bool wants_directory = false;
        bool wants_file = false;  ///< A metacopy's data.
        bool is_stopped = false;
    };
    struct Found {
        std::uint32_t folder = 0;  ///< In which it lies.
        std::string name;
        layer::Stat stat;  ///< Of an image: the inode's number only, and mode.
        Marks marks;
        std::uint32_t as_folder = 0;  ///< A directory's own.
    };
    /// The next lower thing that the search's names mean; nullopt: there is none.
    Result<std::optional<Found>> next_below(Search& search, std::uint32_t node);
    Result<std::optional<Found>> search_in(std::uint32_t base, Search& search, std::uint32_t node);
    Result<std::optional<Found>> look_at(std::uint32_t folder, const std::vector<std::string>& names,
                                         std::size_t position, Search& search);
    Result<std::optional<Found>> search_in_image(std::uint32_t base, Search& search, std::uint32_t node);
    Result<void> apply_redirect(Search& search, std::size_t left, const std::string& value);

    // Resolving.
    struct Key {
        std::uint64_t device = 0;
        std::uint64_t inode = 0;
        std::uint32_t source = 0;
        bool operator==(const Key&) const = default;
    };
    Result<NodeId> resolve(NodeId node);  ///< The canonical node.
    Result<void> resolve_root(std::uint32_t node);
    Result<void> resolve_directory(std::uint32_t node);
    Result<std::uint32_t> open_part(std::uint32_t parent, std::string_view name, std::uint32_t node, Marks& marks);
    std::uint32_t add_image_folder(std::uint32_t parent, std::string_view name, NodeId inode, std::uint32_t node);
    void finish_directory(std::uint32_t node, const std::vector<std::uint32_t>& folders, TextRef upper_redirect);
    Result<void> resolve_file(std::uint32_t node);
    Result<void> resolve_image_file(std::uint32_t node);
    Result<void> resolve_data(std::uint32_t node, FileRecord& file, const Marks& marks);
    Result<bool> resolve_index(std::uint32_t node, FileRecord& file, const layer::Stat& stat);
    void number_upper(NodeRecord& node, FileRecord& file, const Marks& marks, const layer::Stat& stat);
    bool join_links(std::uint32_t node, const Key& key);
    void finish_file(std::uint32_t node, const FileRecord& file, const Key& key, bool has_links);
    struct Lower {
        std::uint64_t device = 0;
        std::uint64_t inode = 0;
        std::uint32_t nlink = 0;
    };
    std::optional<Lower> origin_of(const FileHandle& handle) const;
    std::optional<Lower> fuse_overlay_origin_of(std::string_view path) const;
    std::uint64_t number_of(std::uint64_t device, std::uint64_t inode);
    Result<std::optional<FileHandle>> handle_in(std::uint32_t folder, std::string_view name);

    Result<Attributes> attributes(NodeId node);
    Result<Attributes> directory_attributes(NodeId node);
    Result<Attributes> file_attributes(NodeId node);
    ViewEntry entry_of(NodeId node, NodeId canonical) const;
    Result<NodeId> directory(NodeId node);  ///< ENOENT, ENOTDIR; resolved.
    Result<FileRecord*> file(NodeId node);  ///< Of the canonical node.
    /// Where the bytes of a file come from: a descriptor, or an image's inode.
    struct Bytes {
        SharedFd fd;
        const ImageView* image = nullptr;
        NodeId inode = 0;
    };
    Result<Bytes> bytes_of(NodeId node);
    Result<void> read_xattrs(NodeId node);
    Result<void> apply_override(Attributes& attributes, const Source& source, int folder_fd, std::string_view name);
    void report(const std::string& line) const {
        if (options.report) options.report(line);
    }
    std::string path_of(NodeId node) const;  ///< For reports.

    std::string target;  ///< What link_target() returned last.
    std::vector<std::pair<std::string, std::string>> xattr_texts;

    /// Runs `compute` under the lock; exceptions become errnos, EIO is reported.
    template <class Compute>
    auto guarded(NodeId node, Compute&& compute) noexcept -> decltype(compute());

    struct KeyHash {
        std::size_t operator()(const Key& key) const noexcept {
            return static_cast<std::size_t>(key.inode * 0x9e3779b97f4a7c15U ^ key.device ^ key.source);
        }
    };
    std::unordered_map<Key, std::uint32_t, KeyHash> links;  ///< Inodes with several names, by what they are.
    struct Place {
        NodeId parent = 0;
        std::string name;
    };
    std::unordered_map<NodeId, Place> moved;  ///< Told by the keeper.
};

inline Identity identity_of(const layer::Stat& stat) {
    return {.device = stat.device, .inode = stat.inode, .birth_mark = stat.birth_mark};
}

/// What a layer does not hold any more, or holds something else for, is ESTALE.
inline Errno stale(Errno error) {
    const bool is_gone =
        error == Errno{ENOENT} || error == Errno{ENOTDIR} || error == Errno{ELOOP} || error == Errno{ENXIO};
    return is_gone ? Errno{ESTALE} : error;
}

template <class Compute>
auto StackView::Impl::guarded(NodeId node, Compute&& compute) noexcept -> decltype(compute()) {
    try {
        const std::lock_guard lock(mutex);
        auto result = compute();
        if (!result && result.error() == Errno{EIO}) report(path_of(node) + ": input/output error");
        return result;
    } catch (const store::Error& error) {
        if (options.report) options.report(error.what());
        return std::unexpected(errno_for(error.code()));
    } catch (const std::bad_alloc&) {
        return fail(ENOMEM);
    } catch (const std::exception&) {
        return fail(EIO);
    }
}

}  // namespace lamina::unionfs
