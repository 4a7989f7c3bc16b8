// Random programs on a union over a random view, and the same on a model; after each, the whole trees are compared,
// the state is copied through a checkpoint and through the log, and the program goes on with what was replayed.
#include "fuse/change_walk.h"
#include "fuse/model_fs.h"
#include "support/catch.h"
#include "support/change_dump.h"
#include "support/soundness.h"
#include "support/union_fixture.h"

#include <fcntl.h>
#include <sys/xattr.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <random>

using namespace lamina;
using namespace lamina::unionfs;
using Node = test::ModelFs::Node;
using Handle = test::ModelFs::Handle;

namespace {

constexpr std::uint64_t kMaxContent = 200;

class Program {
public:
    explicit Program(unsigned seed) : random_(seed) {
        build_view();
        arena_ = *Arena::create();
        changes_ = std::make_unique<ChangeSet>(*arena_, view_);
        start();
    }

    void run(int steps) {
        for (int step = 0; step < steps; ++step) {
            model_.now = {.seconds = ++seconds_, .nanoseconds = pick(1000)};
            one_operation();
            if (pick(50) == 0) REQUIRE(fs_->sync());
        }
    }
    void check() {
        std::map<const Node*, NodeId> seen;
        check_tree(*model_.root, kRootNode, seen);
        for (const auto& [handle, count] : held_) check_node(*handle, handle->number);
    }
    /// The kernel forgets all; then the log alone, and the state alone, give the same set; it goes on with the first.
    void remount() {
        for (const auto& [handle, count] : held_) fs_->forget(handle->number, count);
        held_.clear();
        check_space();
        REQUIRE(test::Soundness(*changes_).problems() == std::vector<std::string>{});
        fs_.reset();
        auto replayed_arena = *Arena::create();
        auto replayed = std::make_unique<ChangeSet>(*replayed_arena, view_);
        for (const auto& bytes : keeper_.log) {
            const auto change = change::decode(bytes);
            REQUIRE(change);
            REQUIRE(replayed->apply(*change));
        }
        replayed->drop_unnamed();
        const auto state = test::dump(*changes_);
        REQUIRE(test::dump(*replayed) == state);
        const auto copied_arena = *Arena::create();
        ChangeSet copied(*copied_arena, view_);
        REQUIRE(test::copy_state(*changes_, copied) == 0);
        REQUIRE(test::dump(copied) == state);
        REQUIRE(quota_usage(replayed->records()) == quota_usage(copied.records()));
        changes_ = std::move(replayed);
        arena_ = std::move(replayed_arena);
        start();
    }

private:
    std::uint32_t pick(std::uint32_t count) { return static_cast<std::uint32_t>(random_() % count); }
    std::string bytes(std::uint32_t max) {
        std::string text(1 + pick(max), '\0');
        for (char& byte : text) byte = static_cast<char>('a' + pick(26));
        return text;
    }
    void start() {
        fs_ = std::make_unique<UnionFs>(view_, *changes_, &keeper_, [this] { return model_.now; });
    }

    void build_view() {
        std::vector<std::pair<NodeId, Node*>> folders = {{kRootNode, model_.root.get()}};
        copy_attributes(*model_.root, kRootNode);
        std::vector<Handle> files;
        for (std::uint32_t count = 3 + pick(20); count > 0; --count) {
            const auto [parent, model_parent] = folders[pick(static_cast<std::uint32_t>(folders.size()))];
            const std::string name = random_name();
            if (model_parent->children.contains(name)) continue;
            Handle made;
            const std::uint32_t kind = pick(10);
            if (kind == 0 && !files.empty()) {
                const Handle& linked = files[pick(static_cast<std::uint32_t>(files.size()))];
                view_.link(linked->number, parent, name);
                REQUIRE(model_.link(linked, *model_parent, name) == 0);
                copy_attributes(*linked, linked->number);
                continue;
            }
            const std::string content = bytes(kMaxContent);
            const std::uint32_t type = kind < 4 ? S_IFDIR : kind < 9 ? S_IFREG : S_IFLNK;
            REQUIRE(model_.make(*model_parent, name, type | 0755, type == S_IFDIR ? "" : content, made) == 0);
            if (type == S_IFDIR) {
                made->number = view_.directory(parent, name);
                folders.emplace_back(made->number, made.get());
            } else if (type == S_IFREG) {
                made->number = view_.file(parent, name, content, pick(3) == 0 ? 06755 : 0644);
                files.push_back(made);
                if (pick(3) == 0) view_.node(made->number).xattrs = {{"security.capability", "caps"}, {"user.a", "1"}};
            } else {
                made->number = view_.symlink(parent, name, content);
            }
            copy_attributes(*made, made->number);
            copy_attributes(*model_parent, parent);
        }
        for (const auto& [number, node] : folders) copy_attributes(*node, number);
    }
    void copy_attributes(Node& node, NodeId number) {
        const Attributes& from = view_.node(number).attributes;
        node.mode = from.mode;
        node.atime = from.atime;
        node.mtime = from.mtime;
        node.ctime = from.ctime;
        node.xattrs = view_.node(number).xattrs;
    }
    std::string random_name() { return pick(30) == 0 ? std::string(255, 'n') : std::string(1, "abcdef"[pick(6)]); }

    /// A folder of the model, by a random walk down; sometimes one that was removed and is still held.
    Handle some_folder() {
        if (!held_.empty() && pick(20) == 0)
            if (const Handle& held = some_held(); held->is_directory()) return held;
        Handle at = model_.root;
        while (pick(3) != 0) {
            std::vector<Handle> below;
            for (const auto& [name, node] : at->children)
                if (node->is_directory()) below.push_back(node);
            if (below.empty()) break;
            at = below[pick(static_cast<std::uint32_t>(below.size()))];
        }
        return at;
    }
    const Handle& some_held() {
        auto at = held_.begin();
        std::advance(at, pick(static_cast<std::uint32_t>(held_.size())));
        return at->first;
    }
    Handle some_node() {
        if (!held_.empty() && pick(3) == 0) return some_held();
        const Handle folder = some_folder();
        if (folder->children.empty()) return folder;
        auto at = folder->children.begin();
        std::advance(at, pick(static_cast<std::uint32_t>(folder->children.size())));
        return at->second;
    }
    template <class T>
    static int code(const Result<T>& result) {
        return result ? 0 : static_cast<int>(result.error());
    }

    void one_operation() {
        switch (pick(16)) {
            case 0:
            case 1:
                return make();
            case 2:
                return link();
            case 3:
                return unlink();
            case 4:
                return rmdir();
            case 5:
            case 6:
                return rename();
            case 7:
            case 8:
            case 9:
                return write();
            case 10:
                return truncate();
            case 11:
                return zero();
            case 12:
                return xattr();
            case 13:
                return attributes();
            default:
                return hold_or_forget();
        }
    }
    void make() {
        const Handle parent = some_folder();
        const std::string name = random_name();
        const std::uint32_t kind = pick(6);
        const std::uint32_t type = kind < 2 ? S_IFDIR : kind < 5 ? S_IFREG : S_IFLNK;
        const std::string target = type == S_IFLNK ? bytes(30) : "";
        const std::uint32_t mode = type | (type == S_IFLNK ? 0777 : 0644);
        Handle made;
        const int expected = model_.make(*parent, name, mode, target, made);
        const auto entry = fs_->make(parent->number, name, {.mode = mode, .link_target = target}, {});
        REQUIRE(code(entry) == expected);
        if (!entry) return;
        made->number = entry->attributes.node;
        fs_->forget(made->number, 1);
    }
    void link() {
        const Handle node = some_node();
        const Handle parent = some_folder();
        const std::string name = random_name();
        if (node->nlink == 0) return;
        const auto entry = fs_->link(node->number, parent->number, name);
        REQUIRE(code(entry) == model_.link(node, *parent, name));
        if (entry) fs_->forget(node->number, 1);
    }
    void unlink() {
        const Handle parent = some_folder();
        const std::string name = random_name();
        REQUIRE(code(fs_->unlink(parent->number, name)) == model_.unlink(*parent, name));
    }
    void rmdir() {
        const Handle parent = some_folder();
        const std::string name = random_name();
        REQUIRE(code(fs_->remove_directory(parent->number, name)) == model_.rmdir(*parent, name));
    }
    void rename() {
        const Handle from = some_folder();
        const Handle to = some_folder();
        const std::string old_name = random_name();
        const std::string new_name = random_name();
        const UnionFs::RenameFlags flags{.no_replace = pick(6) == 0, .exchange = pick(4) == 0};
        const int expected =
            model_.rename({from.get(), old_name}, {to.get(), new_name}, flags.no_replace, flags.exchange);
        REQUIRE(code(fs_->rename({from->number, old_name}, {to->number, new_name}, flags)) == expected);
    }
    void write() {
        const Handle node = some_node();
        const std::uint64_t offset =
            pick(3) == 0 && node->is_file() ? node->content.size() : pick(static_cast<std::uint32_t>(kMaxContent));
        const std::string data = bytes(pick(4) == 0 ? 100 : 10);
        const auto written =
            fs_->write(node->number, offset, std::as_bytes(std::span(data)), UnionFs::WriteBy::privileged);
        REQUIRE(code(written) == model_.write(*node, offset, data));
        if (written) REQUIRE(*written == data.size());
    }
    void truncate() {
        const Handle node = some_node();
        const std::uint64_t size = pick(4) == 0 ? 0 : pick(300);
        REQUIRE(code(fs_->set_attributes(node->number, {.size_bytes = size})) == model_.truncate(*node, size));
    }
    void zero() {
        const Handle node = some_node();
        const std::uint64_t offset = pick(300);
        const std::uint64_t size = 1 + pick(100);
        const bool keeps_size = pick(2) == 0;
        const int mode = keeps_size ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE;
        REQUIRE(code(fs_->allocate(node->number, mode, offset, size)) == model_.zero(*node, offset, size, keeps_size));
    }
    void xattr() {
        const Handle node = some_node();
        const std::string name = pick(4) == 0 ? "security.capability" : "user." + std::string(1, "abc"[pick(3)]);
        if (pick(3) == 0) {
            REQUIRE(code(fs_->remove_xattr(node->number, name)) == model_.remove_xattr(*node, name));
            return;
        }
        const int flags = pick(4) == 0 ? XATTR_CREATE : pick(4) == 0 ? XATTR_REPLACE : 0;
        const std::string value = pick(5) == 0 ? "" : bytes(40);
        REQUIRE(code(fs_->set_xattr(node->number, name, value, flags)) == model_.set_xattr(*node, name, value, flags));
    }
    void attributes() {
        const Handle node = some_node();
        if (pick(2) == 0) {
            const std::uint32_t mode = pick(010000);
            REQUIRE(fs_->set_attributes(node->number, {.mode = mode}));
            model_.chmod(*node, mode);
        } else {
            const std::uint32_t uid = pick(3);
            REQUIRE(fs_->set_attributes(node->number, {.uid = uid, .gid = uid + 1}));
            model_.chown(*node, uid, uid + 1);
        }
    }
    void hold_or_forget() {
        if (!held_.empty() && pick(2) == 0) {
            const auto at = held_.find(some_held());
            fs_->forget(at->first->number, at->second);
            held_.erase(at);
            return;
        }
        const Handle parent = some_folder();
        const std::string name = random_name();
        const auto entry = fs_->lookup(parent->number, name);
        REQUIRE(entry);
        const auto found = parent->children.find(name);
        REQUIRE(entry->has_value() == (found != parent->children.end()));
        if (*entry) ++held_[found->second];
    }

    void check_node(const Node& node, NodeId number) {
        const auto shown = fs_->attributes(number);
        REQUIRE(shown);
        CAPTURE(number);
        REQUIRE(shown->node == number);
        REQUIRE(shown->mode == node.mode);
        REQUIRE(shown->nlink == node.nlink);
        REQUIRE(((shown->uid == node.uid) && (shown->gid == node.gid)));
        REQUIRE((shown->mtime == node.mtime && shown->ctime == node.ctime && shown->atime == node.atime));
        std::map<std::string, std::string> xattrs;
        const auto names = fs_->xattr_names(number);
        for (std::size_t at = 0; at < names->size(); at = names->find('\0', at) + 1) {
            const std::string name = names->c_str() + at;
            xattrs[name] = *fs_->xattr(number, name);
        }
        REQUIRE(xattrs == node.xattrs);
        if (S_ISLNK(node.mode)) REQUIRE(*fs_->link_target(number) == node.content);
        if (node.is_file()) check_content(node, number);
    }
    void check_content(const Node& node, NodeId number) {
        REQUIRE(fs_->attributes(number)->size_bytes == node.content.size());
        std::string shown(kMaxContent * 4, '?');
        const std::uint64_t offset = pick(2) == 0 ? 0 : pick(200);
        const auto count = fs_->read(number, offset, std::as_writable_bytes(std::span(shown)));
        REQUIRE(count);
        shown.resize(*count);
        REQUIRE(shown == (offset < node.content.size() ? node.content.substr(offset) : ""));
        // What is called a hole reads as zeros, and seeking ends.
        std::uint64_t at = 0;
        for (int turns = 0; at < node.content.size(); ++turns) {
            REQUIRE(turns < 1000);
            const auto data = fs_->seek(number, at, true);
            const std::uint64_t data_at = data ? *data : node.content.size();
            REQUIRE(data_at >= at);
            for (; at < data_at; ++at) REQUIRE(node.content[at] == '\0');
            if (!data) break;
            const auto hole = fs_->seek(number, at, false);
            REQUIRE(hole);
            REQUIRE(*hole > at);
            at = *hole;
        }
    }
    void check_tree(const Node& directory, NodeId number, std::map<const Node*, NodeId>& seen) {
        check_node(directory, number);
        std::map<std::string, NodeId> shown;
        std::uint64_t cookie = 0;
        for (bool is_last = false; !is_last;) {
            std::uint32_t left = 1 + pick(4);
            is_last = true;
            REQUIRE(fs_->list(number, cookie, [&](const ListedEntry& entry) {
                if (left-- == 0) return is_last = false;
                cookie = entry.next_cookie;
                if (entry.name == "..") REQUIRE(entry.node == (directory.parent ? directory.parent->number : number));
                if (entry.name == "." || entry.name == "..") return true;
                REQUIRE(shown.emplace(entry.name, entry.node).second);
                const auto found = directory.children.find(std::string(entry.name));
                REQUIRE(found != directory.children.end());
                REQUIRE(entry.type == (found->second->mode & S_IFMT));
                return true;
            }));
        }
        REQUIRE(shown.size() == directory.children.size());
        for (const auto& [name, child] : directory.children) {
            REQUIRE(shown[name] == child->number);
            const auto entry = fs_->lookup(number, name);
            REQUIRE((*entry)->attributes.node == child->number);
            fs_->forget(child->number, 1);
            if (!seen.emplace(child.get(), child->number).second) continue;
            if (child->is_directory())
                check_tree(*child, child->number, seen);
            else
                check_node(*child, child->number);
        }
    }
    /// The keeper's space in use is what extents name, exactly.
    void check_space() {
        std::uint64_t named = 0;
        for_each_extent(*changes_,
                        [&](const ChangedExtent& extent) { named += extent.is_hole ? 0 : extent.size_bytes; });
        REQUIRE(keeper_.live_bytes() == named);
    }

    std::mt19937 random_;
    test::FakeView view_;
    test::FakeKeeper keeper_;
    test::ModelFs model_;
    std::unique_ptr<Arena> arena_;
    std::unique_ptr<ChangeSet> changes_;
    std::unique_ptr<UnionFs> fs_;
    std::map<Handle, std::uint64_t> held_;
    std::int64_t seconds_ = 10'000;
};

}  // namespace

TEST_CASE("random programs do to the union what they do to a plain model, before and after a remount",
          "[fuse][union][random][inodes.stay][inodes.links][data.sources][data.truncate]") {
    const char* const wanted = std::getenv("LAMINA_RANDOM_PROGRAMS");
    const unsigned programs = wanted ? static_cast<unsigned>(std::atoi(wanted)) : 500;
    const char* const first = std::getenv("LAMINA_RANDOM_SEED");
    const unsigned base = first ? static_cast<unsigned>(std::atoi(first)) : 1;
    for (unsigned seed = base; seed < base + programs; ++seed) {
        INFO("LAMINA_RANDOM_SEED=" << seed);
        Program program(seed);
        for (int round = 0; round < 3; ++round) {
            program.run(60);
            program.check();
            program.remount();
            program.check();
        }
    }
}
