// A copy is made of what the union shows, not of the lower file: an inode may have lost its last name, or have times
// that only the records know. Data comes from the view's own file where it has one (a clone, else its data segments,
// so that holes stay holes), else piece by piece through the view. Attributes go last, and of them those that a change
// of data or owner would take away (set-id bits, capabilities) after all others.
#include "fuse/copy_up.h"

#include "fuse/upper_meter.h"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>
#include <vector>

namespace lamina::unionfs {

struct DataRange {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
};

namespace {

constexpr std::size_t kBufferBytes = std::size_t{256} << 10;

bool is_unsupported(Errno error) {
    return error == Errno{EOPNOTSUPP} || error == Errno{EPERM};
}

Result<void> write_all(int to, std::uint64_t offset_bytes, std::span<const std::byte> data) {
    while (!data.empty()) {
        const auto count = write_at(to, offset_bytes, data);
        if (!count) return std::unexpected(count.error());
        data = data.subspan(*count);
        offset_bytes += *count;
    }
    return {};
}

/// Whether a copy must have the attribute: one that decides about access, or that a program stored. Others are the
/// business of the file system below (labels of security modules).
bool must_copy(std::string_view name) {
    return !name.starts_with("security.") || name == kCapabilityXattr;
}

}  // namespace

Result<std::shared_ptr<const store::UniqueFd>> CopyUp::folder(NodeId directory) {
    std::vector<NodeId> missing;
    for (NodeId at = directory; !tree_.is_kept(at);) {
        missing.push_back(at);
        const auto above = tree_.records().parent(at);
        if (!above) return std::unexpected(above.error());
        if (*above == 0 || *above == at) return fail(ENOENT);
        at = *above;
    }
    if (const auto room = UpperMeter::room_for({.inodes = missing.size()}); !room) return std::unexpected(room.error());
    for (; !missing.empty(); missing.pop_back())
        if (const auto copied = copy_folder(missing.back()); !copied) return std::unexpected(copied.error());
    return tree_.folder(directory);
}

/// Only what was never moved is not in the upper: its name is where the view has it.
Result<void> CopyUp::copy_folder(NodeId directory) {
    const auto place = tree_.view().first_place(directory);
    if (!place) return std::unexpected(place.error());
    const UpperTree::Place name{place->parent, std::string(place->name)};
    const auto at = tree_.spot(name);
    if (!at) return std::unexpected(at.error());
    const Spot built = tree_.new_work();
    if (const auto made = make_folder_at(built); !made) return made;
    const auto filled = [&]() -> Result<void> {
        const auto inode = UpperInode::open(built);
        if (!inode) return std::unexpected(inode.error());
        if (const auto copied = copy_attributes(directory, *inode); !copied) return copied;
        if (const auto marked = mark_origin(directory, *inode); !marked) return marked;
        return put_quietly(built, name.parent, *at, false);
    }();
    if (!filled) {
        (void)remove_folder_at(built);
        return filled;
    }
    return tree_.put(directory, name);
}

/// Gives a copy its name; nobody shall see that anything came into the folder.
Result<void> CopyUp::put_quietly(const Spot& built, NodeId parent, const Spot& at, bool is_link) {
    mark_impure(parent);
    const auto before = status_of(at.fd());
    if (!before) return std::unexpected(before.error());
    const auto name_it = [&] { return is_link ? link_at(built, at) : rename_at(built, at, RENAME_NOREPLACE); };
    auto put = name_it();
    if (!put && put.error() == Errno{EACCES})
        put = with_permission(UpperInode::open({at.folder, "."}),
                              [&] { return with_permission(UpperInode::open(built), name_it); });
    if (!put) return put;
    const auto folder = UpperInode::open({at.folder, "."});
    if (folder) (void)folder->set_times(time_of(before->stx_atime), time_of(before->stx_mtime));
    return {};
}

Result<void> CopyUp::node(NodeId node, std::uint64_t size_limit_bytes) {
    if (tree_.is_kept(node)) return complete_data(node);
    return bring(node, {.limit = size_limit_bytes});
}

Result<void> CopyUp::inode(NodeId node) {
    if (tree_.is_kept(node)) return {};
    const auto can_stay = can_stay_below(node);
    if (!can_stay) return std::unexpected(can_stay.error());
    return bring(node, {.stay_below = *can_stay});
}

/// The next mount finds the bytes by the name: only what has one, and that where it always was.
Result<bool> CopyUp::can_stay_below(NodeId node) const {
    if (!options_.makes_metacopy) return false;
    const auto found = tree_.records().attributes(node);
    if (!found) return std::unexpected(found.error());
    if (!S_ISREG(found->mode) || found->size_bytes == 0 || found->nlink == 0 || tree_.index_name(node)) return false;
    const auto visible = visible_name(node);
    if (!visible) return std::unexpected(visible.error());
    return visible->has_value();
}

Result<void> CopyUp::bring(NodeId node, const Bytes& bytes) {
    const auto found = tree_.records().attributes(node);
    if (!found) return std::unexpected(found.error());
    if (S_ISDIR(found->mode)) {
        const auto copied = folder(node);
        if (!copied) return std::unexpected(copied.error());
        return {};
    }
    const auto visible = visible_name(node);
    if (!visible) return std::unexpected(visible.error());
    if (const auto room = check_room(*found, *visible, bytes); !room) return room;
    std::optional<Spot> at;
    if (*visible) {
        auto opened = folder((*visible)->parent);
        if (!opened) return std::unexpected(opened.error());
        at = Spot{std::move(*opened), (*visible)->name};
    }
    const Spot built = tree_.work(UpperTree::work_name(node));
    auto done = build(node, built, bytes);
    if (done) done = give_names(node, built, at, *visible, bytes);
    if (!done) (void)unlink_at(built);
    return done;
}

Result<void> CopyUp::give_names(NodeId node, const Spot& built, const std::optional<Spot>& at,
                                const std::optional<UpperTree::Place>& visible, const Bytes& bytes) {
    const auto found = tree_.records().attributes(node);
    if (!found) return std::unexpected(found.error());
    const auto index = tree_.index_name(node);
    if (index && found->nlink > 0) {  // Whole with this step; the name is for readers that know no index.
        if (const auto put = rename_at(built, tree_.index(*index), RENAME_NOREPLACE); !put) return put;
        if (const auto put = tree_.put(node, UpperTree::Place{UpperTree::kInIndex, *index}); !put) return put;
        if (at) (void)put_quietly(tree_.index(*index), visible->parent, *at, true);
        (void)mark_links(node, 'U');  // For a reader that cannot open file handles, and so cannot ask below.
        return {};
    }
    if (!at) return tree_.put(node, UpperTree::Place{UpperTree::kInWork, built.name});
    if (const auto put = put_quietly(built, visible->parent, *at, false); !put) return put;
    return tree_.put(node, visible, bytes.stay_below);
}

Result<Spot> CopyUp::name(NodeId node, NodeId parent, std::string_view name) {
    auto opened = folder(parent);
    if (!opened) return std::unexpected(opened.error());
    const Spot at{std::move(*opened), std::string(name)};
    if (const auto copied = this->node(node); !copied) return std::unexpected(copied.error());
    if (exists_at(at)) return at;
    const auto place = tree_.spot(node);
    if (!place) return std::unexpected(place.error());
    if (const auto marked = mark_links(node, 'L'); !marked) return std::unexpected(marked.error());
    if (const auto put = put_quietly(*place, parent, at, true); !put) return std::unexpected(put.error());
    (void)mark_links(node, 'U');
    return at;
}

/// Before anything is copied: a quota that has no room for all of it.
Result<void> CopyUp::check_room(const Attributes& inode, const std::optional<UpperTree::Place>& at,
                                const Bytes& bytes) const {
    if (!UpperMeter::is_active()) return {};
    UpperMeter::Growth growth{.inodes = 1};
    if (S_ISREG(inode.mode) && !bytes.stay_below)
        growth.bytes = UpperMeter::in_blocks(std::min({inode.size_bytes, bytes.limit, inode.allocated_bytes}));
    for (NodeId above = at ? at->parent : 0; above != 0 && !tree_.is_kept(above);) {
        ++growth.inodes;
        const auto next = tree_.records().parent(above);
        if (!next) return std::unexpected(next.error());
        above = *next == above ? 0 : *next;
    }
    return UpperMeter::room_for_copy(growth);
}

/// What was never renamed has no names but the view's.
Result<std::optional<UpperTree::Place>> CopyUp::visible_name(NodeId node) const {
    const auto place = tree_.view().first_place(node);
    if (!place) return std::unexpected(place.error());
    const auto found = tree_.records().resolve(place->parent, place->name);
    if (!found) return std::unexpected(found.error());
    if (found->node != node) return std::nullopt;
    return UpperTree::Place{place->parent, std::string(place->name)};
}

Result<void> CopyUp::build(NodeId node, const Spot& at, const Bytes& bytes) const {
    const auto found = tree_.records().attributes(node);
    if (!found) return std::unexpected(found.error());
    if (S_ISREG(found->mode)) return build_file(node, at, {std::min(found->size_bytes, bytes.limit), bytes.stay_below});
    if (S_ISLNK(found->mode)) {
        const auto target = tree_.view().link_target(node);
        if (!target) return std::unexpected(target.error());
        if (const auto made = make_symlink_at(at, std::string(*target)); !made) return made;
    } else if (const auto made = make_node_at(at, (found->mode & S_IFMT) | 0600, found->device); !made) {
        return made;
    }
    const auto inode = UpperInode::open(at);
    if (!inode) return std::unexpected(inode.error());
    if (const auto copied = copy_attributes(node, *inode); !copied) return copied;
    return mark_origin(node, *inode);
}

Result<void> CopyUp::build_file(NodeId node, const Spot& at, const Bytes& bytes) const {
    const auto file = create_at(at);
    if (!file) return std::unexpected(file.error());
    const std::uint64_t before_bytes = UpperMeter::counted_bytes();
    const auto filled =
        bytes.stay_below ? resize_file(file->get(), bytes.limit) : copy_data(node, file->get(), bytes.limit);
    if (!filled) return filled;
    if (const auto room = UpperMeter::had_room(before_bytes); !room) return room;  // Below it may have taken less.
    const UpperInode inode(file->get());
    if (bytes.stay_below)
        if (const auto marked = inode.set_xattr(tree_.mark(kMetacopySuffix), ""); !marked) return marked;
    if (const auto marked = mark_origin(node, inode); !marked) return marked;
    if (const auto copied = copy_attributes(node, inode); !copied) return copied;
    if (options_.is_volatile || bytes.stay_below) return {};
    return sync_data(file->get());
}

Result<void> CopyUp::copy_data(NodeId node, int to, std::uint64_t size_bytes) const {
    if (size_bytes == 0) return {};
    const UpperMeter::OneFile counted(to);
    const auto from = tree_.view().open_lower(node);
    if (!from) {
        if (from.error() != Errno{EOPNOTSUPP}) return std::unexpected(from.error());
        return copy_from_view(node, to, size_bytes);
    }
    const auto whole = status_of(from->get());
    const bool is_clone = whole && whole->stx_size == size_bytes && ::ioctl(to, FICLONE, from->get()) == 0;
    if (is_clone) return {};
    for (std::uint64_t at = 0; at < size_bytes;) {
        const off_t data = ::lseek(from->get(), static_cast<off_t>(at), SEEK_DATA);
        if (data < 0 && errno == ENXIO) break;
        const off_t hole = data < 0 ? -1 : ::lseek(from->get(), data, SEEK_HOLE);
        DataRange range{at, size_bytes};  // Where holes cannot be told, all is data.
        if (data >= 0) range.begin = static_cast<std::uint64_t>(data);
        if (hole > data) range.end = std::min(size_bytes, static_cast<std::uint64_t>(hole));
        if (range.begin >= size_bytes) break;
        if (const auto copied = copy_segment(from->get(), to, range); !copied) return copied;
        at = range.end;
    }
    return resize_file(to, size_bytes);
}

Result<void> CopyUp::copy_segment(int from, int to, const DataRange& range) const {
    std::uint64_t at = range.begin;
    while (at < range.end) {
        off_t in = static_cast<off_t>(at);
        off_t out = in;
        const auto count = ::copy_file_range(from, &in, to, &out, range.end - at, 0);
        if (count < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EIO)) return fail(errno);
        if (count <= 0) break;  // Some pairs of file systems cannot; some answer 0.
        at += static_cast<std::uint64_t>(count);
    }
    std::vector<std::byte> buffer(at < range.end ? kBufferBytes : 0);
    while (at < range.end) {
        const auto count = ::pread(from, buffer.data(), std::min<std::uint64_t>(buffer.size(), range.end - at),
                                   static_cast<off_t>(at));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return fail(errno);
        if (count == 0) return fail(EIO);  // It was cut while it was copied.
        if (const auto written = write_all(to, at, std::span(buffer).first(static_cast<std::size_t>(count))); !written)
            return written;
        at += static_cast<std::uint64_t>(count);
    }
    return {};
}

Result<void> CopyUp::copy_from_view(NodeId node, int to, std::uint64_t size_bytes) const {
    const StackView& view = tree_.view();
    std::vector<std::byte> buffer(kBufferBytes);
    for (std::uint64_t at = 0; at < size_bytes;) {
        const auto data = view.seek_data(node, at);
        if (!data && data.error() == Errno{ENXIO}) break;
        if (!data) return std::unexpected(data.error());
        if (*data >= size_bytes) break;
        const auto hole = view.seek_hole(node, *data);
        if (!hole) return std::unexpected(hole.error());
        const std::uint64_t end = std::min(*hole, size_bytes);
        for (at = *data; at < end;) {
            const auto part = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), end - at));
            const auto count = view.read(node, at, part);
            if (!count) return std::unexpected(count.error());
            if (*count == 0) return fail(EIO);
            if (const auto written = write_all(to, at, part.first(*count)); !written) return written;
            at += *count;
        }
    }
    return resize_file(to, size_bytes);
}

/// A file of the upper whose data is still below (metacopy). The mark goes when the data is whole.
Result<void> CopyUp::complete_data(NodeId node) {
    if (!tree_.has_data_below(node)) return {};
    const auto at = tree_.spot(node);
    if (!at) return std::unexpected(at.error());
    const auto before = status_of(*at);
    if (!before) return std::unexpected(before.error());
    const auto file = open_at(*at, O_RDWR);
    if (!file) return std::unexpected(file.error());
    const std::uint64_t growth_bytes = UpperMeter::write_growth(file->get(), 0, before->stx_size);
    if (const auto room = UpperMeter::room_for_copy({.bytes = growth_bytes}); !room) return room;
    if (const auto copied = copy_data(node, file->get(), before->stx_size); !copied) return copied;
    const UpperInode inode(file->get());
    if (const auto copied = copy_attributes(node, inode); !copied) return copied;
    if (!options_.is_volatile)
        if (const auto synced = sync_data(file->get()); !synced) return synced;
    if (const auto unmarked = inode.remove_xattr(tree_.mark(kMetacopySuffix)); !unmarked) return unmarked;
    return tree_.data_is_whole(node);
}

Result<void> CopyUp::copy_attributes(NodeId node, const UpperInode& to) const {
    const auto from = tree_.records().attributes(node);
    if (!from) return std::unexpected(from.error());
    const auto all = tree_.records().xattrs(node);
    if (!all) return std::unexpected(all.error());
    std::vector<std::pair<std::string, std::string>> xattrs(all->begin(), all->end());
    const auto status = status_of(to.fd());
    if (!status) return std::unexpected(status.error());
    const Owner owner{from->uid, from->gid};
    const bool is_beside = tree_.keeps_stat_beside(from->mode);
    if (!is_beside && owner != Owner{status->stx_uid, status->stx_gid})
        if (const auto set = to.set_owner(owner); !set) return set;
    const auto copy = [&](bool is_capability) -> Result<void> {
        for (const auto& [name, value] : xattrs) {
            if ((name == kCapabilityXattr) != is_capability) continue;
            const auto set = to.set_xattr(stored_xattr_name(name), value);
            if (!set && (must_copy(name) || !is_unsupported(set.error()))) return set;
        }
        return {};
    };
    if (const auto copied = copy(false); !copied) return copied;
    if (is_beside) {
        if (const auto set = tree_.put_stat_beside(to, owner, from->mode); !set) return set;
    } else if (!S_ISLNK(from->mode)) {
        if (const auto set = to.set_mode(from->mode); !set) return set;
    }
    if (const auto copied = copy(true); !copied) return copied;
    return to.set_times(from->atime, from->mtime);
}

/// Without it only the inode's number is another one after the next mount, so a file system that cannot keep it is no
/// reason to fail; but index/ is found through it.
Result<void> CopyUp::mark_origin(NodeId node, const UpperInode& inode) const {
    const auto origin = tree_.view().origin(node);
    if (!origin || !*origin) return {};
    const auto set = inode.set_xattr(tree_.mark(kOriginSuffix), (*origin)->bytes());
    if (!set && !is_unsupported(set.error())) return set;
    if (!tree_.index_name(node)) return {};
    if (!set) return set;
    const auto below = tree_.view().lower_nlink(node);
    const auto shown = tree_.records().attributes(node);
    if (!below || !shown || shown->nlink == 0) return {};
    char text[24];
    std::snprintf(text, sizeof text, "L%+d", static_cast<int>(shown->nlink) - static_cast<int>(*below));
    return inode.set_xattr(tree_.mark(kNlinkSuffix), text);
}

bool CopyUp::is_indexed(NodeId node) const {
    const auto name = tree_.index_name(node);
    return name && exists_at(tree_.index(*name));
}

Result<void> CopyUp::mark_links(NodeId node, char relative_to) const {
    if (!is_indexed(node)) return {};
    const auto shown = tree_.records().attributes(node);
    if (!shown) return std::unexpected(shown.error());
    const auto at = tree_.spot(node);
    if (!at) return std::unexpected(at.error());
    const auto status = status_of(*at);
    if (!status) return std::unexpected(status.error());
    const auto below = tree_.view().lower_nlink(node);
    if (!below) return std::unexpected(below.error());
    const auto base = static_cast<int>(relative_to == 'U' ? status->stx_nlink : *below);
    const auto inode = UpperInode::open(*at);
    if (!inode) return std::unexpected(inode.error());
    char text[24];
    std::snprintf(text, sizeof text, "%c%+d", relative_to, static_cast<int>(shown->nlink) - base);
    return inode->set_xattr(tree_.mark(kNlinkSuffix), text);
}

void CopyUp::mark_impure(NodeId directory) {
    if (!impure_.insert(directory).second) return;
    const auto inode = tree_.inode(directory);
    if (inode) (void)inode->set_xattr(tree_.mark(kImpureSuffix), "y");
}

}  // namespace lamina::unionfs
