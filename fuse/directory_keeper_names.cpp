// Names of the upper. What is new is built in the work folder and moved to its name; what is removed is moved into the
// work folder, a whiteout taking its name in the same step where something would show below. A file that still has
// other names, or that the kernel still knows, goes on living there under its node's number.
//
// Where a folder has to take the place of a whiteout (which is no folder), the two are exchanged. Redirect and opaque
// marks are set before the step that makes them count; at the folder's old place they say what is so there as well.
#include "fuse/directory_keeper.h"

#include <sys/sysmacros.h>

#include <cerrno>
#include <utility>

namespace lamina::unionfs {
namespace {

bool is_not_empty(Errno error) {
    return error == Errno{ENOTEMPTY} || error == Errno{EEXIST};
}

bool is_full(Errno error) {
    return error == Errno{ENOSPC} || error == Errno{EDQUOT};
}

/// Names that layers of containers use for marks: a regular file of such a name says that it is none.
bool needs_plain_mark(std::string_view name, std::uint32_t mode) {
    return S_ISREG(mode) && has_aufs_prefix(name);
}

}  // namespace

// New inodes.

Result<void> DirectoryKeeper::make(const change::Make& make) {
    if (S_ISCHR(make.mode) && make.device == 0) return fail(EPERM);  // It would be a whiteout.
    const auto folder = copy_up_.folder(make.parent);
    if (!folder) return std::unexpected(folder.error());
    const Spot built = tree_.work(UpperTree::work_name(make.node));
    const Spot at{*folder, std::string(make.name)};
    const auto made = [&]() -> Result<void> {
        if (const auto done = build(make, built); !done) return done;
        if (make.name.empty()) return {};
        return install(built, at, S_ISDIR(make.mode));
    }();
    if (!made) {
        close_cached(make.node);
        if (S_ISDIR(make.mode))
            tree_.clear_folder(built);
        else
            (void)unlink_at(built);
        return made;
    }
    if (make.name.empty())
        will_lie(make.node, UpperTree::Place{UpperTree::kInWork, built.name});
    else
        will_lie(make.node, UpperTree::Place{make.parent, at.name});
    return {};
}

/// The new inode with all its attributes, under a name in the work folder.
Result<void> DirectoryKeeper::build(const change::Make& make, const Spot& at) {
    std::optional<store::UniqueFd> file;
    const auto made = [&]() -> Result<void> {
        if (S_ISDIR(make.mode)) return make_folder_at(at);
        if (S_ISLNK(make.mode)) return make_symlink_at(at, std::string(make.link_target));
        if (!S_ISREG(make.mode)) return make_node_at(at, (make.mode & S_IFMT) | 0600, make.device);
        auto created = create_at(at);
        if (!created) return std::unexpected(created.error());
        file = std::move(*created);
        return {};
    }();
    if (!made) return made;
    auto opened = file ? Result<UpperInode>(UpperInode(file->get())) : UpperInode::open(at);
    if (!opened) return std::unexpected(opened.error());
    const auto status = status_of(opened->fd());
    if (!status) return std::unexpected(status.error());
    made_number_ = view_.number_of(::gnu_dev_makedev(status->stx_dev_major, status->stx_dev_minor), status->stx_ino);
    const bool is_beside = tree_.keeps_stat_beside(make.mode);
    if (!is_beside && Owner{make.uid, make.gid} != Owner{status->stx_uid, status->stx_gid})
        if (const auto set = opened->set_owner({make.uid, make.gid}); !set) return set;
    for (const auto& [name, value] : {std::pair(std::string_view("system.posix_acl_access"), make.access_acl),
                                      std::pair(std::string_view("system.posix_acl_default"), make.default_acl)})
        if (!value.empty())
            if (const auto set = opened->set_xattr(name, value); !set) return set;
    if (is_beside) {
        if (const auto set = tree_.put_stat_beside(*opened, {make.uid, make.gid}, make.mode); !set) return set;
    } else if (!S_ISLNK(make.mode)) {
        if (const auto set = opened->set_mode(make.mode); !set) return set;
    }
    if (needs_plain_mark(make.name, make.mode))
        if (const auto set = opened->set_xattr(tree_.mark(kPlainSuffix), "y"); !set) return set;
    if (file) remember(make.node, std::move(*file), true);
    return {};
}

/// Gives what was built its name; a whiteout may stand there.
Result<void> DirectoryKeeper::install(const Spot& built, const Spot& at, bool is_directory) {
    auto put = rename_at(built, at, RENAME_NOREPLACE);
    if (!put && put.error() == Errno{EACCES} && is_directory)
        put = with_permission(UpperInode::open(built), [&] { return rename_at(built, at, RENAME_NOREPLACE); });
    if (put || put.error() != Errno{EEXIST}) return put;
    if (!tree_.is_whiteout(at)) return fail(EEXIST);  // Not ours: somebody works in the upper.
    if (!is_directory) return rename_at(built, at);
    const auto inode = UpperInode::open(built);
    if (!inode) return std::unexpected(inode.error());
    if (const auto marked = inode->set_xattr(tree_.mark(kOpaqueSuffix), "y"); !marked) return marked;
    if (const auto exchanged = rename_at(built, at, RENAME_EXCHANGE); !exchanged) return exchanged;
    (void)unlink_at(built);
    return {};
}

Result<void> DirectoryKeeper::link(const change::Link& link) {
    const auto brought = bring_up(link.node, For::data);
    if (!brought) return std::unexpected(brought.error());
    const auto folder = copy_up_.folder(link.parent);
    if (!folder) return std::unexpected(folder.error());
    const auto place = tree_.place(link.node);
    const auto from = tree_.spot(link.node);
    if (!from) return std::unexpected(from.error());
    const auto found = records_.attributes(link.node);
    if (!found) return std::unexpected(found.error());
    const Spot at{*folder, std::string(link.name)};
    if (needs_plain_mark(link.name, found->mode)) {
        const auto inode = UpperInode::open(*from);
        if (!inode) return std::unexpected(inode.error());
        if (const auto set = inode->set_xattr(tree_.mark(kPlainSuffix), "y"); !set) return set;
    }
    copy_up_.mark_impure(link.parent);
    if (place->parent == UpperTree::kInWork) {  // Its only name, or one that stood for it: it moves.
        if (const auto put = install(*from, at, false); !put) return put;
        will_lie(link.node, UpperTree::Place{link.parent, at.name});
        return {};
    }
    if (const auto marked = copy_up_.mark_links(link.node, 'U'); !marked) return marked;
    const auto linked = link_at(*from, at);
    if (linked || linked.error() != Errno{EEXIST}) return linked;
    const Spot second = tree_.new_work();
    if (const auto put = link_at(*from, second); !put) return put;
    const auto put = install(second, at, false);
    if (!put) (void)unlink_at(second);
    return put;
}

// Names that go.

bool DirectoryKeeper::is_at(NodeId node, NodeId parent, std::string_view name) const {
    const auto place = tree_.place(node);
    return place && place->parent == parent && place->name == name;
}

/// Whether an inode is still wanted when one of its names has gone.
bool DirectoryKeeper::must_live_on(NodeId node) const {
    const auto found = records_.attributes(node);
    return records_.is_known(node) || (found && found->nlink > 1);
}

/// Before one of the names of a file with more names below goes: brings the file and this name up, so that the link
/// count of the others stays right (overlay.nlink). True: the name is in the upper now.
Result<bool> DirectoryKeeper::link_alias(NodeId node, const UpperTree::Place& name, bool is_there) {
    const auto below = node < kFirstNewNode ? view_.lower_nlink(node) : Result<std::uint32_t>(0);
    if (!below) return std::unexpected(below.error());
    if (*below < 2 || !copy_up_.can_index(node)) return is_there;
    const auto up = copy_up_.name(node, name.parent, name.name);
    if (!up && is_full(up.error())) return is_there;  // Removing must go on; the next mount counts one link too many.
    if (!up) return std::unexpected(up.error());
    if (const auto marked = copy_up_.mark_links(node, 'U'); !marked) return std::unexpected(marked.error());
    return true;
}

Result<void> DirectoryKeeper::remove(const change::Remove& remove) {
    const auto found = records_.resolve(remove.parent, remove.name);
    if (!found) return std::unexpected(found.error());
    if (found->node == 0) return fail(ENOENT);
    if (const auto owned = tree_.own(found->node); !owned) return owned;
    const auto hides = tree_.shows_below(remove.parent, remove.name);
    if (!hides) return std::unexpected(hides.error());
    bool is_there = false;
    if (const auto at = tree_.spot(remove.parent, remove.name)) is_there = exists_at(*at);
    if (!S_ISDIR(found->type)) {
        const UpperTree::Place name{remove.parent, std::string(remove.name)};
        const auto linked = link_alias(found->node, name, is_there);
        if (!linked) return std::unexpected(linked.error());
        is_there = *linked;
    }
    const auto folder = copy_up_.folder(remove.parent);
    if (!folder) return std::unexpected(folder.error());
    const Spot at{*folder, std::string(remove.name)};
    if (!is_there) return *hides ? make_node_at(at, S_IFCHR, 0) : Result<void>{};
    if (S_ISDIR(found->type)) return remove_folder(at, found->node, *hides);
    return remove_file(remove, at, found->node, *hides);
}

Result<void> DirectoryKeeper::remove_file(const change::Remove& remove, const Spot& at, NodeId node, bool hides) {
    const bool is_kept_alive = is_at(node, remove.parent, remove.name) && must_live_on(node);
    if (!hides && !is_kept_alive) return unlink_at(at);
    const Spot target = is_kept_alive ? tree_.work(UpperTree::work_name(node)) : tree_.new_work();
    if (const auto moved = rename_at(at, target, hides ? RENAME_WHITEOUT : 0); !moved) return moved;
    if (is_kept_alive)
        will_lie(node, UpperTree::Place{UpperTree::kInWork, target.name});
    else
        (void)unlink_at(target);
    return {};
}

/// The union shows nothing in the folder; in the upper there may be whiteouts.
Result<void> DirectoryKeeper::remove_folder(const Spot& at, NodeId node, bool hides) {
    will_lie(node, std::nullopt);
    if (!hides) {
        const auto removed = remove_folder_at(at);
        if (removed || !is_not_empty(removed.error())) return removed;
    }
    const Spot target = tree_.new_work();
    if (const auto moved = rename_at(at, target, hides ? RENAME_WHITEOUT : 0); !moved) return moved;
    tree_.clear_folder(target);
    return {};
}

// Renames.

Result<void> DirectoryKeeper::rename(const change::Rename& rename) {
    const auto old = records_.resolve(rename.old_parent, rename.old_name);
    if (!old) return std::unexpected(old.error());
    const auto target = records_.resolve(rename.new_parent, rename.new_name);
    if (!target) return std::unexpected(target.error());
    if (old->node == 0 || (rename.is_exchange && target->node == 0)) return fail(ENOENT);
    Move move{.moved = *old, .target = *target, .from = {}, .to = {}};
    auto from = copy_up_.name(old->node, rename.old_parent, rename.old_name);
    if (!from) return std::unexpected(from.error());
    move.from = std::move(*from);
    if (const auto owned = tree_.own(old->node); !owned) return owned;
    if (target->node != 0)
        if (const auto owned = tree_.own(target->node); !owned) return owned;
    auto folder = copy_up_.folder(rename.new_parent);
    if (!folder) return std::unexpected(folder.error());
    move.to = {std::move(*folder), std::string(rename.new_name)};
    const UpperTree::Place to{rename.new_parent, move.to.name};
    if (const auto prepared = prepare_move(old->node, to); !prepared) return prepared;
    return rename.is_exchange ? exchange(rename, move) : replace(rename, move);
}

/// Sets the marks that an inode needs at the place where it is going to lie.
Result<void> DirectoryKeeper::prepare_move(NodeId node, const UpperTree::Place& to) {
    const auto found = records_.attributes(node);
    if (!found) return std::unexpected(found.error());
    copy_up_.mark_impure(to.parent);
    const auto inode = tree_.inode(node);
    if (!inode) return std::unexpected(inode.error());
    if (needs_plain_mark(to.name, found->mode)) return inode->set_xattr(tree_.mark(kPlainSuffix), "y");
    if (!S_ISDIR(found->mode)) return {};
    const auto has_lower = node < kFirstNewNode ? view_.has_lower(node) : Result<bool>(false);
    if (!has_lower) return std::unexpected(has_lower.error());
    if (*has_lower) {
        const auto path = view_.redirect_path(node);
        if (!path) return std::unexpected(path.error());
        return inode->set_xattr(tree_.mark(kRedirectSuffix), *path);
    }
    const auto shows = tree_.shows_below(to.parent, to.name);
    if (!shows) return std::unexpected(shows.error());
    if (!*shows) return {};
    return inode->set_xattr(tree_.mark(kOpaqueSuffix), "y");
}

/// Before something takes the place of an inode: a file that is still wanted gets another name, a folder is emptied of
/// whiteouts.
Result<void> DirectoryKeeper::prepare_target(const change::Rename& rename, const Move& move) {
    const NodeId node = move.target.node;
    bool is_there = exists_at(move.to);
    if (S_ISDIR(move.target.type)) {
        will_lie(node, std::nullopt);
        if (!is_there) return {};
        const auto is_empty = tree_.is_empty(move.to);
        if (!is_empty) return std::unexpected(is_empty.error());
        return *is_empty ? Result<void>{} : empty_target(node, move.to);
    }
    const auto linked = link_alias(node, {rename.new_parent, move.to.name}, is_there);
    if (!linked) return std::unexpected(linked.error());
    is_there = *linked;
    if (!is_there || !is_at(node, rename.new_parent, rename.new_name) || !must_live_on(node)) return {};
    const Spot second = tree_.work(UpperTree::work_name(node));
    if (const auto put = link_at(move.to, second); !put) return put;
    will_lie(node, UpperTree::Place{UpperTree::kInWork, second.name});
    return {};
}

/// An empty folder, opaque and with the same attributes, takes the place of one with whiteouts in it.
Result<void> DirectoryKeeper::empty_target(NodeId directory, const Spot& at) {
    const Spot built = tree_.new_work();
    if (const auto made = make_folder_at(built); !made) return made;
    const auto done = [&]() -> Result<void> {
        const auto inode = UpperInode::open(built);
        if (!inode) return std::unexpected(inode.error());
        if (const auto copied = copy_up_.copy_attributes(directory, *inode); !copied) return copied;
        if (const auto marked = inode->set_xattr(tree_.mark(kOpaqueSuffix), "y"); !marked) return marked;
        return rename_at(built, at, RENAME_EXCHANGE);
    }();
    tree_.clear_folder(built);  // The old one, or what was built in vain.
    if (!done) return done;
    view_.gone(directory);  // Its descriptor is of the old one.
    return tree_.put(directory, tree_.place(directory));
}

Result<void> DirectoryKeeper::replace(const change::Rename& rename, const Move& move) {
    const auto hides = tree_.shows_below(rename.old_parent, rename.old_name);
    if (!hides) return std::unexpected(hides.error());
    if (const auto marked = copy_up_.mark_links(move.moved.node, 'U'); !marked) return marked;
    const std::size_t moved_before = moved_.size();
    if (move.target.node != 0)
        if (const auto prepared = prepare_target(rename, move); !prepared) return prepared;
    const bool onto_whiteout = move.target.node == 0 && exists_at(move.to);
    if (onto_whiteout && !tree_.is_whiteout(move.to)) return fail(EEXIST);  // Not ours.
    if (onto_whiteout && S_ISDIR(move.moved.type)) {
        if (const auto done = rename_at(move.from, move.to, RENAME_EXCHANGE); !done) return done;
        if (!*hides) (void)unlink_at(move.from);
    } else if (const auto done = rename_at(move.from, move.to, *hides ? RENAME_WHITEOUT : 0); !done) {
        for (std::size_t at = moved_before; at < moved_.size(); ++at)  // The second name that was made for the target.
            if (moved_[at].second) (void)unlink_at(tree_.work(moved_[at].second->name));
        return done;
    }
    if (is_at(move.moved.node, rename.old_parent, rename.old_name))
        will_lie(move.moved.node, UpperTree::Place{rename.new_parent, move.to.name});
    return {};
}

Result<void> DirectoryKeeper::exchange(const change::Rename& rename, const Move& move) {
    const auto up = copy_up_.name(move.target.node, rename.new_parent, rename.new_name);
    if (!up) return std::unexpected(up.error());
    if (const auto owned = tree_.own(move.target.node); !owned) return owned;
    const UpperTree::Place back{rename.old_parent, move.from.name};
    if (const auto prepared = prepare_move(move.target.node, back); !prepared) return prepared;
    const bool moves_first = is_at(move.moved.node, rename.old_parent, rename.old_name);
    const bool moves_second = is_at(move.target.node, rename.new_parent, rename.new_name);
    if (const auto done = rename_at(move.from, move.to, RENAME_EXCHANGE); !done) return done;
    if (moves_first) will_lie(move.moved.node, UpperTree::Place{rename.new_parent, move.to.name});
    if (moves_second) will_lie(move.target.node, back);
    return {};
}

}  // namespace lamina::unionfs
