#include "support/random_user.h"

#include "fuse/change_walk.h"

#include <cerrno>

namespace lamina::test {

using namespace unionfs;

std::vector<RandomUser::Name> RandomUser::names(KeptMount& mount) const {
    std::vector<Name> all;
    const auto add = [&](NodeId parent, const std::string& name) {
        const auto found = find_name(mount.changes(), parent, name);
        if (!found || !*found) return;
        all.push_back({parent, name, **found, merged_attributes(mount.changes(), **found).value().mode & S_IFMT});
    };
    for (const NodeId parent : {NodeId{1}, NodeId{2}, NodeId{4}}) {
        if (removed_.contains(parent)) continue;
        for (const char* name : {"etc", "passwd", "sub", "deep", "one", "two", "link"}) add(parent, name);
    }
    for_each_changed_node(mount.changes(), [&](const ChangedNode& node) {
        if (!S_ISDIR(node.attributes.mode) || node.attributes.nlink == 0) return;
        for_each_changed_name(mount.changes(), node.attributes.node, [&](const ChangedName& name) {
            if (name.node != 0) all.push_back({node.attributes.node, std::string(name.name), name.node, name.type});
        });
    });
    return all;
}

bool RandomUser::step(KeptMount& mount) {
    const auto all = names(mount);
    Result<void> done;
    const std::uint32_t what = pick(10);
    if (what < 4 || all.empty()) {
        done = change_names(mount, all);
    } else {
        const Name& of = all[pick(static_cast<std::uint32_t>(all.size()))];
        done = S_ISREG(of.type) && what < 9 ? change_data(mount, of) : change_inode(mount, of);
    }
    if (done) return true;
    const Errno error = done.error();
    return error != Errno{EIO} && error != Errno{EROFS} && error != Errno{ENOSPC} && error != Errno{ENOMEM};
}

Result<void> RandomUser::change_names(KeptMount& mount, const std::vector<Name>& all) {
    std::vector<NodeId> folders{kRootNode};
    for (const Name& name : all) {
        if (S_ISDIR(name.type)) folders.push_back(name.node);
    }
    const NodeId folder = folders[pick(static_cast<std::uint32_t>(folders.size()))];
    const std::string name = "n" + std::to_string(++counter_ % 40);
    const std::uint32_t what = pick(9);
    if (what < 3 || all.empty()) {
        const auto made = mount.make(folder, name, what == 0 ? S_IFDIR | 0755 : S_IFREG | 0640);
        return made ? Result<void>() : std::unexpected(made.error());
    }
    const Name& of = all[pick(static_cast<std::uint32_t>(all.size()))];
    if (what == 3) {
        const auto made = mount.make(folder, name, S_IFLNK | 0777, "to/" + name);
        return made ? Result<void>() : std::unexpected(made.error());
    }
    if (what == 4) return mount.change(change::Link{.node = of.node, .parent = folder, .name = name});
    if (what < 7) {
        const NodeId replaced = mount.node_of(folder, name);
        const auto renamed = mount.rename(of.parent, of.name, folder, name);
        if (renamed) removed_.insert(replaced);
        return renamed;
    }
    const auto removed = mount.remove(of.parent, of.name);
    if (removed) removed_.insert(of.node);
    return removed;
}

Result<void> RandomUser::change_inode(KeptMount& mount, const Name& of) {
    const Timestamp time{.seconds = 1'800'000'000 + pick(1000), .nanoseconds = pick(1000)};
    const std::string name = "user." + std::to_string(pick(3));
    switch (pick(4)) {
        case 0: {
            change::SetAttributes set{.node = of.node, .mode = pick(07777), .uid = pick(9)};
            set.mtime = time;
            set.ctime = time;
            return mount.change(set);
        }
        case 1:
            return mount.change(change::RemoveXattr{.node = of.node, .name = name, .time = time});
        default: {
            const std::string value(pick(300), 'v');
            return mount.change(change::SetXattr{.node = of.node, .name = name, .value = value, .time = time});
        }
    }
}

Result<void> RandomUser::change_data(KeptMount& mount, const Name& of) {
    const Attributes now = merged_attributes(mount.changes(), of.node).value();
    const Timestamp time{.seconds = 1'800'000'000 + pick(1000), .nanoseconds = pick(1000)};
    const std::uint64_t inside = now.size_bytes == 0 ? 0 : pick(static_cast<std::uint32_t>(now.size_bytes + 1));
    const std::string data(1 + pick(pick(4) == 0 ? 9000 : 200), static_cast<char>('a' + pick(26)));
    switch (pick(8)) {
        case 0:
            return mount.change(change::Resize{.node = of.node, .size_bytes = inside, .time = time});
        case 1:
            return mount.change(change::Zero{.node = of.node,
                                             .offset_bytes = inside,
                                             .size_bytes = data.size(),
                                             .new_size_bytes = std::max(now.size_bytes, inside + data.size()),
                                             .time = time});
        case 2:
        case 3:
            return mount.write(of.node, inside, data);
        case 4:
            return mount.write(of.node, now.size_bytes + 5000, data);
        default:
            return mount.write(of.node, now.size_bytes, data);
    }
}

}  // namespace lamina::test
