#include "fuse/model_fs.h"

#include <sys/xattr.h>

#include <algorithm>

namespace lamina::test {

ModelFs::Handle ModelFs::child(const Node& parent, const std::string& name) {
    const auto found = parent.children.find(name);
    return found == parent.children.end() ? nullptr : found->second;
}

bool ModelFs::lies_in(const Node* node, const Node* ancestor) {
    for (; node != ancestor; node = node->parent)
        if (!node || node->parent == node) return false;
    return true;
}

void ModelFs::touch(Node& node) {
    node.mtime = now;
    node.ctime = now;
}

void ModelFs::take_link(Node& parent, Node& node) {
    node.ctime = now;
    if (!node.is_directory()) {
        --node.nlink;
        return;
    }
    node.nlink = 0;
    node.parent = nullptr;
    --parent.nlink;
}

int ModelFs::make(Node& parent, const std::string& name, std::uint32_t mode, const std::string& target, Handle& made) {
    if (parent.nlink == 0) return ENOENT;
    if (child(parent, name)) return EEXIST;
    made = std::make_shared<Node>();
    made->mode = mode;
    made->nlink = S_ISDIR(mode) ? 2 : 1;
    made->content = target;
    if (parent.mode & S_ISGID) {
        made->gid = parent.gid;
        if (S_ISDIR(mode)) made->mode |= S_ISGID;
    }
    made->atime = made->mtime = made->ctime = now;
    if (S_ISDIR(mode)) {
        made->parent = &parent;
        ++parent.nlink;
    }
    parent.children[name] = made;
    touch(parent);
    return 0;
}

int ModelFs::link(const Handle& node, Node& parent, const std::string& name) {
    if (parent.nlink == 0) return ENOENT;
    if (child(parent, name)) return EEXIST;
    if (node->is_directory()) return EPERM;
    parent.children[name] = node;
    ++node->nlink;
    node->ctime = now;
    touch(parent);
    return 0;
}

int ModelFs::unlink(Node& parent, const std::string& name) {
    const Handle node = child(parent, name);
    if (!node) return ENOENT;
    if (node->is_directory()) return EISDIR;
    take_link(parent, *node);
    parent.children.erase(name);
    touch(parent);
    return 0;
}

int ModelFs::rmdir(Node& parent, const std::string& name) {
    const Handle node = child(parent, name);
    if (!node) return ENOENT;
    if (!node->is_directory()) return ENOTDIR;
    if (!node->children.empty()) return ENOTEMPTY;
    take_link(parent, *node);
    parent.children.erase(name);
    touch(parent);
    return 0;
}

int ModelFs::rename(const Place& from, const Place& to, bool no_replace, bool exchange) {
    if (no_replace && exchange) return EINVAL;
    const Handle old = child(*from.parent, from.name);
    if (!old) return ENOENT;
    if (to.parent->nlink == 0) return ENOENT;
    const Handle target = child(*to.parent, to.name);
    if (no_replace && target) return EEXIST;
    if (exchange && !target) return ENOENT;
    if (old->is_directory() && lies_in(to.parent, old.get())) return EINVAL;
    if (target && target->is_directory() && lies_in(from.parent, target.get())) return exchange ? EINVAL : ENOTEMPTY;
    if (old == target) return 0;
    if (target && !exchange) {
        if (old->is_directory() && !target->is_directory()) return ENOTDIR;
        if (!old->is_directory() && target->is_directory()) return EISDIR;
        if (!target->children.empty()) return ENOTEMPTY;
        take_link(*to.parent, *target);
    }
    from.parent->children.erase(from.name);
    const auto move = [&](const Handle& node, Node& source, const Place& place) {
        place.parent->children[place.name] = node;
        node->ctime = now;
        if (!node->is_directory()) return;
        node->parent = place.parent;
        --source.nlink;
        ++place.parent->nlink;
    };
    move(old, *from.parent, to);
    if (exchange) move(target, *to.parent, from);
    touch(*from.parent);
    touch(*to.parent);
    return 0;
}

int ModelFs::truncate(Node& node, std::uint64_t size) {
    if (!node.is_file()) return node.is_directory() ? EISDIR : EINVAL;
    node.content.resize(size, '\0');
    node.xattrs.erase("security.capability");
    touch(node);
    return 0;
}

int ModelFs::write(Node& node, std::uint64_t offset, const std::string& bytes) {
    if (!node.is_file()) return node.is_directory() ? EISDIR : EINVAL;
    if (bytes.empty()) return 0;
    if (node.content.size() < offset + bytes.size()) node.content.resize(offset + bytes.size(), '\0');
    node.content.replace(offset, bytes.size(), bytes);
    node.xattrs.erase("security.capability");
    touch(node);
    return 0;
}

int ModelFs::zero(Node& node, std::uint64_t offset, std::uint64_t size, bool keeps_size) {
    if (!node.is_file()) return node.is_directory() ? EISDIR : ENODEV;
    const std::uint64_t old_size = node.content.size();
    if (node.content.size() < offset + size) node.content.resize(offset + size, '\0');
    std::fill_n(node.content.begin() + static_cast<std::ptrdiff_t>(offset), size, '\0');
    if (keeps_size) node.content.resize(old_size);
    node.xattrs.erase("security.capability");
    touch(node);
    return 0;
}

int ModelFs::set_xattr(Node& node, const std::string& name, const std::string& value, int flags) {
    const bool is_there = node.xattrs.contains(name);
    if ((flags & XATTR_CREATE) && is_there) return EEXIST;
    if ((flags & XATTR_REPLACE) && !is_there) return ENODATA;
    if (is_there && node.xattrs[name] == value) return 0;
    node.xattrs[name] = value;
    node.ctime = now;
    return 0;
}

int ModelFs::remove_xattr(Node& node, const std::string& name) {
    if (node.xattrs.erase(name) == 0) return ENODATA;
    node.ctime = now;
    return 0;
}

void ModelFs::chmod(Node& node, std::uint32_t mode) {
    node.mode = (node.mode & S_IFMT) | mode;
    node.ctime = now;
}

void ModelFs::chown(Node& node, std::uint32_t uid, std::uint32_t gid) {
    node.uid = uid;
    node.gid = gid;
    node.ctime = now;
    if (node.is_directory()) return;
    node.xattrs.erase("security.capability");
    node.mode &= ~std::uint32_t{S_ISUID};
    if (node.mode & S_IXGRP) node.mode &= ~std::uint32_t{S_ISGID};
}

}  // namespace lamina::test
