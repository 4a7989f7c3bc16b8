#pragma once

#include "fuse/arena.h"
#include "fuse/change_set.h"
#include "fuse/union_fs.h"
#include "support/fake_keeper.h"
#include "support/fake_view.h"

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::test {

/// Shorthands by path for a union. Look-ups that a path takes are forgotten again.
class UnionPaths {
public:
    using NodeId = unionfs::NodeId;

    /// 0: absent.
    NodeId find(std::string_view path) {
        NodeId at = unionfs::kRootNode;
        for (const std::string_view part : parts_of(path)) {
            const auto entry = fs->lookup(at, part);
            if (!entry || !*entry) return 0;
            at = (*entry)->attributes.node;
            fs->forget(at, 1);
        }
        return at;
    }
    unionfs::UnionFs::Place place(std::string_view path) {
        const std::size_t slash = path.rfind('/');
        return {.parent = find(path.substr(0, slash)), .name = path.substr(slash + 1)};
    }
    unionfs::Result<NodeId> make(std::string_view path, std::uint32_t mode, std::string_view target = {}) {
        const auto at = place(path);
        const auto made = fs->make(at.parent, at.name, {.mode = mode, .device = 0, .link_target = target}, caller);
        if (!made) return std::unexpected(made.error());
        fs->forget(made->attributes.node, 1);
        return made->attributes.node;
    }
    unionfs::Result<NodeId> create(std::string_view path, std::string_view content = {}) {
        auto node = make(path, S_IFREG | 0644);
        if (node && !content.empty()) (void)write(path, 0, content);
        return node;
    }
    unionfs::Result<NodeId> mkdir(std::string_view path) { return make(path, S_IFDIR | 0755); }
    int unlink(std::string_view path) { return code(fs->unlink(place(path).parent, place(path).name)); }
    int rmdir(std::string_view path) { return code(fs->remove_directory(place(path).parent, place(path).name)); }
    int rename(std::string_view from, std::string_view to, unionfs::UnionFs::RenameFlags flags = {}) {
        return code(fs->rename(place(from), place(to), flags));
    }
    int link(std::string_view old_path, std::string_view path) {
        const auto made = fs->link(find(old_path), place(path).parent, place(path).name);
        if (made) fs->forget(made->attributes.node, 1);
        return code(made);
    }
    unionfs::Result<std::size_t> write(std::string_view path, std::uint64_t offset, std::string_view bytes) {
        return fs->write(find(path), offset, std::as_bytes(std::span(bytes)), unionfs::UnionFs::WriteBy::privileged);
    }
    std::string read_node(NodeId node, std::uint64_t offset = 0, std::size_t size = 1 << 20) {
        std::string out(size, '?');
        const auto count = fs->read(node, offset, std::as_writable_bytes(std::span(out)));
        if (!count) return "error " + std::to_string(code(count));
        out.resize(*count);
        return out;
    }
    std::string read(std::string_view path) { return read_node(find(path)); }
    unionfs::Attributes stat(std::string_view path) {
        return fs->attributes(find(path)).value_or(unionfs::Attributes{});
    }
    int truncate(std::string_view path, std::uint64_t size) {
        return code(fs->set_attributes(find(path), {.size_bytes = size}));
    }
    int chmod(std::string_view path, std::uint32_t mode) {
        return code(fs->set_attributes(find(path), {.mode = mode}));
    }
    /// Names without "." and "..", sorted.
    std::set<std::string> names(std::string_view path) {
        std::set<std::string> all;
        (void)fs->list(find(path), 2, [&](const unionfs::ListedEntry& entry) {
            all.emplace(entry.name);
            return true;
        });
        return all;
    }

    /// 0, or the error number.
    template <class T>
    static int code(const unionfs::Result<T>& result) {
        return result ? 0 : static_cast<int>(result.error());
    }

    unionfs::Caller caller{.uid = 0, .gid = 0, .umask = 022};
    std::unique_ptr<unionfs::Arena> arena;
    std::unique_ptr<unionfs::ChangeSet> changes;
    std::unique_ptr<unionfs::UnionFs> fs;

private:
    static std::vector<std::string_view> parts_of(std::string_view path) {
        std::vector<std::string_view> parts;
        while (!path.empty()) {
            const std::size_t slash = path.find('/');
            if (slash != 0) parts.push_back(path.substr(0, slash));
            path = slash == path.npos ? std::string_view() : path.substr(slash + 1);
        }
        return parts;
    }
};

/// A union over a FakeView.
class UnionFixture : public UnionPaths {
public:
    UnionFixture() : UnionFixture([](FakeView&) {}) {}
    explicit UnionFixture(const std::function<void(FakeView&)>& build) {
        build(view);
        arena = *unionfs::Arena::create();
        changes = std::make_unique<unionfs::ChangeSet>(*arena, view);
        fs = std::make_unique<unionfs::UnionFs>(view, *changes, &keeper, [this] {
            now.nanoseconds = (now.nanoseconds + 1) % 1'000'000'000;
            return now;
        });
    }

    FakeView view;
    FakeKeeper keeper;
    unionfs::Timestamp now{.seconds = 5000, .nanoseconds = 0};
};

}  // namespace lamina::test
