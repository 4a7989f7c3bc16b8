#include "fuse/layer_export.h"

#include "fuse/change_list.h"
#include "store/error.h"
#include "store/tar_reader.h"
#include "support/catch.h"
#include "support/kept_mount.h"
#include "support/random_user.h"
#include "support/temp_dir.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

using namespace lamina;
using namespace lamina::unionfs;
using lamina::test::KeptMount;

namespace {

class Memory : public store::ByteSink, public store::TarInput {
public:
    void write(std::span<const std::byte> data) override { bytes.insert(bytes.end(), data.begin(), data.end()); }
    std::span<const std::byte> peek(std::size_t) override { return std::span(bytes).subspan(at_); }
    void consume(std::size_t size) override { at_ += size; }
    std::vector<std::byte> bytes;

private:
    std::size_t at_ = 0;
};

Memory exported(KeptMount& mount, const View& view) {
    Memory tar;
    export_layer(mount.changes(), view, mount.state().keeper(), tar);
    return tar;
}

std::string entry_text(const store::TarEntry& item, std::string body) {
    const store::LayerEntry& entry = item.entry;
    std::string text = entry.path.empty() ? "." : entry.path;
    if (entry.is_hardlink) return text + "~" + entry.hardlink_target;
    if (entry.metadata.type == store::FileType::directory) text += "/";
    if (entry.metadata.type == store::FileType::symlink) text += "@" + entry.metadata.link_target;
    if (entry.metadata.type == store::FileType::regular) text += "=" + body;
    for (const auto& range : item.data_map) {
        text += "[" + std::to_string(range.offset_bytes) + "+" + std::to_string(range.size_bytes) + "]";
    }
    for (const auto& [name, value] : entry.metadata.xattrs) text += " " + name + ":" + value;
    return text;
}

/// One line an entry, in the tar's order, but without the root.
std::string layer_text(Memory tar) {
    store::LayerReader reader(tar, store::LayerLimits{}, nullptr);
    std::string text;
    while (const auto entry = reader.next()) {
        std::string body;
        for (auto part = reader.peek_body(1); !part.empty(); part = reader.peek_body(1)) {
            body.append(reinterpret_cast<const char*>(part.data()), part.size());
            reader.consume_body(part.size());
        }
        if (!entry->entry.path.empty()) text += entry_text(*entry, body) + "\n";
    }
    return text;
}

std::string diff_text(KeptMount& mount, const View& view) {
    std::vector<std::string> lines;
    list_changes(mount.changes(), view, {}, [&](const ListedChange& change) {
        const char kind = change.kind == ListedChange::Kind::added     ? 'A'
                          : change.kind == ListedChange::Kind::deleted ? 'D'
                                                                       : 'C';
        if (!change.path.empty()) lines.push_back(std::string(1, kind) + " /" + change.path);
    });
    std::sort(lines.begin(), lines.end(), [](const auto& a, const auto& b) { return a.substr(2) < b.substr(2); });
    std::string text;
    for (const std::string& line : lines) text += line + "\n";
    return text;
}

constexpr NodeId kEtc = 2, kPasswd = 3, kSub = 4, kLinked = 6;

struct Fixture {
    test::TempDir folder;
    test::MemoryView view = test::small_view();
    KeptMount mount{folder.path(), view};
    std::string diff() { return diff_text(mount, view); }
    std::string layer() { return layer_text(exported(mount, view)); }
};

}  // namespace

TEST_CASE("a mount without changes has an empty diff and an empty layer", "[diff][export]") {
    Fixture f;
    CHECK(f.diff().empty());
    CHECK(f.layer().empty());
}

TEST_CASE("new things are listed as added, their folder as changed", "[diff][export]") {
    Fixture f;
    const NodeId folder = f.mount.make(kEtc, "new", S_IFDIR | 0755).value();
    const NodeId file = f.mount.make(folder, "file", S_IFREG | 0644).value();
    REQUIRE(f.mount.write(file, 0, "text"));
    REQUIRE(f.mount.make(folder, "a", S_IFLNK | 0777, "target"));
    CHECK(f.diff() == "C /etc\nA /etc/new\nA /etc/new/a\nA /etc/new/file\n");
    CHECK(f.layer() == "etc/\netc/new/\netc/new/a@target\netc/new/file=text\n");
}

TEST_CASE("a file that was written in place is changed, and its folder is not", "[diff][export]") {
    Fixture f;
    REQUIRE(f.mount.write(kPasswd, 4, ":y"));
    CHECK(f.diff() == "C /etc/passwd\n");
    CHECK(f.layer() == "etc/\netc/passwd=root:y:0:0\n\n");  // The whole file, and its parent.
}

TEST_CASE("touching a file lists it, with all its content in the layer", "[diff][export]") {
    Fixture f;
    REQUIRE(f.mount.change(change::SetAttributes{.node = kLinked, .uid = 0}));
    CHECK(f.diff() == "C /one\nC /two\n");
    CHECK(f.layer() == "one=linked user.a:1\ntwo~one\n");
}

TEST_CASE("what was deleted is a whiteout before its siblings", "[diff][export]") {
    Fixture f;
    REQUIRE(f.mount.remove(kEtc, "passwd"));
    REQUIRE(f.mount.make(kEtc, "a", S_IFREG | 0644));
    CHECK(f.diff() == "C /etc\nA /etc/a\nD /etc/passwd\n");
    CHECK(f.layer() == "etc/\netc/.wh.passwd=\netc/a=\n");
}

TEST_CASE("removing one name of a file says nothing of the other", "[diff][export]") {
    Fixture f;
    REQUIRE(f.mount.remove(kRootNode, "one"));
    CHECK(f.diff() == "D /one\n");
    CHECK(f.layer() == ".wh.one=\n");
}

TEST_CASE("a new link to a file of the image brings the file along", "[diff][export]") {
    Fixture f;
    REQUIRE(f.mount.change(change::Link{.node = kPasswd, .parent = kSub, .name = "link"}));
    CHECK(f.diff() == "C /etc/sub\nA /etc/sub/link\n");
    CHECK(f.layer() == "etc/\netc/passwd=root:x:0:0\n\netc/sub/\netc/sub/link~etc/passwd\n");
}

TEST_CASE("a moved folder is deleted and added, with all its content in the layer", "[diff][export]") {
    Fixture f;
    REQUIRE(f.mount.rename(kEtc, "sub", kRootNode, "moved"));
    CHECK(f.diff() == "C /etc\nD /etc/sub\nA /moved\n");
    CHECK(f.layer() == "etc/\netc/.wh.sub=\nmoved/\nmoved/deep=" + std::string(9000, 'd') + "\n");
}

TEST_CASE("a folder in the place of another hides it", "[diff][export]") {
    Fixture f;
    REQUIRE(f.mount.remove(kSub, "deep"));
    REQUIRE(f.mount.remove(kEtc, "sub"));
    const NodeId folder = f.mount.make(kEtc, "sub", S_IFDIR | 0755).value();
    REQUIRE(f.mount.make(folder, "other", S_IFREG | 0644));
    CHECK(f.diff() == "C /etc\nC /etc/sub\nD /etc/sub/deep\nA /etc/sub/other\n");
    CHECK(f.layer() == "etc/\netc/sub/\netc/sub/.wh..wh..opq=\netc/sub/other=\n");
}

TEST_CASE("a file in the place of a folder, and a folder in the place of a file", "[diff][export]") {
    Fixture f;
    REQUIRE(f.mount.remove(kEtc, "passwd"));
    const NodeId folder = f.mount.make(kEtc, "passwd", S_IFDIR | 0755).value();
    REQUIRE(f.mount.make(folder, "in", S_IFREG | 0644));
    REQUIRE(f.mount.remove(kSub, "deep"));
    REQUIRE(f.mount.remove(kEtc, "sub"));
    REQUIRE(f.mount.make(kEtc, "sub", S_IFREG | 0644));
    CHECK(f.diff() == "C /etc\nC /etc/passwd\nA /etc/passwd/in\nC /etc/sub\n");
    CHECK(f.layer() == "etc/\netc/passwd/\netc/passwd/in=\netc/sub=\n");
}

TEST_CASE("holes stay holes in a layer", "[export]") {
    Fixture f;
    const NodeId file = f.mount.make(kRootNode, "file", S_IFREG | 0644).value();
    REQUIRE(f.mount.write(file, 8192, "end"));
    const NodeId empty = f.mount.make(kRootNode, "hole", S_IFREG | 0644).value();
    REQUIRE(f.mount.change(change::Resize{.node = empty, .size_bytes = 10000}));
    CHECK(f.layer().find("file=end[8192+3]") != std::string::npos);
    CHECK(f.layer().find("hole=[10000+0]") != std::string::npos);
}

TEST_CASE("a truncated file of the image ends where it was cut, and grows with zeros", "[export]") {
    Fixture f;
    REQUIRE(f.mount.change(change::Resize{.node = kPasswd, .size_bytes = 4}));
    REQUIRE(f.mount.change(change::Resize{.node = kPasswd, .size_bytes = 6}));
    const std::string grown("root\0\0", 6);  // A hole this small is written as zeros: tar's map counts in blocks.
    CHECK(f.layer() == "etc/\netc/passwd=" + grown + "[0+6]\n");
}

TEST_CASE("a name that means a deletion in a layer is an error that names it", "[export][bad]") {
    Fixture f;
    REQUIRE(f.mount.make(kEtc, ".wh.x", S_IFREG | 0644));
    CHECK_THROWS_WITH(f.layer(), Catch::Matchers::ContainsSubstring("/etc/.wh.x: "));
    CHECK(f.diff() == "C /etc\nA /etc/.wh.x\n");
}

TEST_CASE("a path that no layer can hold is an error", "[export][bad]") {
    Fixture f;
    NodeId folder = kRootNode;
    for (int depth = 0; depth < 17; ++depth) {
        folder = f.mount.make(folder, std::string(250, 'd'), S_IFDIR | 0755).value();
    }
    CHECK_THROWS_WITH(f.layer(), Catch::Matchers::ContainsSubstring("4096 bytes"));
}

TEST_CASE("sockets stay out of a layer, and what they replaced is gone", "[export]") {
    Fixture f;
    REQUIRE(f.mount.make(kEtc, "socket", S_IFSOCK | 0755));
    REQUIRE(f.mount.remove(kEtc, "passwd"));
    REQUIRE(f.mount.make(kEtc, "passwd", S_IFSOCK | 0755));
    CHECK(f.layer() == "etc/\netc/.wh.passwd=\n");
}

TEST_CASE("equal changes give equal bytes, before and after a replay", "[export][random]") {
    const auto seed = GENERATE(range(40U, 46U));
    const auto view = test::small_view();
    const test::TempDir folder;
    std::vector<std::byte> before;
    {
        KeptMount mount(folder.path(), view);
        test::RandomUser user(seed);
        for (int step = 0; step < 120; ++step) REQUIRE(user.step(mount));
        before = exported(mount, view).bytes;
        REQUIRE(mount.keeper().write_checkpoint());
    }
    KeptMount mount(folder.path(), view, {.is_read_only = true});
    CHECK(exported(mount, view).bytes == before);
}
