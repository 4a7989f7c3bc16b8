// Stacks of many sources, large ones, and ones on other file systems; made by others than the kernel.
#include "fuse/stack_view.h"
#include "support/catch.h"
#include "support/root.h"
#include "support/stack_folders.h"
#include "support/view_manifest.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

using namespace lamina;
using namespace lamina::unionfs;
using test::first_difference;
using test::KernelOverlay;
using test::manifest_of;
using test::StackFolders;

namespace {

/// For many files: what is tested is not the disk.
constexpr const char* kQuickFolder = "/dev/shm";

bool kernel_is_missing() {
    if (KernelOverlay::is_possible()) return false;
    WARN("SKIPPED: overlayfs cannot be mounted here");
    return true;
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

std::size_t open_descriptors() {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
    return count;
}

/// Lowers RLIMIT_NOFILE while it lives.
class DescriptorLimit {
public:
    explicit DescriptorLimit(rlim_t limit) {
        REQUIRE(::getrlimit(RLIMIT_NOFILE, &before_) == 0);
        const rlimit now{.rlim_cur = limit, .rlim_max = before_.rlim_max};
        REQUIRE(::setrlimit(RLIMIT_NOFILE, &now) == 0);
    }
    ~DescriptorLimit() { ::setrlimit(RLIMIT_NOFILE, &before_); }
    DescriptorLimit(const DescriptorLimit&) = delete;
    DescriptorLimit& operator=(const DescriptorLimit&) = delete;

private:
    rlimit before_{};
};

/// A file system mounted at a folder for the length of a test.
class Mounted {
public:
    Mounted(const std::string& type, std::string at, unsigned long flags, const std::string& data)
        : at_(std::move(at)) {
        REQUIRE(::mount(type.c_str(), at_.c_str(), type.c_str(), flags, data.c_str()) == 0);
    }
    ~Mounted() { ::umount2(at_.c_str(), MNT_DETACH); }
    Mounted(const Mounted&) = delete;
    Mounted& operator=(const Mounted&) = delete;
    void make_read_only() const { REQUIRE(::mount("", at_.c_str(), "", MS_REMOUNT | MS_RDONLY, "") == 0); }

private:
    std::string at_;
};

}  // namespace

TEST_CASE("500 lowers are merged as overlayfs merges them", "[fuse][stack][large][stacks.merging]") {
    if (kernel_is_missing()) return;
    StackFolders stack(500, kQuickFolder);
    for (std::size_t number = 0; number < stack.lowers.size(); ++number) {
        const std::string lower = stack / stack.lowers[number];
        std::filesystem::create_directories(lower + "/all/each" + std::to_string(number % 7));
        std::ofstream(lower + "/all/own" + std::to_string(number)) << number;
        std::ofstream(lower + "/all/each" + std::to_string(number % 7) + "/same") << number;
        std::filesystem::create_directory(lower + "/only" + std::to_string(number));
    }
    std::string kernel;
    {
        const KernelOverlay mounted(stack.layers(), "", stack / "merged");
        kernel = manifest_of(mounted.path());
    }
    const DescriptorLimit limit(1024);
    CHECK(first_difference(manifest_of(*stack.view()), kernel) == "");
}

TEST_CASE("100,000 files are walked with 1,024 descriptors, and few are open",
          "[fuse][stack][large][stacks.descriptors]") {
    StackFolders stack(2, kQuickFolder);
    stack.script(R"(
        python3 - <<'EOF'
import os
for lower in (0, 1):
    for d in range(500):
        os.makedirs(f"lower{lower}/d{d}/sub", exist_ok=True)
        for f in range(100):
            open(f"lower{lower}/d{d}/sub/f{lower}_{f}", "w").close()
EOF
    )");
    const DescriptorLimit limit(1024);
    const std::size_t before = open_descriptors();
    const auto view = stack.view();
    std::size_t files = 0;
    for (std::uint32_t at = 0; at < view->entry_count(kRootNode).value(); ++at) {
        const NodeId sub = view->lookup(view->entry(kRootNode, at).value().node, "sub").value()->node;
        const std::uint32_t count = view->entry_count(sub).value();
        for (std::uint32_t position = 0; position < count; ++position) {
            const auto entry = view->entry(sub, position).value();
            const NodeId node = view->lookup(sub, entry.name).value()->node;
            std::byte one{};
            REQUIRE(view->attributes(node).value().shown_number() == entry.number);
            if (position % 10 == 0) REQUIRE(view->read(node, 0, std::span(&one, 1)).value() == 0);
            ++files;
        }
    }
    CHECK(files == 100'000);
    CHECK(open_descriptors() - before <= 256 + 8);
}

TEST_CASE("a directory of 20,000 entries is listed and looked up in linear time", "[fuse][stack][large]") {
    StackFolders stack(2, kQuickFolder);
    for (int number = 0; number < 20'000; ++number) std::ofstream(stack / ("lower1/f" + std::to_string(number)));
    const auto view = stack.view();
    const auto begin = std::chrono::steady_clock::now();
    for (int number = 0; number < 20'000; ++number)
        REQUIRE(view->lookup(kRootNode, "f" + std::to_string(number)).value());
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
}

TEST_CASE("paths deeper than PATH_MAX are reached", "[fuse][stack][large]") {
    StackFolders stack(2, kQuickFolder);
    constexpr int kDepth = 1500;
    {
        store::UniqueFd at(::open((stack / "lower1").c_str(), O_PATH | O_CLOEXEC));
        for (int level = 0; level < kDepth; ++level) {
            REQUIRE(::mkdirat(at.get(), "deeper", 0755) == 0);
            at = store::UniqueFd(::openat(at.get(), "deeper", O_PATH | O_CLOEXEC));
        }
        REQUIRE(store::UniqueFd(::openat(at.get(), "end", O_CREAT | O_WRONLY | O_CLOEXEC, 0600)));
    }
    const auto view = stack.view();
    NodeId node = kRootNode;
    for (int level = 0; level < kDepth; ++level) node = view->lookup(node, "deeper").value()->node;
    const NodeId end = view->lookup(node, "end").value()->node;
    CHECK(view->attributes(end).value().size_bytes == 0);
    stack.script("mkdir many; for i in $(seq 300); do mkdir many/$i; done");
    CHECK(view->attributes(end));
    CHECK(view->redirect_path(node).value().size() == kDepth * 7U);
    stack.script(
        "cd lower1; for i in 1 2 3; do mv deeper/deeper d2 2>/dev/null; rm -rf deeper; mv d2 deeper; done; rm -rf "
        "deeper");
}

TEST_CASE("lowers on several file systems, also read-only ones, keep their numbers apart",
          "[fuse][stack][stacks.numbers]") {
    if (kernel_is_missing()) return;
    StackFolders stack(3);
    const Mounted tmpfs("tmpfs", stack / "lower1", 0, "size=4m");
    stack.script(R"(
        mkdir -p lower0/d lower1/d lower2/d; echo 0 >lower0/d/f0; echo 1 >lower1/d/f1; echo 2 >lower2/d/f2
        ln lower1/d/f1 lower1/link; mkdir lower1/below
    )");
    tmpfs.make_read_only();
    const auto view = stack.view();
    CHECK(content(*view, "d/f0") == "0\n");
    CHECK(content(*view, "d/f1") == "1\n");
    CHECK(find(*view, "link") == find(*view, "d/f1"));
    std::set<std::uint64_t> numbers;
    for (const char* const path : {"d", "d/f0", "d/f1", "d/f2", "below"})
        numbers.insert(view->attributes(find(*view, path)).value().shown_number());
    CHECK(numbers.size() == 5);
    const auto again = stack.view();
    for (const char* const path : {"below", "d/f2", "d/f1"})
        CHECK(again->attributes(find(*again, path)).value().shown_number() ==
              view->attributes(find(*view, path)).value().shown_number());
    std::string kernel;
    {
        const KernelOverlay mounted(stack.layers(), "", stack / "merged");
        kernel = manifest_of(mounted.path(), {.has_numbers = false});
    }
    CHECK(first_difference(manifest_of(*view, {.has_numbers = false}), kernel) == "");
}

TEST_CASE("what is mounted below a lower is not seen, as with overlayfs", "[fuse][stack][stacks.places]") {
    if (!test::is_root()) return;
    StackFolders stack(2);
    stack.script("mkdir -p lower0/point; echo under >lower0/point/file");
    const Mounted tmpfs("tmpfs", stack / "lower0/point", 0, "size=1m");
    stack.script("echo over >lower0/point/file");
    CHECK(content(*stack.view(), "point/file") == "under\n");
}

TEST_CASE("an overlay mount is a lower like others", "[fuse][stack]") {
    if (kernel_is_missing()) return;
    StackFolders inner(2);
    inner.script("mkdir -p lower0/a lower1/a; echo 0 >lower0/a/x; echo 1 >lower1/a/y");
    inner.use_upper();
    const KernelOverlay mounted(inner.layers(), "", inner / "merged");
    StackFolders outer(2);
    outer.script("mkdir -p lower0/a; echo outer >lower0/a/x; rm -r lower1; ln -s " + mounted.path() + " lower1");
    const auto view = outer.view();
    CHECK(content(*view, "a/x") == "outer\n");
    CHECK(content(*view, "a/y") == "1\n");
}

TEST_CASE("uppers of fuse-overlayfs are shown as it shows them",
          "[fuse][stack][stacks.override-stat][stacks.whiteouts]") {
    StackFolders stack(2);
    stack.script(
        "mkdir -p lower0/a/b lower1/a lower0/gone lower0/op; echo 0 >lower0/a/f; echo 1 >lower1/a/g\n"
        "echo x >lower0/gone/x; echo o >lower0/op/o; ln lower0/a/f lower0/link; echo copied >lower0/copied");
    const test::ManifestOptions options{.has_numbers = false, .has_blocks = false, .has_data_map = false};
    std::string shown;
    try {
        stack.script(R"(
            fuse-overlayfs -o lowerdir=$PWD/lower0:$PWD/lower1,upperdir=$PWD/upper,workdir=$PWD/work $PWD/merged
            ( cd merged; rm a/f; echo new >a/new; rm -r gone op; mkdir op; echo n >op/n; echo more >>copied
            chmod 600 a/g; mkdir -p n/e/w; mv copied n/e/w/moved; rm -r a/b ); fusermount3 -u merged
        )");
    } catch (const std::runtime_error& error) {
        stack.script("fusermount3 -u merged || true");
        WARN("SKIPPED: fuse-overlayfs does not run here: " << error.what());
        return;
    }
    stack.use_upper();
    const auto view = stack.view();
    stack.script(
        "fuse-overlayfs -o lowerdir=$PWD/lower0:$PWD/lower1,upperdir=$PWD/upper,workdir=$PWD/work $PWD/merged");
    shown = manifest_of(stack / "merged", options);
    stack.script("fusermount3 -u merged");
    CHECK(first_difference(manifest_of(*view, options), shown) == "");
}
