#include "store/image_tree.h"

#include "store/error.h"
#include "store/file.h"
#include "store/tree_builder.h"
#include "store/tree_format.h"
#include "store/tree_text.h"
#include "support/catch.h"
#include "support/golden.h"
#include "support/layer_text.h"
#include "support/random_bytes.h"
#include "support/temp_dir.h"
#include "support/tree_bytes.h"

#include <unistd.h>

#include <fmt/format.h>

#include <cstring>
#include <thread>

using namespace lamina;
using store::FileType;

namespace {

store::BuiltTree build(const std::vector<test::Layer>& layers, const std::string& folder) {
    return store::build_tree(test::recipes(layers), folder, {});
}

std::string path_of(const store::BuiltTree& built, const std::string& folder) {
    return folder + "/" + built.digest.digest.hex();
}

// Everything that a tree can say, in one string.
std::string text_of(const store::ImageTree& tree) {
    std::string out;
    store::describe_tree(tree, {.with_chunks = true}, [&](const std::string& line) { out += line + "\n"; });
    return out;
}

// One of each kind of thing that a tree holds.
test::Layer example_layer() {
    test::Layer layer = test::layer_of("/:711 etc/ etc/motd=x etc/hostname= bin@usr/bin usr/ usr/bin/ usr/bin/sh=y");
    for (const char* word : {"usr/bin/bash~usr/bin/sh", "run/lock=", "usr/empty/", "pipe|"}) {
        layer.push_back(test::layer_of(word).front());
    }
    store::LayerEntry device = test::node("null", FileType::char_device);
    device.metadata.device_major = 1;
    device.metadata.device_minor = 3;
    device.metadata.mode = 0666;
    layer.push_back(device);
    store::LayerEntry sparse = test::file("usr/sparse");
    sparse.content = {store::ContentPart::hole(1 << 20),
                      {.chunk = test::chunk_of("one"), .size_bytes = 262144},
                      store::ContentPart::hole(4096),
                      {.chunk = test::chunk_of("two"), .size_bytes = 1}};
    sparse.size_bytes = (1 << 20) + 262144 + 4096 + 1;
    sparse.metadata.uid = 4294967295;
    sparse.metadata.gid = 1000;
    sparse.metadata.mode = 06755;
    sparse.metadata.mtime = {-5, 999'999'999};
    sparse.metadata.xattrs = {{"user.a", std::string("\0\xff", 2)}, {"security.capability", "cap"}, {"user.empty", ""}};
    layer.push_back(sparse);
    store::LayerEntry same = test::file("usr/same-xattrs", "z");
    same.metadata.xattrs = sparse.metadata.xattrs;
    layer.push_back(same);
    return layer;
}

struct OpenTree {
    std::shared_ptr<const store::ImageTree> tree;
    std::uint64_t file_bytes = 0;
};

OpenTree wide_tree(const std::string& folder, int files_per_folder, int folders) {
    test::Layer layer;
    for (int d = 0; d < folders; ++d) {
        layer.push_back(test::folder(fmt::format("folder{:04}", d)));
        for (int f = 0; f < files_per_folder; ++f) {
            const std::string path = fmt::format("folder{:04}/file-number-{:06}.txt", d, f);
            layer.push_back(test::file(path, path));
        }
    }
    const auto built = build({layer}, folder);
    return {store::ImageTree::open(path_of(built, folder), built.digest), built.file_bytes};
}

// What became of an attempt to read a tree: its text, or the error's name. Nothing else may happen.
std::string outcome_of(const std::string& path, const store::TreeDigest& digest) {
    try {
        const auto tree = store::ImageTree::open(path, digest);
        const auto problems = tree->check();
        const std::string text = text_of(*tree);
        return problems.empty() ? text : "problem";
    } catch (const store::Error& error) {
        return std::string(store::errc_name(error.code()));
    }
}

void write_bytes(const std::string& path, std::string_view bytes) {
    store::remove_file(path);
    store::File::create(path).append(store::as_bytes(bytes));
}

}  // namespace

TEST_CASE("a tree gives back what the layer says", "[store][tree]") {
    const test::TempDir folder;
    const auto tree = test::built_tree({example_layer()}, folder.path());
    CHECK(tree->check().empty());
    CHECK(tree->inode_count() == 15);
    const auto usr = tree->lookup(store::kTreeRoot, "usr");
    REQUIRE(usr.has_value());
    const auto sparse = tree->attributes(tree->lookup(usr->ino, "sparse")->ino);
    CHECK(sparse.size_bytes == (1 << 20) + 262144 + 4096 + 1);
    CHECK(sparse.data_bytes == 262144 + 1);
    CHECK(sparse.uid == 4294967295);
    CHECK(sparse.gid == 1000);
    CHECK(sparse.mode == 06755);
    CHECK(sparse.mtime == store::Timestamp{-5, 999'999'999});
    CHECK(sparse.has_xattrs);
    const auto xattrs = tree->xattrs(tree->lookup(usr->ino, "sparse")->ino);
    REQUIRE(xattrs.size() == 3);
    CHECK(xattrs[0] == std::pair<std::string_view, std::string_view>("security.capability", "cap"));
    CHECK(xattrs[1].second == std::string_view("\0\xff", 2));
    CHECK(xattrs[2] == std::pair<std::string_view, std::string_view>("user.empty", ""));
    const auto device = tree->attributes(tree->lookup(store::kTreeRoot, "null")->ino);
    CHECK(device.type == FileType::char_device);
    CHECK(device.device_major == 1);
    CHECK(device.device_minor == 3);
    CHECK(tree->attributes(usr->ino).nlink == 4);
    CHECK(tree->parent(usr->ino) == store::kTreeRoot);
    CHECK(tree->parent(tree->lookup(usr->ino, "bin")->ino) == usr->ino);
    CHECK(tree->parent(store::kTreeRoot) == store::kTreeRoot);
    CHECK(tree->link_target(tree->lookup(store::kTreeRoot, "bin")->ino) == "usr/bin");
    CHECK(tree->logical_bytes() == sparse.size_bytes + 3);
}

TEST_CASE("inodes are numbered directory by directory, each in name order, hard links once", "[store][tree]") {
    const test::TempDir folder;
    const auto tree = test::built_tree({test::layer_of("z=x b/ b/k/ b/k/m=y b/c~z a/ a/q=x d=y")}, folder.path());
    const auto ino = [&](store::TreeIno directory, const char* name) { return tree->lookup(directory, name)->ino; };
    CHECK(ino(1, "a") == 2);
    CHECK(ino(1, "b") == 3);
    CHECK(ino(1, "d") == 4);
    CHECK(ino(1, "z") == 5);
    CHECK(ino(2, "q") == 6);
    CHECK(ino(3, "c") == 5);
    CHECK(ino(3, "k") == 7);
    CHECK(ino(7, "m") == 8);
    CHECK(tree->inode_count() == 8);
}

TEST_CASE("a name that is not there is absent, whatever it looks like", "[store][tree]") {
    const test::TempDir folder;
    const auto tree = test::built_tree({test::layer_of("a=x ab=y b/ \xff=z")}, folder.path());
    for (const char* name : {"", ".", "..", "/", "a/", "aa", "abc", "A", "c", "\xff\xff", "b/c"}) {
        CHECK(!tree->lookup(store::kTreeRoot, name));
    }
    CHECK(!tree->lookup(store::kTreeRoot, std::string(5000, 'a')));
    CHECK(!tree->lookup(store::kTreeRoot, std::string_view("a\0", 2)));
    CHECK(tree->lookup(store::kTreeRoot, "\xff")->type == FileType::regular);
    CHECK(!tree->lookup(tree->lookup(store::kTreeRoot, "b")->ino, "a"));
}

TEST_CASE("asking for what an inode is not, or for no inode, is an error", "[store][tree]") {
    const test::TempDir folder;
    const auto tree = test::built_tree({test::layer_of("a=x")}, folder.path());
    const auto code = [](const auto& call) {
        try {
            call();
        } catch (const store::Error& error) {
            return std::string(store::errc_name(error.code()));
        }
        return std::string("none");
    };
    for (const store::TreeIno ino : {store::TreeIno{0}, store::TreeIno{3}, ~store::TreeIno{0}}) {
        CHECK(code([&] { tree->attributes(ino); }) == "not_found");
        CHECK(code([&] { tree->lookup(ino, "a"); }) == "not_found");
        CHECK(code([&] { tree->xattrs(ino); }) == "not_found");
    }
    CHECK(code([&] { tree->lookup(2, "a"); }) == "internal");
    CHECK(code([&] { tree->parent(2); }) == "internal");
    CHECK(code([&] { tree->link_target(2); }) == "internal");
    CHECK(code([&] { tree->parts(1, 0, 1); }) == "internal");
    CHECK(code([&] { tree->entry(1, 1); }) == "not_found");
}

TEST_CASE("the parts of any range are those that overlap it", "[store][tree]") {
    const test::TempDir folder;
    store::LayerEntry entry = test::file("a");
    for (int i = 0; i < 40; ++i) {
        const std::uint64_t size = 1 + i * 7 % 5;
        entry.content.push_back(
            i % 3 == 1 ? store::ContentPart::hole(size)
                       : store::ContentPart{.chunk = test::chunk_of(fmt::format("{}", i)), .size_bytes = size});
        entry.size_bytes += size;
    }
    const auto tree = test::built_tree({{entry}}, folder.path());
    for (std::uint64_t begin = 0; begin <= entry.size_bytes + 1; ++begin) {
        for (std::uint64_t size = 0; size <= entry.size_bytes + 1; ++size) {
            std::vector<std::pair<std::uint64_t, store::ContentPart>> expected;
            std::uint64_t at = 0;
            for (const store::ContentPart& part : entry.content) {
                if (at < begin + size && at + part.size_bytes > begin && size > 0) expected.emplace_back(at, part);
                at += part.size_bytes;
            }
            if (begin >= entry.size_bytes) expected.clear();
            std::vector<std::pair<std::uint64_t, store::ContentPart>> found;
            for (const auto& placed : tree->parts(2, begin, size)) found.emplace_back(placed.offset_bytes, placed.part);
            REQUIRE(found == expected);
        }
    }
    CHECK(tree->parts(2, 0, ~std::uint64_t{0}).size() == 40);
    CHECK(tree->parts(2, 1, ~std::uint64_t{0}).size() == 39);
    CHECK(tree->parts(2, ~std::uint64_t{0}, ~std::uint64_t{0}).empty());
}

TEST_CASE("the bytes of a tree are those that FORMAT.md promises", "[store][tree][golden]") {
    const test::TempDir folder;
    const auto built = build({example_layer()}, folder.path());
    const std::string bytes = test::bytes_of_file(path_of(built, folder.path()));
    test::check_golden("example.tree", store::as_bytes(bytes));
    const auto golden = store::ImageTree::open(test::golden_path("example.tree"), built.digest);
    CHECK(golden->check().empty());
    test::check_golden("example.tree.txt", store::as_bytes(text_of(*golden)));
}

TEST_CASE("opening a tree of 200,000 entries reads its header, and a lookup a few blocks", "[store][tree]") {
    const test::TempDir folder;
    const OpenTree wide = wide_tree(folder.path(), 1000, 200);
    CHECK(wide.tree->inode_count() == 200'201);
    CHECK(wide.file_bytes > 300 * store::tree_format::kBlockBytes);
    CHECK(wide.tree->checked_block_count() == 0);
    const auto found = wide.tree->lookup(store::kTreeRoot, "folder0100");
    REQUIRE(found.has_value());
    REQUIRE(wide.tree->lookup(found->ino, "file-number-000500.txt").has_value());
    wide.tree->attributes(found->ino);
    CHECK(wide.tree->checked_block_count() <= 10);
    CHECK(wide.tree->check().empty());
    CHECK(wide.tree->checked_block_count() >= wide.file_bytes / store::tree_format::kBlockBytes - 1);
}

TEST_CASE("many threads may read a tree that nobody read before", "[store][tree][threads]") {
    const test::TempDir folder;
    const OpenTree wide = wide_tree(folder.path(), 50, 100);
    std::vector<std::string> texts(4);
    std::vector<std::thread> threads;
    for (std::string& text : texts) {
        threads.emplace_back([&text, &wide] { text = text_of(*wide.tree); });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(texts[0].size() > 5000);
    for (const std::string& text : texts) CHECK(text == texts[0]);
    CHECK(wide.tree->checked_block_count() <= wide.file_bytes / store::tree_format::kBlockBytes + 1);
}

TEST_CASE("a tree that is cut short anywhere is corrupt", "[store][tree][bad]") {
    const test::TempDir folder;
    const auto built = build({example_layer()}, folder.path());
    const std::string path = path_of(built, folder.path());
    for (std::uint64_t size = built.file_bytes; size-- > 0;) {
        REQUIRE(::truncate(path.c_str(), static_cast<off_t>(size)) == 0);
        REQUIRE(outcome_of(path, built.digest) == "corrupt");
    }
}

TEST_CASE("a tree with one bit flipped is corrupt", "[store][tree][bad]") {
    const test::TempDir folder;
    const auto built = build({example_layer()}, folder.path());
    const std::string path = path_of(built, folder.path());
    const std::string good = test::bytes_of_file(path);
    store::File file = store::File::open_append(path);
    for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
        // Of the header's zeros, which are most of so small a tree, every 61st bit.
        if (bit > 8 * 300 && bit < 8 * 4096 && bit % 61 != 0) continue;
        const char bad = static_cast<char>(good[bit / 8] ^ 1 << bit % 8);
        file.write_at(bit / 8, store::as_bytes(std::string_view(&bad, 1)));
        CAPTURE(bit);
        const std::string outcome = outcome_of(path, built.digest);
        REQUIRE((outcome == "corrupt" || outcome == "problem"));
        file.write_at(bit / 8, store::as_bytes(std::string_view(&good[bit / 8], 1)));
    }
    CHECK(outcome_of(path, built.digest) == text_of(*store::ImageTree::open(path, built.digest)));
}

TEST_CASE("a tree that is cut while it is open is an error, not the end of the process", "[store][tree][bad]") {
    const test::TempDir folder;
    const auto built = build({example_layer()}, folder.path());
    const std::string path = path_of(built, folder.path());
    const auto tree = store::ImageTree::open(path, built.digest);
    REQUIRE(::truncate(path.c_str(), 4096) == 0);
    try {
        tree->attributes(store::kTreeRoot);
        FAIL("no error");
    } catch (const store::Error& error) {
        CHECK(error.code() == store::Errc::corrupt);
    }
    CHECK(!tree->check().empty());
}

TEST_CASE("a forged tree, whose digests fit, never does more than be refused or be read", "[store][tree][bad]") {
    const test::TempDir folder;
    const auto built = build({example_layer()}, folder.path());
    const std::string good = test::bytes_of_file(path_of(built, folder.path()));
    const std::string path = folder / "forged";
    int refused_count = 0;
    int count = 0;
    for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
        if (bit >= 8 * 160 && bit < 8 * 4096 && bit % 997 != 0) continue;
        std::string bad = good;
        bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ 1 << bit % 8);
        const store::TreeDigest digest = test::sign_tree(bad);
        write_bytes(path, bad);
        const std::string outcome = outcome_of(path, digest);
        ++count;
        if (outcome == "corrupt" || outcome == "problem" || outcome == "unsupported") ++refused_count;
    }
    CHECK(refused_count > count / 4);  // The rest are other owners, times, digests: trees in their own right.
}

TEST_CASE("a forged tree with numbers at random never does more than be refused or be read", "[store][tree][bad]") {
    const test::TempDir folder;
    const auto built = build({example_layer()}, folder.path());
    const std::string good = test::bytes_of_file(path_of(built, folder.path()));
    const std::string path = folder / "forged";
    for (std::uint64_t seed = 0; seed < 3000; ++seed) {
        const auto random = test::random_bytes(64, seed);
        std::string bad = good;
        for (std::size_t i = 0; i < 1 + seed % 4; ++i) {
            std::uint64_t where;
            std::uint32_t what;
            std::memcpy(&where, random.data() + i * 16, 8);
            std::memcpy(&what, random.data() + i * 16 + 8, 4);
            const bool is_small = std::to_integer<int>(random[i * 16 + 12]) % 2 == 0;
            what = is_small ? what % 40 : what;
            const std::size_t body_words = (bad.size() - 4096) / 4;
            std::memcpy(bad.data() + 4096 + where % body_words * 4, &what, 4);
        }
        const store::TreeDigest digest = test::sign_tree(bad);
        write_bytes(path, bad);
        outcome_of(path, digest);
    }
    SUCCEED("3000 trees were read");
}

TEST_CASE("a tree of another version, or what is no tree, is refused by name", "[store][tree][bad]") {
    const test::TempDir folder;
    const auto built = build({example_layer()}, folder.path());
    std::string bytes = test::bytes_of_file(path_of(built, folder.path()));
    const std::string path = folder / "other";
    bytes[8] = 2;
    const auto digest = test::sign_tree(bytes);
    write_bytes(path, bytes);
    CHECK(outcome_of(path, digest) == "unsupported");
    CHECK(outcome_of(path, built.digest) == "corrupt");
    CHECK(outcome_of(folder / "missing", built.digest) == "not_found");
    write_bytes(path, "");
    CHECK(outcome_of(path, built.digest) == "corrupt");
    write_bytes(path, std::string(100'000, 'x'));
    CHECK(outcome_of(path, built.digest) == "corrupt");
    CHECK(outcome_of(folder.path(), built.digest) != "");
}

TEST_CASE("check finds what no reader would notice", "[store][tree][bad]") {
    const test::TempDir folder;
    const auto built = build({test::layer_of("a=x b=y d/ d/e/ l@t")}, folder.path());
    const std::string good = test::bytes_of_file(path_of(built, folder.path()));
    using namespace store::tree_format;
    const auto problems_after = [&](std::size_t offset, std::uint32_t value) {
        std::string bad = good;
        std::memcpy(bad.data() + 4096 + offset, &value, 4);
        const auto digest = test::sign_tree(bad);
        write_bytes(folder / "forged", bad);
        const auto problems = store::ImageTree::open(folder / "forged", digest)->check();
        return problems.empty() ? std::string("none") : problems.front();
    };
    const std::size_t dirents = 6 * sizeof(Inode);
    using Catch::Matchers::ContainsSubstring;
    CHECK_THAT(problems_after(sizeof(Inode) + offsetof(Inode, nlink), 2), ContainsSubstring("wrong link count"));
    CHECK_THAT(problems_after(offsetof(Inode, nlink), 9), ContainsSubstring("wrong link count"));
    CHECK_THAT(problems_after(3 * sizeof(Inode) + offsetof(Inode, extra), 6), ContainsSubstring("wrong parent"));
    CHECK_THAT(problems_after(dirents + offsetof(Dirent, ino), 3), ContainsSubstring("out of order"));
    CHECK_THAT(problems_after(dirents + 2 * sizeof(Dirent) + offsetof(Dirent, ino), 1), ContainsSubstring("order"));
    CHECK_THAT(problems_after(dirents + offsetof(Dirent, name_bytes), 0x201), ContainsSubstring("another type"));
    CHECK_THAT(problems_after(dirents + offsetof(Dirent, name_bytes), 1 << 16 | 1), ContainsSubstring("reserved"));
    CHECK_THAT(problems_after(offsetof(Inode, count), 3), ContainsSubstring("not where they belong"));
    CHECK_THAT(problems_after(sizeof(Inode) + offsetof(Inode, data), 0), ContainsSubstring("data bytes"));
    CHECK_THAT(problems_after(sizeof(Inode) + offsetof(Inode, reserved_2), 1), ContainsSubstring("reserved"));
    CHECK_THAT(problems_after(sizeof(Inode) + offsetof(Inode, count), 0), ContainsSubstring("no content"));
}
