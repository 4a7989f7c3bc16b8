#include "fuse/stack_view.h"
#include "support/catch.h"
#include "support/root.h"
#include "support/stack_folders.h"
#include "support/view_manifest.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <string>
#include <thread>
#include <vector>

using namespace lamina;
using namespace lamina::unionfs;
using test::manifest_of;
using test::StackFolders;

namespace {

NodeId find(const View& view, const std::string& path) {
    NodeId node = kRootNode;
    for (std::size_t at = 0; at < path.size();) {
        const std::size_t end = std::min(path.find('/', at), path.size());
        const auto found = view.lookup(node, path.substr(at, end - at));
        if (!found || !*found) return 0;
        node = (*found)->node;
        at = end + 1;
    }
    return node;
}

template <class T>
int error_of(const Result<T>& result) {
    return result ? 0 : std::to_underlying(result.error());
}

int lookup_error(const View& view, const std::string& folder, const std::string& name) {
    return error_of(view.lookup(find(view, folder), name));
}

std::string content(const View& view, NodeId node) {
    std::string text(4096, '\0');
    const auto got = view.read(node, 0, std::as_writable_bytes(std::span(text)));
    if (!got) return "error " + std::to_string(std::to_underlying(got.error()));
    text.resize(*got);
    return text;
}

/// A folder beside the layers that nothing may ever show.
void add_secret(StackFolders& stack) {
    stack.script("mkdir secret; echo SECRET >secret/file; setfattr -n user.secret -v SECRET secret/file");
}

void set_xattr(const std::string& path, const std::string& name, const std::string& value) {
    REQUIRE(::lsetxattr(path.c_str(), name.c_str(), value.data(), value.size(), 0) == 0);
}

}  // namespace

TEST_CASE("a directory of a layer that becomes a symlink leads nowhere", "[fuse][stack][attack][stacks.places]") {
    StackFolders stack(2);
    add_secret(stack);
    stack.script("mkdir -p lower0/a/b lower1/a/b; echo inside >lower0/a/b/file; echo low >lower1/a/b/low");
    for (const std::string target : {"/", "../secret", "../../secret", "/proc/self/root"}) {
        for (const bool is_loaded : {false, true}) {
            CAPTURE(target, is_loaded);
            auto view = stack.view();
            const NodeId a = find(*view, "a");
            const NodeId b = is_loaded ? find(*view, "a/b") : 0;
            const NodeId file = is_loaded ? find(*view, "a/b/file") : 0;
            stack.script("mv lower0/a/b lower0/moved; ln -s " + target + " lower0/a/b");
            view = is_loaded ? std::move(view) : stack.view();
            const std::string shown = manifest_of(*view);
            CHECK(shown.find("SECRET") == shown.npos);
            CHECK(shown.find("passwd") == shown.npos);
            if (is_loaded) {
                CHECK(view->lookup(b, "file").value()->node == file);  // Seen before; what is open goes on.
                CHECK(content(*view, file).starts_with("inside"));
            } else {
                CHECK(view->lookup(find(*view, ""), "a").value()->node != 0);
                CHECK(a != 0);
            }
            stack.script("rm lower0/a/b; mv lower0/moved lower0/a/b");
        }
    }
}

TEST_CASE("a file of a layer that becomes another one is never shown as the first",
          "[fuse][stack][attack][stacks.stale]") {
    StackFolders stack(2);
    add_secret(stack);
    for (const std::string change :
         {"rm lower0/file; ln -s ../secret/file lower0/file", "rm lower0/file; cp secret/file lower0/file",
          "rm lower0/file", "rm lower0/file; mkdir lower0/file", "rm lower0/file; mkfifo lower0/file",
          "rm lower0/file; mknod lower0/file c 0 0", "rm lower0/file; ln secret/file lower0/file"}) {
        CAPTURE(change);
        stack.script("rm -rf lower0/*; echo inside >lower0/file; setfattr -n user.mine -v 1 lower0/file");
        const auto view = stack.view();
        const NodeId file = find(*view, "file");
        REQUIRE(file != 0);
        stack.script(change);
        CHECK(error_of(view->attributes(file)) == ESTALE);
        CHECK(content(*view, file) == "error " + std::to_string(ESTALE));
        CHECK(error_of(view->xattrs(file)) == ESTALE);
        CHECK(view->entry_count(kRootNode).value() == 1);
        CHECK(error_of(view->link_target(file)) == EINVAL);
    }
}

TEST_CASE("what was in a directory when it was looked into stays listed, and what is gone is an error",
          "[fuse][stack][attack][stacks.first-look][stacks.stale]") {
    StackFolders stack(1);
    stack.script("mkdir -p lower0/d/e; for i in $(seq 50); do echo $i >lower0/d/$i; done; echo x >lower0/d/e/x");
    const auto view = stack.view();
    const NodeId d = find(*view, "d");
    CHECK(view->entry_count(d).value() == 51);
    stack.script("rm lower0/d/7; echo new >lower0/d/new; rm -r lower0/d/e; echo file >lower0/d/e");
    CHECK(view->entry_count(d).value() == 51);
    CHECK(!view->lookup(d, "new").value());
    CHECK(error_of(view->lookup(d, "7")) == ESTALE);
    CHECK(error_of(view->lookup(d, "e")) == ESTALE);
    CHECK(content(*view, find(*view, "d/8")) == "8\n");
    stack.script("rm -r lower0/d; mkdir lower0/d; echo other >lower0/d/9");
    CHECK(content(*view, find(*view, "d/9")).starts_with("error"));
}

TEST_CASE("redirects never leave the layers, and a malformed one is an error",
          "[fuse][stack][attack][stacks.redirect][stacks.malformed]") {
    if (!test::is_root()) return;
    StackFolders stack(2);
    add_secret(stack);
    stack.script("mkdir -p lower1/low/sub; echo low >lower1/low/file");
    struct Case {
        std::string redirect;
        int error;
        bool shows_low;
    };
    const std::vector<Case> cases{{"/low", 0, true},
                                  {"low", 0, true},
                                  {"/../secret", EIO, false},
                                  {"..", EIO, false},
                                  {"../secret", EIO, false},
                                  {"/low/../low", EIO, false},
                                  {"/", EIO, false},
                                  {"", EIO, false},
                                  {"//low", EIO, false},
                                  {"/low/", EIO, false},
                                  {"/low/.", EIO, false},
                                  {std::string("/low\0x", 6), EIO, false},
                                  {"/" + std::string(256, 'x'), EIO, false},
                                  {"/nothing/there", 0, false},
                                  {"/low/file", 0, false},
                                  {"/low/file/below", 0, false}};
    for (const Case& one : cases) {
        CAPTURE(one.redirect);
        stack.script("rm -rf lower0/*; mkdir lower0/dir; echo own >lower0/dir/own");
        set_xattr(stack / "lower0/dir", "trusted.overlay.redirect", one.redirect);
        const auto view = stack.view();
        stack.reports.clear();
        CHECK(lookup_error(*view, "", "dir") == one.error);
        CHECK((find(*view, "dir/file") != 0) == one.shows_low);
        CHECK((one.error != 0) == !stack.reports.empty());
        const std::string shown = manifest_of(*view);
        CHECK(shown.find("SECRET") == shown.npos);
    }
    stack.script("ln -s ../secret lower1/way");
    set_xattr(stack / "lower0/dir", "trusted.overlay.redirect", "/way");
    CHECK(find(*stack.view(), "dir/file") == 0);
    OverlayXattrs careful;
    careful.follows_redirects = false;
    CHECK(lookup_error(*stack.view(careful), "", "dir") == EPERM);
}

TEST_CASE("a redirect leads through names of 255 bytes", "[fuse][stack][stacks.redirect]") {
    if (!test::is_root()) return;
    StackFolders stack(2);
    const std::string longest(255, 'n');
    stack.script("mkdir -p lower0/dir lower1/" + longest + "/low; echo low >lower1/" + longest + "/low/file");
    set_xattr(stack / "lower0/dir", "trusted.overlay.redirect", "/" + longest + "/low");
    CHECK(find(*stack.view(), "dir/file") != 0);
}

TEST_CASE("redirects in circles end", "[fuse][stack][attack]") {
    if (!test::is_root()) return;
    StackFolders stack(6);
    stack.script(R"(
        for i in 0 1 2 3 4 5; do mkdir -p lower$i/a/b lower$i/b/a; echo $i >lower$i/a/a$i; echo $i >lower$i/b/b$i
            setfattr -n trusted.overlay.redirect -v /b lower$i/a; setfattr -n trusted.overlay.redirect -v /a lower$i/b
            setfattr -n trusted.overlay.redirect -v / lower$i/a/b || true
            setfattr -n trusted.overlay.redirect -v /a/b/a/b lower$i/b/a; done
    )");
    const auto view = stack.view();
    CHECK(!manifest_of(*view).empty());
    CHECK(find(*view, "a/a0") != 0);
    CHECK(find(*view, "a/b1") != 0);
    CHECK(find(*view, "a/a2") != 0);
}

TEST_CASE("a metacopy shows its bytes or an error, never other bytes", "[fuse][stack][attack][stacks.malformed]") {
    if (!test::is_root()) return;
    StackFolders stack(2);
    add_secret(stack);
    const auto check = [&](const std::string& make, int error) {
        CAPTURE(make);
        stack.script(
            "rm -rf lower0/* lower1/*; echo low >lower1/file; mkdir lower1/dir; truncate -s 4 lower0/file\n"
            "setfattr -n trusted.overlay.metacopy lower0/file\n" +
            make);
        const auto view = stack.view();
        CHECK(lookup_error(*view, "", "file") == error);
        if (error == 0) CHECK(content(*view, find(*view, "file")) == "low\n");
        const std::string shown = manifest_of(*view);
        CHECK(shown.find("SECRET") == shown.npos);
    };
    check("", 0);
    check("rm lower1/file", EIO);
    check("rm lower1/file; ln -s ../secret/file lower1/file", EIO);
    check("rm lower1/file; mkdir lower1/file", EIO);
    check("rm lower1/file; mknod lower1/file c 0 0", EIO);
    check("setfattr -n trusted.overlay.metacopy lower1/file", EIO);
    check("setfattr -n trusted.overlay.metacopy -v 0x00040000 lower0/file", 0);
    check("setfattr -n trusted.overlay.metacopy -v 0x01040000 lower0/file", EIO);
    check("setfattr -n trusted.overlay.metacopy -v 0x00050000 lower0/file", EIO);
    check("setfattr -n trusted.overlay.metacopy -v 0x00 lower0/file", EIO);
    check("setfattr -n trusted.overlay.redirect -v /dir/../file lower0/file", EIO);
    check("setfattr -n trusted.overlay.redirect -v /dir lower0/file", EIO);
    check("mv lower1/file lower1/dir/x; setfattr -n trusted.overlay.redirect -v /dir/x lower0/file", 0);
    OverlayXattrs careful;
    careful.follows_metacopy = false;
    CHECK(lookup_error(*stack.view(careful), "", "file") == EPERM);
}

TEST_CASE("marks that a file's owner could set do not redirect a privileged mount",
          "[fuse][stack][attack][stacks.redirect]") {
    StackFolders stack(2);
    stack.script(R"(
        mkdir lower1/private lower0/mine; echo secret >lower1/private/key; truncate -s 7 lower0/copy
        setfattr -n user.overlay.redirect -v /private lower0/mine
        setfattr -n user.overlay.metacopy lower0/copy; setfattr -n user.overlay.redirect -v /private/key lower0/copy
    )");
    const auto view = stack.view();
    CHECK(find(*view, "mine/key") == 0);
    CHECK(content(*view, find(*view, "copy")) == std::string(7, '\0'));
    OverlayXattrs user;
    user.is_user = true;
    const auto own = stack.view(user);
    CHECK(find(*own, "mine/key") != 0);
    CHECK(content(*own, find(*own, "copy")) == "secret\n");
}

TEST_CASE("malformed origins and link counts are ignored as overlayfs ignores them",
          "[fuse][stack][attack][stacks.index]") {
    if (!test::is_root()) return;
    StackFolders stack(1);
    stack.use_upper();
    stack.script("mkdir work/index; echo up >upper/file");
    const auto untouched = stack.view();
    const auto own = untouched->attributes(find(*untouched, "file")).value();
    const std::string header{"\0\xfb\x1d\0\x01", 5};
    for (const std::string& value :
         {std::string(), std::string("x"), std::string(300, '\xfb'),
          header + std::string(16, '\0') + std::string(8, 'x'), header + std::string(16, 'u') + std::string(8, 'x'),
          std::string("\0\xfb\x15\0\x01", 5) + std::string(16, 0)}) {
        set_xattr(stack / "upper/file", "trusted.overlay.origin", value);
        for (const std::string nlink : {"", "U", "U+", "U-9", "L-1", "X+1", "U+99999999999"}) {
            set_xattr(stack / "upper/file", "trusted.overlay.nlink", nlink);
            const auto view = stack.view();
            const auto shown = view->attributes(find(*view, "file"));
            REQUIRE(shown);
            CHECK(shown->shown_number() == own.shown_number());
            CHECK(shown->nlink == 1);
        }
    }
}

TEST_CASE("nodes and names that a stack never gave are refused", "[fuse][stack][attack]") {
    StackFolders stack(2);
    stack.script(
        "mkdir lower0/d; mknod lower0/hidden c 0 0; echo 1 >lower1/hidden; echo f >lower0/file; ln -s x lower0/l");
    const auto view = stack.view();
    manifest_of(*view);
    for (NodeId node :
         std::vector<NodeId>{0, view->node_count() + 1, 1'000'000, (NodeId{1} << 32) + 1, kFirstNewNode, ~NodeId{0}}) {
        CAPTURE(node);
        CHECK(error_of(view->attributes(node)) == ENOENT);
        CHECK(error_of(view->lookup(node, "x")) == ENOENT);
        CHECK(error_of(view->entry_count(node)) == ENOENT);
        CHECK(error_of(view->parent(node)) == ENOENT);
        CHECK(error_of(view->xattrs(node)) == ENOENT);
        CHECK(content(*view, node) == "error " + std::to_string(ENOENT));
    }
    const NodeId file = find(*view, "file");
    CHECK(error_of(view->lookup(file, "x")) == ENOTDIR);
    CHECK(error_of(view->entry_count(file)) == ENOTDIR);
    CHECK(error_of(view->seek_data(find(*view, "d"), 0)) == EISDIR);
    CHECK(error_of(view->entry(kRootNode, 99)) == ENOENT);
    for (const std::string& name : {std::string(), std::string("."), std::string(".."), std::string("a/b"),
                                    std::string(300, 'x'), std::string("d\0", 2), std::string("hidden")})
        CHECK(!view->lookup(kRootNode, name).value());
}

TEST_CASE("files are read by many threads while names are looked up, with hardly any descriptors", "[fuse][stack]") {
    StackFolders stack(1);
    stack.script("for d in $(seq 20); do mkdir lower0/$d; for f in $(seq 20); do echo $d/$f >lower0/$d/$f; done; done");
    std::vector<StackSource> sources;
    sources.push_back(stack.source("lower0"));
    StackOptions options;
    options.descriptor_limit = 3;
    const StackView view(std::move(sources), std::move(options));
    std::array<int, 4> wrong{};
    std::vector<std::thread> threads;
    for (std::size_t number = 0; number < wrong.size(); ++number) {
        threads.emplace_back([&view, &wrong, number] {
            for (unsigned count = 0; count < 400; ++count) {
                const std::string path =
                    std::to_string(1 + (count * 7 + number) % 20) + "/" + std::to_string(1 + count * 3 % 20);
                if (content(view, find(view, path)) != path + "\n") ++wrong[number];
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == std::array<int, 4>{});
}
