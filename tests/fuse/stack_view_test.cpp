#include "fuse/stack_view.h"

#include "fuse/layer_folder.h"
#include "support/catch.h"
#include "support/kernel_overlay.h"
#include "support/loop_disk.h"
#include "support/root.h"
#include "support/stack_folders.h"
#include "support/temp_dir.h"
#include "support/view_manifest.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <string>
#include <vector>

using namespace lamina;
using namespace lamina::unionfs;
using test::first_difference;
using test::KernelOverlay;
using test::manifest_of;
using test::StackFolders;

namespace {

bool kernel_is_missing() {
    if (KernelOverlay::is_possible()) return false;
    WARN("SKIPPED: overlayfs cannot be mounted here");
    return true;
}

/// What the kernel shows of the same folders, and what a stack does.
void check_same(StackFolders& stack, const std::string& kernel_options) {
    std::string kernel;
    {
        const KernelOverlay mounted(stack.layers(), kernel_options, stack / "merged");
        kernel = manifest_of(mounted.path());
    }
    const auto view = stack.view();
    CHECK(first_difference(manifest_of(*view), kernel) == "");
}

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
    const auto count = view.entry_count(node);
    if (!count) return "error " + std::to_string(std::to_underlying(count.error()));
    for (std::uint32_t at = 0; at < *count; ++at) names.append(view.entry(node, at).value().name).push_back(' ');
    return names;
}

}  // namespace

TEST_CASE("a stack of folders shows what overlayfs shows of them",
          "[fuse][stack][stacks.merging][stacks.whiteouts][stacks.opaque]") {
    if (kernel_is_missing()) return;
    StackFolders stack(3);
    stack.script(R"(
        cd lower0; mkdir -p a/b only0; echo top >a/file; mknod a/gone c 0 0; mkdir a/opaque; echo new >a/opaque/new
        setfattr -n trusted.overlay.opaque -v y a/opaque; ln -s /etc/passwd a/link; echo f >was_directory
        mkfifo a/fifo; mknod a/null c 1 3; chmod 4711 a/file; chown 5:6 a/b
        cd ../lower1; mkdir -p a/b a/gone a/opaque only1 was_directory; echo below >a/file; echo 1 >a/gone/x
        echo old >a/opaque/old; echo 1 >a/b/one; setfattr -n user.color -v blue a/b/one; mknod only1_gone c 0 0
        truncate -s 1M a/sparse; echo end >>a/sparse; ln a/b/one a/b/two
        cd ../lower2; mkdir -p a/b/deep/er only1_gone only2; echo 2 >a/b/deep/er/two; echo 2 >a/b/three
        mkdir was_directory; echo hidden >was_directory/below; touch -d 1901-01-01 only2/old
        touch -d 2262-01-01 only2/far
    )");
    check_same(stack, "");
}

namespace {

/// Lowers with hard links and holes, changed by the kernel in the ways that it can keep.
void change_by_kernel(StackFolders& stack) {
    stack.script(R"(
        cd lower0; mkdir -p dir/sub; echo one >dir/sub/file; echo two >dir/two; ln dir/two linked; mkdir moved
        echo m >moved/m; echo chmodded >meta; mkdir gone; echo g >gone/g; truncate -s 300K big; echo tail >>big
        cd ../lower1; mkdir -p dir/sub moved; echo low >dir/sub/low; echo low >moved/low; echo low >low
    )");
    stack.use_upper();
    stack.change_by_kernel("redirect_dir=on,metacopy=on,index=on", R"(
        chmod 600 meta; mv moved renamed; echo more >>dir/two; mv dir/sub dir/sub2; rm -r gone; mkdir gone
        echo new >gone/new; mv renamed dir/inside; echo x >>dir/inside/low; rm low; mkdir low; touch big; mv big bigger
        mv meta dir/meta; ln dir/sub2/file hard; echo grown >>hard; mkdir -p n/e/w; mv dir n/e/w/dir
    )");
}

}  // namespace

TEST_CASE("an upper that the kernel changed shows as the kernel shows it",
          "[fuse][stack][stacks.redirect][stacks.index][stacks.numbers]") {
    if (kernel_is_missing()) return;
    StackFolders stack(2);
    change_by_kernel(stack);
    check_same(stack, "redirect_dir=on,metacopy=on,index=on");
}

TEST_CASE("file handles name the file system that they are of", "[fuse][stack]") {
    if (kernel_is_missing()) return;
    if (!test::LoopDisk::is_possible()) {
        WARN("SKIPPED: no loop devices here");
        return;
    }
    const test::LoopDisk disk(32);
    StackFolders stack(2, disk.path());
    const std::string loop = stack / "lower0";
    REQUIRE(layer::file_system_uuid(store::UniqueFd(::open(loop.c_str(), O_PATH | O_CLOEXEC)).get()));
    change_by_kernel(stack);
    check_same(stack, "redirect_dir=on,metacopy=on,index=on");
}

TEST_CASE("an upper that a user namespace's overlayfs changed shows as the kernel shows it",
          "[fuse][stack][stacks.redirect][stacks.opaque]") {
    if (kernel_is_missing()) return;
    StackFolders stack(2);
    stack.script(R"(
        mkdir -p lower0/dir lower0/gone lower1/dir lower0/again; echo 0 >lower0/dir/f; echo 1 >lower1/dir/g
        echo x >lower0/gone/x; echo old >lower0/again/old; ln lower0/dir/f lower0/linked
    )");
    try {
        stack.script(R"(
            unshare -Urm --propagation slave sh -ec '
            mount -t overlay -o userxattr,lowerdir=lower0:lower1,upperdir=upper,workdir=work overlay merged
            cd merged; chmod 600 dir/g; echo more >>dir/f; rm -r gone again; mkdir again; echo new >again/new
            setfattr -n user.mine -v 1 dir/g; mv dir/g dir/h'
        )");
    } catch (const std::runtime_error& error) {
        WARN("SKIPPED: no overlayfs in user namespaces here: " << error.what());
        return;
    }
    stack.use_upper();
    std::string kernel;
    {
        const KernelOverlay mounted(stack.layers(), "userxattr", stack / "merged");
        kernel = manifest_of(mounted.path());
    }
    OverlayXattrs user;
    user.is_user = true;
    CHECK(first_difference(manifest_of(*stack.view(user)), kernel) == "");
}

TEST_CASE("the marks of AUFS and of fuse-overlayfs hide what is below, and nothing beside",
          "[fuse][stack][stacks.whiteouts][stacks.opaque][stacks.plain]") {
    StackFolders stack(2);
    stack.script(R"(
        cd lower0; mkdir -p a opq fopq; touch a/.wh.gone opq/.wh..wh..opq a/.wh.both; echo here >a/both; echo n >opq/new
        echo full >a/.wh.full; mkdir a/.wh.folder; setfattr -n user.fuseoverlayfs.opaque -v y fopq
        touch a/.wh.plain; setfattr -n user.overlay.plain -v y a/.wh.plain
        cd ../lower1; mkdir -p a opq fopq; echo g >a/gone; echo below >a/both; echo old >opq/old; echo f >fopq/f
        echo f >a/full; echo p >a/plain; echo s >a/stays
    )");
    const auto view = stack.view();
    CHECK(listing(*view, "a") == ".wh.folder .wh.full .wh.plain both full plain stays ");
    CHECK(content(*view, "a/both") == "here\n");
    CHECK(listing(*view, "opq") == "new ");
    CHECK(listing(*view, "fopq").empty());
}

TEST_CASE("whiteouts that are attributes count where the directory says so", "[fuse][stack][stacks.whiteouts]") {
    StackFolders stack(2);
    stack.script(R"(
        cd lower0; mkdir x no; touch x/gone x/file no/gone; setfattr -n user.overlay.opaque -v x x
        setfattr -n user.overlay.whiteout -v y x/gone; setfattr -n user.overlay.whiteout -v y no/gone
        cd ../lower1; mkdir x no; echo g >x/gone; echo s >x/stays; echo g >no/gone
    )");
    const auto view = stack.view();
    CHECK(listing(*view, "x") == "file stays ");
    CHECK(listing(*view, "no") == "gone ");
    CHECK(content(*view, "no/gone").empty());
}

TEST_CASE("what belongs to the union is hidden from its users, and a nested union's comes through",
          "[fuse][stack][stacks.hidden-xattrs]") {
    if (!test::is_root()) return;
    StackFolders stack(1);
    stack.script(R"(
        cd lower0; echo 1 >f; setfattr -n trusted.overlay.origin -v x f; setfattr -n user.overlay.impure -v y f
        setfattr -n user.fuseoverlayfs.opaque -v y f; setfattr -n user.mine -v 1 f
        setfattr -n trusted.overlay.overlay.origin -v nested f; setfattr -n user.overlay.overlay.x -v nested f
    )");
    const auto view = stack.view();
    const auto xattrs = view->xattrs(find(*view, "f")).value();
    std::string names;
    for (const auto& [name, value] : xattrs) names.append(name).append(" ");
    CHECK(names.find("trusted.overlay.origin ") != names.npos);
    CHECK(names.find("user.overlay.x ") != names.npos);
    CHECK(names.find("user.mine ") != names.npos);
    CHECK(names.find("impure") == names.npos);
    CHECK(names.find("opaque") == names.npos);
    for (const auto& [name, value] : xattrs)
        if (name == "trusted.overlay.origin") CHECK(value == "nested");
}

TEST_CASE("owners and modes that are kept in an attribute are shown", "[fuse][stack][stacks.override-stat]") {
    StackFolders stack(2);
    stack.script(R"(
        cd lower0; setfattr -n user.containers.override_stat -v 0:0:0755 .
        echo f >file; setfattr -n user.containers.override_stat -v 12:34:4755 file
        touch null; setfattr -n user.containers.override_stat -v 0:0:0666:char-1-3 null
        touch disk; setfattr -n user.containers.override_stat -v 0:6:0660:block:8:1 disk
        printf target >link; setfattr -n user.containers.override_stat -v 0:0:0777:symlink link
        touch bad; setfattr -n user.containers.override_stat -v 1:x:0 bad
        cd ../lower1; echo f >other; setfattr -n user.containers.override_stat -v 12:34:4755 other
    )");
    const auto view = stack.view();
    const auto file = view->attributes(find(*view, "file")).value();
    CHECK((file.mode == (S_IFREG | 04755) && file.uid == 12 && file.gid == 34));
    const auto null = view->attributes(find(*view, "null")).value();
    CHECK((null.mode == (S_IFCHR | 0666) && null.device == ::gnu_dev_makedev(1, 3)));
    const auto disk = view->attributes(find(*view, "disk")).value();
    CHECK((disk.mode == (S_IFBLK | 0660) && disk.device == ::gnu_dev_makedev(8, 1) && disk.gid == 6));
    CHECK(S_ISLNK(view->attributes(find(*view, "link")).value().mode));
    CHECK(view->link_target(find(*view, "link")).value() == "target");
    CHECK(view->attributes(find(*view, "bad")).error() == Errno{EIO});
    CHECK(view->attributes(find(*view, "other")).value().uid != 12);  // Its layer does not do so.
    std::uint32_t types = 0;
    for (std::uint32_t at = 0; at < 5; ++at) types |= view->entry(kRootNode, at).value().type;
    CHECK((types & S_IFLNK) == S_IFLNK);
}
