#include "fuse/change_list.h"

#include "fuse/change_walk.h"
#include "store/error.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <unordered_set>
#include <utility>
#include <vector>

/// A walk over the union beside the view. Each step stands in a folder of the union at some path and knows the view's
/// folder of the same path: the same inode (a folder in place), another one (it was replaced), or none (it is new
/// there). In place, only names that changed and what is `wanted_` (inodes of the view that changed) or `on_the_way_`
/// to a changed folder is visited; elsewhere every name is.
///
/// The walk has a stack of its own: paths inside of a mount can be deeper than any call stack.
namespace lamina::unionfs {

namespace {

template <class T>
T check(Result<T> result, const std::string& path) {
    if (result) return *std::move(result);
    store::throw_errno(std::to_underlying(result.error()), "/" + path);
}

struct Child {
    std::string name;
    NodeId node = 0;
    std::uint32_t type = 0;
};

class Walk {
public:
    Walk(const ChangeSet& changes, const View& view, const ListOptions& options,
         const std::function<void(const ListedChange&)>& emit)
        : changes_(changes), view_(view), options_(options), emit_(emit) {}

    void run() {
        find_wanted();
        const bool is_root_changed = changed_folders_.contains(kRootNode);
        if (is_root_changed) emit_({.path = "", .node = kRootNode, .type = S_IFDIR});
        push({.node = kRootNode, .view_node = kRootNode, .path = "", .is_listed = is_root_changed});
        while (!stack_.empty()) {
            Folder& folder = stack_.back();
            if (folder.next == folder.children.size()) {
                stack_.pop_back();
                continue;
            }
            const Child child = std::move(folder.children[folder.next++]);
            visit(stack_.size() - 1, child);
        }
    }

private:
    struct Folder {
        NodeId node = 0;
        NodeId view_node = 0;  ///< The view's folder at this path; 0: none.
        std::string path;
        bool is_listed = false;  ///< Emitted, itself or as a parent.
        std::vector<Child> children;
        std::size_t next = 0;
        bool is_in_place() const { return node == view_node; }
    };

    void find_wanted();
    void want_moved(NodeId folder);
    bool is_changed(const ChangedNode& node) const;
    std::map<std::string, Child> union_children(NodeId folder, const std::string& path) const;
    void push(Folder folder);
    void list_in_place(Folder& folder);
    void list_replaced(Folder& folder);
    void visit(std::size_t parent, const Child& child);
    void add_deleted(std::size_t parent, const std::string& name, std::uint32_t type);
    void add_below(std::size_t parent, ListedChange change);
    std::string path_of(const Folder& folder, const std::string& name) const;
    std::optional<ViewEntry> view_entry(const Folder& folder, const std::string& name) const;

    const ChangeSet& changes_;
    const View& view_;
    const ListOptions& options_;
    const std::function<void(const ListedChange&)>& emit_;
    std::unordered_set<NodeId> wanted_;           // Of the view, no folders.
    std::unordered_set<NodeId> changed_folders_;  // Of the view.
    std::unordered_set<NodeId> on_the_way_;       // Those and the folders above them.
    std::vector<Folder> stack_;
};

/// A record alone can come from another name of the inode that was made or removed.
bool Walk::is_changed(const ChangedNode& node) const {
    const Attributes now = node.attributes;
    const Attributes before = check(view_.attributes(now.node), "");
    if (now.nlink == before.nlink) return true;
    return node.has_own_data || node.has_own_xattrs || now.mode != before.mode || now.uid != before.uid ||
           now.gid != before.gid || now.size_bytes != before.size_bytes || now.mtime != before.mtime;
}

void Walk::find_wanted() {
    std::vector<NodeId> moved;
    for_each_changed_node(changes_, [&](const ChangedNode& node) {
        const NodeId number = node.attributes.node;
        if (node.attributes.nlink == 0) return;
        const bool is_folder = S_ISDIR(node.attributes.mode);
        if (!node.is_new && is_folder) changed_folders_.insert(number);
        if (!node.is_new && !is_folder && is_changed(node)) wanted_.insert(number);
        if (!is_folder) return;
        for_each_changed_name(changes_, number, [&](const ChangedName& name) {
            if (name.node == 0 || name.node >= kFirstNewNode || !options_.lists_links) return;
            if (S_ISDIR(name.type)) {
                moved.push_back(name.node);
            } else if (check(merged_attributes(changes_, name.node), "").nlink > 1) {
                wanted_.insert(name.node);
            }
        });
    });
    for (const NodeId folder : moved) want_moved(folder);
    for (const NodeId folder : changed_folders_) {
        for (NodeId at = folder; on_the_way_.insert(at).second && at != kRootNode && at != 0;) {
            at = check(parent_of(changes_, at), "");
        }
    }
}

/// Files below a moved folder may have other names elsewhere, which a layer must link with them.
void Walk::want_moved(NodeId folder) {
    std::vector<NodeId> left{folder};
    while (!left.empty()) {
        const NodeId at = left.back();
        left.pop_back();
        for (const auto& [name, child] : union_children(at, "")) {
            if (S_ISDIR(child.type)) {
                left.push_back(child.node);
            } else if (child.node < kFirstNewNode && check(merged_attributes(changes_, child.node), name).nlink > 1) {
                wanted_.insert(child.node);
            }
        }
    }
}

std::map<std::string, Child> Walk::union_children(NodeId folder, const std::string& path) const {
    std::map<std::string, Child> children;
    if (folder < kFirstNewNode) {
        const std::uint32_t count = check(view_.entry_count(folder), path);
        for (std::uint32_t position = 0; position < count; ++position) {
            const ViewEntry entry = check(view_.entry(folder, position), path);
            std::string name(entry.name);
            children[name] = {.name = name, .node = entry.node, .type = entry.type};
        }
    }
    for_each_changed_name(changes_, folder, [&](const ChangedName& name) {
        std::string text(name.name);
        if (name.node == 0) {
            children.erase(text);
        } else {
            children[text] = {.name = text, .node = name.node, .type = name.type};
        }
    });
    return children;
}

std::string Walk::path_of(const Folder& folder, const std::string& name) const {
    std::string path = folder.path.empty() ? name : folder.path + "/" + name;
    if (path.size() > options_.max_path_bytes) {
        throw store::Error(store::Errc::malformed, "/" + path.substr(0, 64) + "...: a path of more than " +
                                                       std::to_string(options_.max_path_bytes) + " bytes");
    }
    return path;
}

std::optional<ViewEntry> Walk::view_entry(const Folder& folder, const std::string& name) const {
    if (folder.view_node == 0) return std::nullopt;
    return check(view_.lookup(folder.view_node, name), folder.path);
}

/// Emits `change`, and before it the folders above it that were not emitted yet.
void Walk::add_below(std::size_t parent, ListedChange change) {
    if (options_.has_parents) {
        std::size_t first = parent + 1;
        while (first != 0 && !stack_[first - 1].is_listed) --first;
        for (; first <= parent; ++first) {
            stack_[first].is_listed = true;
            emit_({.kind = ListedChange::Kind::parent,
                   .path = stack_[first].path,
                   .node = stack_[first].node,
                   .type = S_IFDIR});
        }
    }
    emit_(change);
}

void Walk::add_deleted(std::size_t parent, const std::string& name, std::uint32_t type) {
    add_below(parent, {.kind = ListedChange::Kind::deleted, .path = path_of(stack_[parent], name), .type = type});
}

void Walk::push(Folder folder) {
    stack_.push_back(std::move(folder));
    Folder& top = stack_.back();
    if (top.is_in_place()) {
        list_in_place(top);
    } else {
        list_replaced(top);
    }
}

void Walk::list_in_place(Folder& folder) {
    std::map<std::string, Child> children;
    std::map<std::string, std::uint32_t> deleted;
    std::set<std::string> gone;
    for_each_changed_name(changes_, folder.node, [&](const ChangedName& name) {
        std::string text(name.name);
        if (name.node != 0) {
            children[text] = {.name = text, .node = name.node, .type = name.type};
        } else if (const auto entry = view_entry(folder, text)) {
            deleted[text] = entry->type;
        }
        gone.insert(std::move(text));
    });
    if (!wanted_.empty() || on_the_way_.contains(folder.node)) {
        const std::uint32_t count = check(view_.entry_count(folder.node), folder.path);
        for (std::uint32_t position = 0; position < count; ++position) {
            const ViewEntry entry = check(view_.entry(folder.node, position), folder.path);
            const bool is_folder = S_ISDIR(entry.type);
            const bool matters =
                is_folder ? !wanted_.empty() || on_the_way_.contains(entry.node) : wanted_.contains(entry.node);
            std::string name(entry.name);
            if (!matters || gone.contains(name)) continue;
            children[name] = {.name = name, .node = entry.node, .type = entry.type};
        }
    }
    for (auto& [name, child] : children) folder.children.push_back(std::move(child));
    const std::size_t at = stack_.size() - 1;
    for (const auto& [name, type] : deleted) add_deleted(at, name, type);
}

void Walk::list_replaced(Folder& folder) {
    auto children = union_children(folder.node, folder.path);
    std::map<std::string, std::uint32_t> deleted;
    if (folder.view_node != 0) {
        const std::uint32_t count = check(view_.entry_count(folder.view_node), folder.path);
        for (std::uint32_t position = 0; position < count; ++position) {
            const ViewEntry entry = check(view_.entry(folder.view_node, position), folder.path);
            if (!children.contains(std::string(entry.name))) deleted[std::string(entry.name)] = entry.type;
        }
    }
    for (auto& [name, child] : children) folder.children.push_back(std::move(child));
    const std::size_t at = stack_.size() - 1;
    for (const auto& [name, type] : deleted) add_deleted(at, name, type);
}

void Walk::visit(std::size_t parent, const Child& child) {
    const auto below = view_entry(stack_[parent], child.name);
    const bool is_folder = S_ISDIR(child.type);
    const bool is_same = below && below->node == child.node;
    const bool is_in_place = is_same && stack_[parent].is_in_place();
    ListedChange change{.path = path_of(stack_[parent], child.name), .node = child.node, .type = child.type};
    bool is_emitted = true;
    if (!below) {
        change.kind = ListedChange::Kind::added;
    } else if (is_in_place) {
        is_emitted = is_folder ? changed_folders_.contains(child.node) : wanted_.contains(child.node);
    } else {
        change.is_opaque = is_folder && S_ISDIR(below->type);
    }
    const std::string path = change.path;
    if (is_emitted) add_below(parent, std::move(change));
    if (!is_folder) return;
    const bool is_moved = child.node < kFirstNewNode && !is_in_place;
    if (is_moved && !options_.lists_moved) return;
    const NodeId view_node = below && S_ISDIR(below->type) ? below->node : 0;
    push({.node = child.node, .view_node = view_node, .path = path, .is_listed = is_emitted});
}

}  // namespace

void list_changes(const ChangeSet& changes, const View& view, const ListOptions& options,
                  const std::function<void(const ListedChange&)>& emit) {
    Walk(changes, view, options, emit).run();
}

}  // namespace lamina::unionfs
