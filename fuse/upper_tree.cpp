#include "fuse/upper_tree.h"

#include "fuse/contain.h"

#include <dirent.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <cstdio>
#include <utility>
#include <vector>

namespace lamina::unionfs {
namespace {

constexpr std::uint64_t kReservedBytes = std::uint64_t{256} << 10;

std::shared_ptr<const store::UniqueFd> share(store::UniqueFd fd) {
    return std::make_shared<const store::UniqueFd>(std::move(fd));
}

Result<std::vector<std::string>> names_in(const Spot& folder) {
    auto fd = open_at(folder, O_RDONLY | O_DIRECTORY);
    if (!fd) return std::unexpected(fd.error());
    const std::unique_ptr<DIR, int (*)(DIR*)> listing(::fdopendir(fd->get()), ::closedir);
    if (!listing) return fail(errno);
    (void)fd->release();
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* const entry = ::readdir(listing.get())) {
        const std::string name = entry->d_name;
        if (name != "." && name != "..") names.push_back(name);
    }
    if (errno != 0) return fail(errno);
    return names;
}

/// A folder of the work folder, made when it is not there.
std::shared_ptr<const store::UniqueFd> part_of_work(const Spot& spot) {
    if (const auto made = make_folder_at(spot); !made && made.error() != Errno{EEXIST})
        store::throw_errno(std::to_underlying(made.error()), "the work folder's " + spot.name);
    auto fd = open_at(spot, O_PATH | O_DIRECTORY);
    if (!fd) store::throw_errno(std::to_underlying(fd.error()), "the work folder's " + spot.name);
    return share(std::move(*fd));
}

}  // namespace

UpperTree::UpperTree(StackView& view, ChangeSet& changes, store::UniqueFd work)
    : view_(view), records_(changes.records()) {
    const auto root = share(std::move(work));
    work_ = part_of_work({root, "work"});
    index_ = part_of_work({root, "index"});
    clear_work();
}

UpperTree::~UpperTree() {
    clear_work();
}

void UpperTree::clear_work() const {
    const auto names = names_in(work("."));
    if (!names) return;
    for (const std::string& name : *names)
        if (!unlink_at(work(name))) clear_folder(work(name));
}

std::optional<UpperTree::Place> UpperTree::place(NodeId node) const {
    const InodeRecord* const inode = records_.inode(node);
    if (inode && (inode->flags & InodeRecord::kKept))
        return Place{inode->kept_parent, std::string(records_.arena().get(inode->kept_name).text())};
    if (node == 0 || node >= kFirstNewNode || (inode && inode->nlink == 0)) return std::nullopt;
    if (auto name = index_name(node); name && exists_at(index(*name))) return Place{kInIndex, std::move(*name)};
    if (const auto found = view_.upper_place(node); found && *found)
        return Place{(*found)->parent, std::string((*found)->name)};
    return std::nullopt;
}

std::optional<std::string> UpperTree::index_name(NodeId node) const {
    if (node >= kFirstNewNode) return std::nullopt;
    const auto below = view_.lower_nlink(node);
    if (!below || *below < 2) return std::nullopt;
    // Also when the name is gone at which the view found the inode, and could ask for its origin.
    if (const auto known = view_.index_name(node); known && *known) return **known;
    const auto origin = view_.origin(node);
    if (!origin || !*origin) return std::nullopt;
    return (*origin)->index_name();
}

Result<std::shared_ptr<const store::UniqueFd>> UpperTree::folder(NodeId directory) const {
    if (!is_kept(directory)) return fail(ENOENT);
    return view_.upper_folder(directory);
}

Result<Spot> UpperTree::spot(const Place& place) const {
    if (place.parent == kInWork) return work(place.name);
    if (place.parent == kInIndex) return index(place.name);
    return spot(place.parent, place.name);
}

Result<Spot> UpperTree::spot(NodeId node) const {
    const auto found = place(node);
    if (!found) return fail(ENOENT);
    return spot(*found);
}

Result<Spot> UpperTree::spot(NodeId directory, std::string_view name) const {
    auto opened = folder(directory);
    if (!opened) return std::unexpected(opened.error());
    return Spot{std::move(*opened), std::string(name)};
}

Result<UpperInode> UpperTree::inode(NodeId node) const {
    const auto found = records_.attributes(node);
    if (!found) return std::unexpected(found.error());
    const auto at = S_ISDIR(found->mode) ? spot(node, ".") : spot(node);
    if (!at) return std::unexpected(at.error());
    return UpperInode::open(*at);
}

Result<struct statx> UpperTree::status(NodeId node) const {
    const auto found = records_.attributes(node);
    if (!found) return std::unexpected(found.error());
    if (S_ISDIR(found->mode)) {
        const auto opened = folder(node);
        if (!opened) return std::unexpected(opened.error());
        return status_of((*opened)->get());
    }
    const auto at = spot(node);
    if (!at) return std::unexpected(at.error());
    return status_of(*at);
}

Result<void> UpperTree::put_stat_beside(const UpperInode& inode, const Owner& owner, std::uint32_t mode) const {
    const OverriddenStat stat{.uid = owner.uid, .gid = owner.gid, .mode = mode};
    return inode.set_xattr(view_.override_stat_xattr(), override_stat_text(stat));
}

Result<void> UpperTree::put(NodeId node, const std::optional<Place>& place, bool has_data_below) {
    try {
        Arena& arena = records_.arena();
        if (const auto reserved = arena.reserve(kReservedBytes, kReservedBytes); !reserved) return reserved;
        Arena::Transaction transaction(arena);
        const auto inode = records_.own_inode(node);
        if (!inode) return std::unexpected(inode.error());
        records_.set_kept(*inode, place ? place->parent : 0, place ? std::string_view(place->name) : "");
        if (has_data_below) records_.set_data_below(*inode, true);
        transaction.commit();
        if (!place)
            view_.gone(node);
        else if (place->parent != kInIndex)
            view_.moved(node, place->parent == kInWork ? 0 : place->parent, place->name);
        return {};
    } catch (const store::Error& error) {
        return std::unexpected(errno_for(error.code()));
    }
}

Result<void> UpperTree::own(NodeId node) {
    const InodeRecord* const known = records_.inode(node);
    if (node >= kFirstNewNode || (known && (known->flags & InodeRecord::kKept))) return {};
    const auto found = place(node);
    if (!found) return {};
    try {
        Arena& arena = records_.arena();
        if (const auto reserved = arena.reserve(kReservedBytes, kReservedBytes); !reserved) return reserved;
        Arena::Transaction transaction(arena);
        const auto inode = records_.own_inode(node);
        if (!inode) return std::unexpected(inode.error());
        if (const auto owned = records_.own_xattrs(*inode); !owned) return owned;
        if (node != kRootNode) records_.set_kept(*inode, found->parent, found->name);
        if (view_.is_metacopy(node)) records_.set_data_below(*inode, true);
        transaction.commit();
        return {};
    } catch (const store::Error& error) {
        return std::unexpected(errno_for(error.code()));
    }
}

bool UpperTree::has_data_below(NodeId node) const {
    const InodeRecord* const known = records_.inode(node);
    if (known && (known->flags & InodeRecord::kKept)) return (known->flags & InodeRecord::kDataBelow) != 0;
    return node < kFirstNewNode && is_kept(node) && view_.is_metacopy(node);
}

Result<void> UpperTree::data_is_whole(NodeId node) {
    if (const auto owned = own(node); !owned) return owned;
    return contain([&] {
        Arena::Transaction transaction(records_.arena());
        records_.set_data_below(records_.find_inode(node), false);
        transaction.commit();
    });
}

std::string UpperTree::work_name(NodeId node) {
    char name[24];
    std::snprintf(name, sizeof name, "#%llx", static_cast<unsigned long long>(node));
    return name;
}

bool UpperTree::is_whiteout(const Spot& spot) const {
    const auto status = status_of(spot);
    if (!status) return false;
    if (S_ISCHR(status->stx_mode)) return status->stx_rdev_major == 0 && status->stx_rdev_minor == 0;
    if (!S_ISREG(status->stx_mode) || status->stx_size != 0) return false;
    const auto inode = UpperInode::open(spot);
    if (!inode) return false;
    for (const std::string_view prefix : {OverlayXattrs::kTrusted, OverlayXattrs::kUser})
        if (const auto value = inode->xattr(std::string(prefix).append(kWhiteoutSuffix)); value && *value) return true;
    return false;
}

Result<bool> UpperTree::is_empty(const Spot& folder) const {
    const auto names = names_in(folder);
    if (!names) return std::unexpected(names.error());
    return names->empty();
}

void UpperTree::clear_folder(const Spot& folder) const noexcept {
    const auto inside = open_at(folder, O_PATH | O_DIRECTORY);
    if (!inside) return;
    const auto names = names_in(folder);
    if (!names) return;
    const auto shared = std::make_shared<const store::UniqueFd>(::dup(inside->get()));
    for (const std::string& name : *names)
        if (!unlink_at({shared, name})) clear_folder({shared, name});
    (void)remove_folder_at(folder);
}

}  // namespace lamina::unionfs
