// Image trees among the folders of a stack.
#include "fuse/stack_view.h"
#include "support/catch.h"
#include "support/mini_store.h"
#include "support/root.h"
#include "support/stack_folders.h"
#include "support/tar_builder.h"
#include "support/view_manifest.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <string>
#include <vector>

using namespace lamina;
using namespace lamina::unionfs;
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

std::string content(const View& view, const std::string& path) {
    std::string text(4096, '\0');
    const auto got = view.read(find(view, path), 0, std::as_writable_bytes(std::span(text)));
    if (!got) return "error " + std::to_string(std::to_underlying(got.error()));
    text.resize(*got);
    return text;
}

std::string listing(const View& view, const std::string& path) {
    const NodeId node = find(view, path);
    std::string names;
    for (std::uint32_t at = 0; at < view.entry_count(node).value(); ++at)
        names.append(view.entry(node, at).value().name).push_back(' ');
    return names;
}

/// An image of one layer in a store of its own.
StackSource image(const test::TempDir& folder, const std::string& tar) {
    test::MiniStore store(folder / "store");
    store.add_layer(tar);
    const auto base = store::read_mount_base(store.make_mount("m"));
    return {.name = "image", .folder = {}, .image = store::ReadView::open(store.root(), base.tree, 1 << 20)};
}

std::string small_tar() {
    test::TarBuilder tar;
    tar.folder("etc").file("etc/hosts", "image hosts").file("etc/motd", "image motd").hardlink("etc/motd2", "etc/motd");
    tar.folder("deep")
        .folder("deep/er")
        .file("deep/er/x", "image x")
        .symlink("link", "etc/motd")
        .file("plain", "image");
    tar.file("etc/marked", "mark", {.xattrs = {{"user.overlay.opaque", "y"}, {"user.mine", "1"}}});
    return tar.tar();
}

}  // namespace

TEST_CASE("an image lies over or under folders like a folder, its links and numbers with it", "[fuse][stack][image]") {
    if (!test::is_root()) return;
    StackFolders stack(2);
    stack.script(R"(
        mkdir -p lower0/etc lower0/deep lower1/etc lower1/deep/er; echo top >lower0/etc/hosts; mknod lower0/plain c 0 0
        setfattr -n trusted.overlay.opaque -v y lower0/deep; echo own >lower0/deep/own; echo low >lower1/etc/low
        echo low >lower1/etc/motd; echo low >lower1/deep/er/low; mkdir lower1/plain; touch lower1/etc/.wh.hosts
    )");
    const test::TempDir folder;
    std::vector<StackSource> sources;
    sources.push_back(stack.source("lower0"));
    sources.push_back(image(folder, small_tar()));
    sources.push_back(stack.source("lower1"));
    const StackView view(std::move(sources), {});
    CHECK(listing(view, "") == "deep etc link ");
    CHECK(listing(view, "deep") == "own ");
    CHECK(listing(view, "etc") == "hosts low marked motd motd2 ");
    CHECK(content(view, "etc/hosts") == "top\n");
    CHECK(content(view, "etc/motd") == "image motd");
    CHECK(content(view, "etc/low") == "low\n");
    CHECK(find(view, "etc/motd") == find(view, "etc/motd2"));
    CHECK(view.attributes(find(view, "etc/motd")).value().nlink == 2);
    CHECK(view.link_target(find(view, "link")).value() == "etc/motd");
    CHECK(view.seek_hole(find(view, "etc/motd"), 0).value() == 10);
    CHECK(view.attributes(find(view, "etc/low")).value().shown_number() >> 56 !=
          view.attributes(find(view, "etc/motd")).value().shown_number() >> 56);
    CHECK(view.open_lower(find(view, "etc/motd")).error() == Errno{EOPNOTSUPP});
    CHECK(!view.origin(find(view, "etc/motd")).value());
}

TEST_CASE("an upper over an image redirects into it, and has its bytes there", "[fuse][stack][image]") {
    if (!test::is_root()) return;
    StackFolders stack(1);
    stack.script(R"(
        mkdir upper/moved upper/etc; echo new >upper/moved/new
        setfattr -n trusted.overlay.redirect -v /deep upper/moved
        mknod upper/deep c 0 0; truncate -s 10 upper/etc/copy; setfattr -n trusted.overlay.metacopy upper/etc/copy
        setfattr -n trusted.overlay.redirect -v /etc/motd upper/etc/copy; mknod upper/etc/motd c 0 0
    )");
    const test::TempDir folder;
    std::vector<StackSource> sources;
    sources.push_back(stack.source("upper"));
    sources.push_back(image(folder, small_tar()));
    StackOptions options;
    options.has_upper = true;
    options.work_folder = stack.source("work").folder;
    const StackView view(std::move(sources), std::move(options));
    CHECK(listing(view, "") == "etc link moved plain ");
    CHECK(listing(view, "moved") == "er new ");
    CHECK(content(view, "moved/er/x") == "image x");
    CHECK(content(view, "etc/copy") == "image motd");
    CHECK(content(view, "etc/motd2") == "image motd");
    CHECK(view.is_metacopy(find(view, "etc/copy")));
    CHECK(view.redirect_path(find(view, "moved/er")).value() == "/deep/er");
    CHECK(view.has_lower(find(view, "moved")).value());
    CHECK(view.shows_below(kRootNode, "deep").value());
    CHECK(view.shows_below(find(view, "etc"), "motd").value());
    CHECK_FALSE(view.shows_below(kRootNode, "moved").value());
    CHECK_FALSE(view.shows_below(find(view, "moved"), "new").value());
    CHECK(view.upper_place(find(view, "moved")).value()->name == "moved");
    CHECK_FALSE(view.upper_place(find(view, "moved/er")).value());
}

TEST_CASE("marks in an image are data and steer nothing", "[fuse][stack][image][stacks.images]") {
    test::TarBuilder tar;
    tar.folder("d", {.mode = 0755, .xattrs = {{"trusted.overlay.opaque", "y"}, {"trusted.overlay.redirect", "/e"}}});
    tar.folder("e").file("e/file", "e").file("f", "", {.xattrs = {{"trusted.overlay.metacopy", ""}}});
    StackFolders stack(1);
    stack.script("mkdir lower0/d; echo below >lower0/d/below; echo wrong >lower0/f");
    const test::TempDir folder;
    std::vector<StackSource> sources;
    sources.push_back(image(folder, tar.tar()));
    sources.push_back(stack.source("lower0"));
    const StackView view(std::move(sources), {});
    CHECK(listing(view, "d") == "below ");
    CHECK(content(view, "f").empty());
}

TEST_CASE("the keeper is told where things lie, wherever it moves them", "[fuse][stack]") {
    StackFolders stack(1);
    stack.script("mkdir -p upper/a/b/c lower0/low work/work; echo deep >upper/a/b/c/file; echo l >lower0/low/l");
    stack.use_upper();
    const auto view = stack.view();
    const NodeId a = find(*view, "a");
    const NodeId b = find(*view, "a/b");
    stack.script("mkdir upper/made; mv upper/a upper/made/renamed");
    const NodeId made = kFirstNewNode + 5;
    view->moved(made, kRootNode, "made");
    view->moved(a, made, "renamed");
    CHECK(content(*view, "a/b/c/file") == "deep\n");  // Seen now for the first time, at the new place.
    const NodeId file = find(*view, "a/b/c/file");
    stack.script("mv upper/made/renamed/b/c/file 'work/work/#7'; rmdir upper/made/renamed/b/c");
    view->moved(file, 0, "#7");
    CHECK(view->attributes(file).value().size_bytes == 5);
    CHECK(view->upper_folder(b));
    CHECK(view->upper_folder(find(*view, "low")).error() == Errno{ENOENT});
    view->gone(a);
    CHECK(!view->upper_folder(a));
    CHECK(view->upper_place(a).value()->name == "a");
    CHECK(view->first_place(find(*view, "low")).value().name == "low");
}
