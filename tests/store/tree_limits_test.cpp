#include "store/error.h"
#include "store/file.h"
#include "store/file_ops.h"
#include "store/tree_builder.h"
#include "support/catch.h"
#include "support/fail_at.h"
#include "support/layer_text.h"
#include "support/temp_dir.h"

#include <fmt/format.h>

#include <limits>

using namespace lamina;
using test::layer_of;

namespace {

store::BuiltTree build(const std::vector<test::Layer>& layers, const std::string& folder) {
    return store::build_tree(test::recipes(layers), folder, {});
}

std::string error_of(const test::Layer& layer) {
    const test::TempDir folder;
    try {
        build({layer}, folder.path());
    } catch (const store::Error& error) {
        CHECK(error.code() == store::Errc::malformed);
        CHECK(store::list_folder(folder.path()).empty());
        CHECK(std::string(error.what()).find('\n') == std::string::npos);
        return error.what();
    }
    return "";
}

std::string path_of_components(std::size_t count, std::size_t size) {
    std::string path(size, 'a');
    for (std::size_t i = 1; i < count; ++i) path += "/" + std::string(size, 'a');
    return path;
}

}  // namespace

TEST_CASE("the same merged tree has the same bytes, however many layers it came from", "[store][tree]") {
    const test::TempDir folder;
    const auto one = build({layer_of("a/ a/x=one b@a c=two d~c")}, folder.path());
    const std::vector<std::vector<test::Layer>> others = {
        {layer_of("c=two d~c b@a a/ a/x=one")},
        {layer_of("a/:700 a/x=old c=two"), layer_of("a/ a/x=one b@a d~c")},
        {layer_of("zz=old a/ a/y=old a/x=old b/ b/q= d=two c~d"), layer_of(".wh.zz a/ a/.wh..wh..opq a/x=one b@a")},
        {layer_of("a/ a/x=one a/x=two a/x=one b= b@a c=old"), layer_of("c=two d~c")},
    };
    for (const auto& layers : others) CHECK(build(layers, folder.path()).digest == one.digest);
    CHECK(build({layer_of("a/ a/x=one b@a c=two d=two")}, folder.path()).digest != one.digest);
    CHECK(store::list_folder(folder.path()).size() == 2);
}

TEST_CASE("a built tree says its size and the sizes of its files, each inode once", "[store][tree]") {
    const test::TempDir folder;
    const auto built = build({layer_of("a=three b~a c=one"), layer_of("c=x")}, folder.path());
    CHECK(built.inode_count == 3);
    CHECK(built.logical_bytes == 6);
    CHECK(built.file_bytes == store::file_size(folder.path() + "/" + built.digest.digest.hex()));
}

TEST_CASE("a step that fails leaves no tree and no temporary file", "[store][tree][fault]") {
    const test::TempDir folder;
    for (int step = 1;; ++step) {
        CAPTURE(step);
        test::FailAt fault(step);
        try {
            build({layer_of("a=x")}, folder.path());
        } catch (const store::Error& error) {
            CHECK(error.code() == store::Errc::no_space);
        }
        if (!fault.has_failed()) break;
        for (const std::string& name : store::list_folder(folder.path())) CHECK(name.size() == 64);
    }
    CHECK(store::list_folder(folder.path()).size() == 1);
}

TEST_CASE("building can be stopped", "[store][tree]") {
    const test::TempDir folder;
    std::stop_source stop;
    stop.request_stop();
    try {
        store::build_tree(test::recipes({layer_of("a=x")}), folder.path(), stop.get_token());
        FAIL("no error");
    } catch (const store::Error& error) {
        CHECK(error.code() == store::Errc::cancelled);
    }
    CHECK(store::list_folder(folder.path()).empty());
}

TEST_CASE("names of 255 and paths of 4096 bytes are taken, longer ones refused", "[store][tree][bad]") {
    const test::TempDir folder;
    const std::string longest_name(255, 'n');
    const auto tree =
        test::built_tree({{test::file(longest_name, "x"), test::hardlink("b", longest_name)}}, folder.path());
    CHECK(tree->lookup(store::kTreeRoot, longest_name).has_value());
    CHECK_THAT(error_of({test::file(longest_name + "n")}), Catch::Matchers::ContainsSubstring("longer than 255"));
    CHECK_THAT(error_of({test::file("x/.wh." + longest_name)}), Catch::Matchers::ContainsSubstring("longer than 255"));

    const std::string longest_path = path_of_components(16, 255) + "/";
    REQUIRE(longest_path.size() == 4096);
    const auto deep = test::built_tree({{test::file(longest_path.substr(0, 4094) + "/b", "x")}}, folder.path());
    CHECK(deep->inode_count() == 18);
    CHECK(deep->check().empty());
    CHECK_THAT(error_of({test::file(longest_path + "b")}), Catch::Matchers::ContainsSubstring("longer than 4096"));
    CHECK_THAT(error_of({test::file("a"), test::hardlink("b", longest_path + "b")}),
               Catch::Matchers::ContainsSubstring("longer than 4096"));
}

TEST_CASE("the deepest path is taken, by 200 names at its end", "[store][tree]") {
    const test::TempDir folder;
    const std::string deepest = path_of_components(2046, 1);
    test::Layer layer;
    for (int i = 0; i < 200; ++i) layer.push_back(test::file(fmt::format("{}/{:02x}", deepest, i), "x"));
    const auto tree = test::built_tree({layer, layer, layer_of(".wh.a"), layer}, folder.path());
    CHECK(tree->inode_count() == 1 + 2046 + 200);
    CHECK(tree->check().empty());
}

TEST_CASE("100,000 names in one directory, in any order, are sorted and found", "[store][tree]") {
    const test::TempDir folder;
    test::Layer layer;
    for (std::uint32_t i = 0; i < 100'000; ++i) layer.push_back(test::file(fmt::format("d/{:x}", i * 2654435761U)));
    const auto tree = test::built_tree({layer}, folder.path());
    const auto directory = tree->lookup(store::kTreeRoot, "d")->ino;
    CHECK(tree->entry_count(directory) == 100'000);
    for (std::uint32_t i = 0; i < 100'000; i += 1000) {
        CHECK(tree->lookup(directory, fmt::format("{:x}", i * 2654435761U)).has_value());
    }
    CHECK(tree->check().empty());
}

TEST_CASE("metadata that no file can have is refused", "[store][tree][bad]") {
    using Catch::Matchers::ContainsSubstring;
    const auto with = [](auto change) {
        store::LayerEntry entry = test::file("dir/bad\nname", "x");
        change(entry);
        return error_of({entry});
    };
    CHECK_THAT(with([](auto& e) { e.metadata.mode = 010000; }), ContainsSubstring("more than 12 bits"));
    CHECK_THAT(with([](auto& e) { e.metadata.mtime.nanoseconds = 1'000'000'000; }), ContainsSubstring("ns"));
    CHECK_THAT(with([](auto& e) { e.metadata.xattrs[""] = "x"; }), ContainsSubstring("bad name"));
    CHECK_THAT(with([](auto& e) { e.metadata.xattrs[std::string(256, 'x')] = "x"; }), ContainsSubstring("bad name"));
    CHECK_THAT(with([](auto& e) { e.metadata.xattrs["x"] = std::string(65537, 'x'); }), ContainsSubstring("64 KiB"));
    CHECK_THAT(with([](auto& e) { e.metadata.xattrs[std::string("a\0b", 3)] = "x"; }), ContainsSubstring("bad name"));
    CHECK_THAT(with([](auto& e) { e.metadata.type = static_cast<store::FileType>(7); }), ContainsSubstring("type"));
    CHECK_THAT(with([](auto& e) { e.metadata.type = store::FileType::symlink; }), ContainsSubstring("target"));
    CHECK_THAT(with([](auto& e) {
                   e.metadata.type = store::FileType::symlink;
                   e.metadata.link_target = std::string(4096, 'x');
               }),
               ContainsSubstring("longer than 4095"));
    CHECK_THAT(with([](auto& e) { e.size_bytes = 2; }), ContainsSubstring("not of the entry's size"));
    CHECK_THAT(with([](auto& e) { e.content.push_back(store::ContentPart::hole(0)); }),
               ContainsSubstring("empty part"));
    CHECK_THAT(with([](auto& e) { e.content[0].size_bytes = 262145; }), ContainsSubstring("too large"));
    CHECK_THAT(with([](auto& e) { e.content[0].chunk = store::ContentPart::no_chunk(); }), ContainsSubstring("digest"));
    CHECK_THAT(with([](auto& e) { e.content.push_back(store::ContentPart::hole(~std::uint64_t{0} >> 1)); }),
               ContainsSubstring("larger than a file can be"));
    CHECK_THAT(with([](auto& e) { e.path += '\0'; }), ContainsSubstring("zero byte"));
}

TEST_CASE("the largest values that a file can have are kept", "[store][tree]") {
    const test::TempDir folder;
    store::LayerEntry entry = test::symlink("l", std::string(4095, 't'));
    entry.metadata.mtime = {std::numeric_limits<std::int64_t>::min(), 999'999'999};
    entry.metadata.xattrs["user." + std::string(250, 'x')] = std::string(65536, 'v');
    store::LayerEntry huge = test::file("huge");
    huge.content = {store::ContentPart::hole(~std::uint64_t{0} >> 1)};
    huge.size_bytes = ~std::uint64_t{0} >> 1;
    store::LayerEntry huge_2 = huge;
    huge_2.path = "huge2";
    store::LayerEntry huge_3 = huge;
    huge_3.path = "huge3";
    const auto tree = test::built_tree({{entry, huge, huge_2, huge_3}}, folder.path());
    const auto ino = tree->lookup(store::kTreeRoot, "l")->ino;
    CHECK(tree->link_target(ino).size() == 4095);
    CHECK(tree->attributes(ino).mtime == entry.metadata.mtime);
    CHECK(tree->xattrs(ino).front().second.size() == 65536);
    CHECK(tree->attributes(tree->lookup(store::kTreeRoot, "huge")->ino).size_bytes == ~std::uint64_t{0} >> 1);
    CHECK(tree->logical_bytes() == ~std::uint64_t{0});
    CHECK(tree->check().empty());
}
