// Opening a stack's sources, and finding again what lies in them: from a source's root, or the nearest folder whose
// descriptor is at hand, one name after the other. What is found must be the inode that was there at first sight. In
// the upper the way goes by the nodes of directories, because the keeper moves them.
#include "fuse/stack_view_impl.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace lamina::unionfs {
namespace {

// Keys of the descriptor cache.
constexpr std::uint64_t kUpperKey = std::uint64_t{1} << 63;  // And a directory's node.
constexpr std::uint64_t kDataKey = std::uint64_t{1} << 62;   // And a file's node. Else a folder's index.
constexpr std::uint64_t kImageDevice = std::uint64_t{1} << 63;
constexpr std::size_t kMaxDepth = 1 << 20;

[[noreturn]] void refuse(const std::string& name, Errno error) {
    store::throw_errno(std::to_underlying(error), name);
}

}  // namespace

StackView::Impl::Impl(std::vector<StackSource> given, StackOptions given_options)
    : options(std::move(given_options)), descriptors(options.descriptor_limit) {
    if (given.empty()) throw store::Error(store::Errc::malformed, "a stack of no layers");
    if (options.has_upper && given.front().image)
        throw store::Error(store::Errc::malformed, given.front().name + ": an image cannot be the upper");
    const std::uint32_t root = records.nodes.add({.parent = kRootNode, .type = S_IFDIR});
    for (StackSource& source : given) add_source(std::move(source));
    if (options.work_folder) {
        if (auto index = layer::open_folder(options.work_folder.get(), "index")) index_folder = std::move(*index);
    }
    if (const auto resolved = resolve_root(root); !resolved) refuse(sources.front().name, resolved.error());
}

void StackView::Impl::add_source(StackSource given) {
    const auto number = static_cast<std::uint32_t>(sources.size());
    Source source;
    source.name = std::move(given.name);
    FolderRecord folder{.source = number, .node = kRootNode};
    if (given.image) {
        source.image = std::make_unique<ImageView>(std::move(given.image), options.report);
        source.device = kImageDevice + number;
        folder.identity.inode = kRootNode;
    } else {
        if (!is_upper(number)) given.folder = layer::private_mount(std::move(given.folder));
        const auto stat = layer::stat_of(given.folder.get(), {});
        if (!stat) refuse(source.name, stat.error());
        if (!S_ISDIR(stat->mode)) refuse(source.name, Errno{ENOTDIR});
        source.device = stat->device;
        folder.identity = identity_of(*stat);
        find_override_stat(source, given.folder.get(), number);
        const auto same = std::ranges::find(sources, source.device, &Source::device);
        if (same == sources.end()) {
            if (auto opened = layer::open_in(given.folder.get(), {}, O_RDONLY | O_DIRECTORY))
                source.handle_root = std::move(*opened);
            source.uuid = layer::file_system_uuid(given.folder.get());
        } else {
            source.uuid = same->uuid;
        }
        source.root = std::make_shared<const store::UniqueFd>(std::move(given.folder));
    }
    folder.identity.device = source.device;
    source.folder = records.folders.add(folder);
    if (std::ranges::find(devices, source.device) == devices.end()) devices.push_back(source.device);
    sources.push_back(std::move(source));
}

void StackView::Impl::find_override_stat(Source& source, int root_fd, std::uint32_t number) const {
    if (options.override_stat == OverrideStat::off) return;
    for (const std::string_view name : kOverrideStatXattrs) {
        const auto value = layer::xattr(root_fd, {}, name);
        if (!value || !*value) continue;
        source.override_stat = name;
        return;
    }
    if (!is_upper(number) || options.override_stat == OverrideStat::automatic) return;
    source.override_stat = kOverrideStatXattrs[options.override_stat == OverrideStat::privileged ? 0 : 1];
}

std::uint32_t StackView::Impl::add_folder(std::uint32_t parent, std::string_view name, std::uint32_t node) {
    return records.folders.add(
        {.source = records.folders[parent].source, .parent = parent, .node = node, .name = records.texts.add(name)});
}

/// Opens one folder in another, and makes sure that it is the one that was there before; the first time, remembers it.
Result<store::UniqueFd> StackView::Impl::open_known(int parent_fd, std::string_view name, FolderRecord& folder) {
    auto opened = layer::open_folder(parent_fd, name);
    if (!opened) return std::unexpected(stale(opened.error()));
    const auto stat = layer::stat_of(opened->get(), {});
    if (!stat) return std::unexpected(stat.error());
    if (folder.identity.inode == 0) folder.identity = identity_of(*stat);
    if (folder.identity != identity_of(*stat)) return fail(ESTALE);
    return opened;
}

Result<SharedFd> StackView::Impl::folder_fd(std::uint32_t folder) {
    if (folder == kIndexFolder) return SharedFd(SharedFd(), &index_folder);
    std::vector<std::uint32_t> missing;
    SharedFd fd;
    for (std::uint32_t at = folder; !fd; at = records.folders[at].parent) {
        const FolderRecord& record = records.folders[at];
        if (record.parent == 0) {
            fd = sources[record.source].root;
        } else if (is_upper(record.source) && record.node != 0) {
            auto found = upper_folder(record.node);
            if (!found) return found;
            fd = std::move(*found);
        } else if (!(fd = descriptors.find(at))) {
            missing.push_back(at);
        }
    }
    for (auto at = missing.rbegin(); at != missing.rend(); ++at) {
        FolderRecord& record = records.folders[*at];
        auto opened = open_known(fd->get(), records.text(record.name), record);
        if (!opened) return std::unexpected(opened.error());
        fd = descriptors.add(*at, std::move(*opened));
    }
    return fd;
}

void StackView::Impl::remember_folder(std::uint32_t folder, store::UniqueFd opened) const {
    const FolderRecord& record = records.folders[folder];
    const bool is_in_upper = is_upper(record.source) && record.node != 0;
    descriptors.add(is_in_upper ? kUpperKey | record.node : folder, std::move(opened));
}

/// The folder of the upper that a directory of the view had at mount time; 0: none.
std::uint32_t StackView::Impl::first_upper_folder(NodeId node) const {
    if (!options.has_upper || node >= records.nodes.size()) return 0;
    const NodeRecord& record = records.nodes[node];
    if (!record.is_directory() || record.detail == 0) return 0;
    const std::uint32_t top = records.parts[records.directories[record.detail].parts].folder;
    return is_upper(records.folders[top].source) ? top : 0;
}

Result<SharedFd> StackView::Impl::upper_folder(NodeId directory) {
    if (!options.has_upper) return fail(ENOENT);
    if (directory == 0) {
        if (!work_folder) {
            auto opened = layer::open_folder(options.work_folder.get(), "work");
            if (!opened) return std::unexpected(opened.error());
            work_folder = std::move(*opened);
        }
        return SharedFd(SharedFd(), &work_folder);
    }
    struct Step {
        NodeId node;
        std::uint32_t folder;
        std::string name;
    };
    std::vector<Step> missing;
    SharedFd fd;
    for (NodeId at = directory; !fd;) {
        if (at == kRootNode) {
            fd = sources.front().root;
            break;
        }
        fd = descriptors.find(kUpperKey | at);
        if (fd) break;
        const std::uint32_t folder = first_upper_folder(at);
        const auto now = moved.find(at);
        if (now != moved.end()) {
            missing.push_back({at, folder, now->second.name});
            at = now->second.parent;
        } else if (folder != 0) {
            missing.push_back({at, folder, std::string(records.text(records.folders[folder].name))});
            at = records.folders[records.folders[folder].parent].node;
        } else {
            return fail(ENOENT);
        }
        if (missing.size() > kMaxDepth) return fail(ELOOP);
        if (at == 0) {
            const auto work = upper_folder(0);
            if (!work) return work;
            fd = *work;
        }
    }
    for (auto at = missing.rbegin(); at != missing.rend(); ++at) {
        FolderRecord unknown;
        FolderRecord& record = at->folder != 0 ? records.folders[at->folder] : unknown;
        auto opened = open_known(fd->get(), at->name, record);
        if (!opened) return std::unexpected(opened.error());
        fd = descriptors.add(kUpperKey | at->node, std::move(*opened));
    }
    return fd;
}

Result<StackView::Impl::Opened> StackView::Impl::opened_place(const ObjectRecord& object, NodeId node) {
    const bool is_in_upper = object.folder == kIndexFolder || is_upper(records.folders[object.folder].source);
    const auto now = is_in_upper && node != 0 ? moved.find(node) : moved.end();
    if (now != moved.end()) {
        auto folder = upper_folder(now->second.parent);
        if (!folder) return std::unexpected(stale(folder.error()));
        return Opened{.folder = std::move(*folder), .name = now->second.name};
    }
    auto folder = folder_fd(object.folder);
    if (!folder) return std::unexpected(stale(folder.error()));
    return Opened{.folder = std::move(*folder), .name = records.text(object.name)};
}

Result<layer::Stat> StackView::Impl::object_stat(const ObjectRecord& object, NodeId node) {
    const auto place = opened_place(object, node);
    if (!place) return std::unexpected(place.error());
    auto stat = layer::stat_of(place->folder->get(), place->name);
    if (!stat) return std::unexpected(stale(stat.error()));
    if (identity_of(*stat) != object.identity) return fail(ESTALE);
    return stat;
}

Result<store::UniqueFd> StackView::Impl::open_object(const ObjectRecord& object, NodeId node, bool for_reading) {
    const auto place = opened_place(object, node);
    if (!place) return std::unexpected(place.error());
    auto opened = for_reading ? layer::open_file(place->folder->get(), place->name)
                              : layer::open_in(place->folder->get(), place->name, O_PATH);
    if (!opened) return std::unexpected(stale(opened.error()));
    const auto stat = layer::stat_of(opened->get(), {});
    if (!stat) return std::unexpected(stat.error());
    if (identity_of(*stat) != object.identity) return fail(ESTALE);
    if (for_reading && !S_ISREG(stat->mode)) return fail(ESTALE);
    return opened;
}

Result<SharedFd> StackView::Impl::data_fd(NodeId file) {
    if (SharedFd fd = descriptors.find(kDataKey | file)) return fd;
    const FileRecord& record = records.files[records.nodes[file].detail];
    const bool is_below = record.data.folder != 0;
    auto opened = open_object(is_below ? record.data : record.object, is_below ? 0 : file, true);
    if (!opened) return std::unexpected(opened.error());
    return descriptors.add(kDataKey | file, std::move(*opened));
}

void StackView::moved(NodeId node, NodeId parent, std::string_view name) {
    const std::lock_guard lock(impl_->mutex);
    impl_->moved[node] = {.parent = parent, .name = std::string(name)};
}

void StackView::gone(NodeId node) {
    const std::lock_guard lock(impl_->mutex);
    impl_->moved.erase(node);
    // What takes the place of a directory that is emptied is another one.
    if (const std::uint32_t folder = impl_->first_upper_folder(node); folder != 0)
        impl_->records.folders[folder].identity = {};
    impl_->descriptors.drop(kUpperKey | node);
    impl_->descriptors.drop(kDataKey | node);
}

Result<SharedFd> StackView::upper_folder(NodeId directory) const {
    return impl_->guarded(directory, [&] { return impl_->upper_folder(directory); });
}

// Numbers.

/// With one device numbers are its own. Else its place among the devices stands in the top byte.
std::uint64_t StackView::Impl::number_of(std::uint64_t device, std::uint64_t inode) {
    constexpr unsigned kShift = 56;
    constexpr std::uint64_t kMask = (std::uint64_t{1} << kShift) - 1;
    auto at = std::ranges::find(devices, device);
    if (at == devices.end()) at = devices.insert(devices.end(), device);
    if (devices.size() == 1) return inode;
    const auto place = static_cast<std::uint64_t>(at - devices.begin()) & 0x7f;
    if (inode <= kMask) return place << kShift | inode;
    std::uint64_t mixed = inode * 0x9e3779b97f4a7c15U;
    mixed ^= mixed >> 32;
    return place << kShift | (mixed & kMask);
}

std::uint64_t StackView::number_of(std::uint64_t device, std::uint64_t inode) const {
    const std::lock_guard lock(impl_->mutex);
    return impl_->number_of(device, inode);
}

std::string StackView::Impl::path_of(NodeId node) const {
    std::string path;
    for (std::size_t depth = 0; node > kRootNode && node < records.nodes.size() && depth < 4096; ++depth) {
        path.insert(0, "/" + std::string(records.name(static_cast<std::uint32_t>(node))));
        node = records.nodes[static_cast<std::uint32_t>(node)].parent;
    }
    return path.empty() ? "/" : path;
}

}  // namespace lamina::unionfs
