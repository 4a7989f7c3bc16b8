#include "store/tar_reader.h"

#include "store/error.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/tar_builder.h"

#include <algorithm>
#include <functional>
#include <random>
#include <set>

using namespace lamina;
using test::RawHeader;
using test::TarBuilder;

namespace {

struct ReadEntry : store::TarEntry {
    std::string body;
};

std::vector<ReadEntry> read(const std::string& tar, const store::LayerLimits& limits = {},
                            std::size_t piece_bytes = SIZE_MAX) {
    test::TextSource source(tar, piece_bytes);
    store::HashedTar input(source, {});
    test::StringSink literals;
    store::LayerReader reader(input, limits, &literals);
    std::vector<ReadEntry> out;
    std::uint64_t body_bytes = 0;
    while (auto entry = reader.next()) {
        out.push_back({std::move(*entry), ""});
        for (auto data = reader.peek_body(1); !data.empty(); data = reader.peek_body(1)) {
            out.back().body += test::text_of(data);
            reader.consume_body(data.size());
        }
        body_bytes += out.back().body.size();
    }
    CHECK(literals.text.size() + body_bytes == tar.size());
    CHECK(input.finish().digest == store::Digest::of(store::as_bytes(tar)));
    return out;
}

std::string problem(const std::string& tar, const store::LayerLimits& limits = {}) {
    return test::error_of([&] { read(tar, limits); });
}

ReadEntry only(const std::string& tar, const store::LayerLimits& limits = {}) {
    const auto entries = read(tar, limits);
    REQUIRE(entries.size() == 1);
    return entries[0];
}

const std::string kGnuMagic("ustar  \0", 8);

/// One of everything.
TarBuilder everything() {
    TarBuilder out;
    out.pax({{"comment", "x"}}, 'g');
    out.folder("folder").file("folder/file", "hello", {.xattrs = {{"user.x", "y"}}});
    out.file(std::string(120, 'n') + "/" + std::string(200, 'm'), "long", {.mtime = {-5, 250'000'000}});
    out.symlink("link", "folder/file").hardlink("hard", "folder/file");
    out.device("null", '3', {1, 3}).device("disk", '4', {8, 1}).fifo("pipe");
    out.sparse("holes", 1'000'000, {{1000, 5}, {500'000, 3}}, "abcdexyz");
    out.long_name("from/gnu/" + std::string(150, 'g')).raw({.name = "from/gnu", .magic = kGnuMagic});
    return out;
}

}  // namespace

TEST_CASE("paths come out relative, without empty or dot components and without trailing slash", "[store][tar]") {
    const std::vector<std::pair<std::string, std::string>> table = {
        {"a", "a"},       {"./a", "a"},         {"a//b", "a/b"}, {"a/./b", "a/b"},
        {"././a/.", "a"}, {".a/..b", ".a/..b"}, {"...", "..."},
    };
    for (const auto& [name, path] : table) {
        CAPTURE(name);
        CHECK(only(TarBuilder().raw({.name = name}).tar()).entry.path == path);
    }
    CHECK(only(TarBuilder().raw({.name = "./", .type_flag = '5'}).tar()).entry.path.empty());
    CHECK(only(TarBuilder().raw({.name = "a/b//", .type_flag = '5'}).tar()).entry.path == "a/b");
}

TEST_CASE("what an entry says comes out as it is", "[store][tar]") {
    const auto entries = read(everything().tar());
    REQUIRE(entries.size() == 10);
    using store::FileType;
    const auto& file = entries[1].entry;
    CHECK(file.path == "folder/file");
    CHECK(file.metadata.mode == 0644);
    CHECK(file.metadata.xattrs == std::map<std::string, std::string>{{"user.x", "y"}});
    CHECK(entries[1].body == "hello");
    CHECK(entries[0].entry.metadata.type == FileType::directory);
    CHECK(entries[2].entry.path.size() == 321);
    CHECK(entries[2].entry.metadata.mtime == store::Timestamp{-5, 250'000'000});
    CHECK(entries[3].entry.metadata.type == FileType::symlink);
    CHECK(entries[3].entry.metadata.link_target == "folder/file");
    CHECK(entries[4].entry.is_hardlink);
    CHECK(entries[4].entry.hardlink_target == "folder/file");
    CHECK(entries[5].entry.metadata.type == FileType::char_device);
    CHECK(entries[5].entry.metadata.device_minor == 3);
    CHECK(entries[6].entry.metadata.type == FileType::block_device);
    CHECK(entries[6].entry.metadata.device_major == 8);
    CHECK(entries[7].entry.metadata.type == FileType::fifo);
    CHECK(entries[8].entry.size_bytes == 1'000'000);
    CHECK(entries[8].body == "abcdexyz");
    CHECK(entries[9].entry.path == "from/gnu/" + std::string(150, 'g'));
}

TEST_CASE("a tar reads the same however its bytes arrive", "[store][tar]") {
    const std::string tar = everything().file("big", std::string(3'000'000, 'b')).tar();
    const auto expected = read(tar);
    for (const std::size_t piece : {1000u, 4097u, 100'000u}) {
        const auto entries = read(tar, {}, piece);
        REQUIRE(entries.size() == expected.size());
        for (std::size_t i = 0; i < entries.size(); ++i) CHECK(entries[i].body == expected[i].body);
    }
    CHECK(read(everything().tar(), {}, 1).size() == 10);
}

TEST_CASE("the prefix of a POSIX header belongs to the path, that of a GNU or V7 header does not", "[store][tar]") {
    const RawHeader posix{.name = "b", .tail = "a"};
    CHECK(only(TarBuilder().raw(posix).tar()).entry.path == "a/b");
    RawHeader gnu = posix;
    gnu.magic = kGnuMagic;
    CHECK(only(TarBuilder().raw(gnu).tar()).entry.path == "b");
    RawHeader v7 = posix;
    v7.magic = "";
    CHECK(only(TarBuilder().raw(v7).tar()).entry.path == "b");
}

TEST_CASE("a V7 entry whose name ends in a slash is a folder", "[store][tar]") {
    const auto entry = only(TarBuilder().raw({.name = "d/", .type_flag = '\0', .magic = ""}).tar());
    CHECK(entry.entry.metadata.type == store::FileType::directory);
}

TEST_CASE("numbers may be octal with any padding, or base-256", "[store][tar]") {
    const auto mtime = [](const std::string& text) {
        return only(TarBuilder().raw({.name = "a", .mtime = text}).tar()).entry.metadata.mtime.seconds;
    };
    CHECK(mtime("00000000010") == 8);
    CHECK(mtime("       10  ") == 8);
    CHECK(mtime(std::string("10\0garbage", 10)) == 8);
    CHECK(mtime("777777777777") == 0777777777777);
    CHECK(mtime("") == 0);
    CHECK(mtime(test::base_256(-1)) == -1);
    CHECK(mtime(test::base_256(-1'000'000'000'000)) == -1'000'000'000'000);
    CHECK(mtime(test::base_256(INT64_MAX)) == INT64_MAX);
    CHECK(mtime(test::base_256(INT64_MIN)) == INT64_MIN);
    CHECK(only(TarBuilder().raw({.name = "a", .uid = test::base_256(0xffffffff, 8)}).tar()).entry.metadata.uid ==
          0xffffffff);
}

TEST_CASE("extended headers override the header, local ones override global ones, empty ones give it back",
          "[store][tar]") {
    TarBuilder tar;
    tar.pax({{"uid", "7"}, {"mtime", "1.5"}}, 'g');
    tar.pax({{"path", "a/long"}, {"uid", "4000000000"}, {"gid", "5"}}).raw({.name = "short"});
    tar.raw({.name = "second"});
    tar.pax({{"uid", ""}, {"mtime", "-1.000000001"}}).raw({.name = "third", .uid = "0000011"});
    const auto entries = read(tar.tar());
    REQUIRE(entries.size() == 3);
    CHECK(entries[0].entry.path == "a/long");
    CHECK(entries[0].entry.metadata.uid == 4'000'000'000);
    CHECK(entries[0].entry.metadata.gid == 5);
    CHECK(entries[0].entry.metadata.mtime == store::Timestamp{1, 500'000'000});
    CHECK(entries[1].entry.metadata.uid == 7);
    CHECK(entries[2].entry.metadata.uid == 9);
    CHECK(entries[2].entry.metadata.mtime == store::Timestamp{-2, 999'999'999});
}

TEST_CASE("the size of a body may stand in the extended header", "[store][tar]") {
    const auto entries = read(TarBuilder().pax({{"size", "5"}}).raw({.name = "a"}, "hello").file("b", "x").tar());
    REQUIRE(entries.size() == 2);
    CHECK(entries[0].body == "hello");
    CHECK(entries[1].body == "x");
}

TEST_CASE("times in decimal are rounded down to nanoseconds", "[store][tar]") {
    using store::parse_pax_time;
    CHECK(parse_pax_time("0") == store::Timestamp{0, 0});
    CHECK(parse_pax_time("1.") == store::Timestamp{1, 0});
    CHECK(parse_pax_time("1.0000000019") == store::Timestamp{1, 1});
    CHECK(parse_pax_time("-0.5") == store::Timestamp{-1, 500'000'000});
    CHECK(parse_pax_time("-0.0000000001") == store::Timestamp{-1, 999'999'999});
    CHECK(parse_pax_time("-1.9999999999") == store::Timestamp{-2, 0});
    CHECK(parse_pax_time("-9223372036854775807.5") == store::Timestamp{INT64_MIN, 500'000'000});
    for (const char* text : {"", "-", ".5", "1e3", "+1", " 1", "1.5x", "9223372036854775808", "--1"}) {
        CAPTURE(text);
        CHECK_THROWS_AS(parse_pax_time(text), store::Error);
    }
}

TEST_CASE("xattrs are raw bytes, may be empty, and names with an equals sign are told apart from values",
          "[store][tar]") {
    const std::string raw("\0\xff\n=x", 5);
    const auto entry = only(TarBuilder()
                                .pax({{"SCHILY.xattr.security.capability", raw},
                                      {"SCHILY.xattr.user.empty", ""},
                                      {"SCHILY.xattr.user.a%3Db%25", "v"}})
                                .raw({.name = "f"})
                                .tar());
    CHECK(entry.entry.metadata.xattrs ==
          std::map<std::string, std::string>{{"security.capability", raw}, {"user.a=b%", "v"}, {"user.empty", ""}});
}

TEST_CASE("whatever a size field says, links, folders and devices have no body", "[store][tar]") {
    for (const char type : {'1', '2', '3', '4', '5', '6'}) {
        CAPTURE(type);
        const RawHeader header{.name = "a", .type_flag = type, .size = "00000001000", .link_name = "b"};
        const auto entries = read(TarBuilder().raw(header).file("next", "").tar());
        CHECK(entries.size() == 2);
    }
}

TEST_CASE("an archive may end without end marker, with one zero block, or with anything after the marker",
          "[store][tar]") {
    const TarBuilder tar = TarBuilder().file("a", "b");
    CHECK(read(tar.open_tar()).size() == 1);
    CHECK(read(tar.open_tar() + std::string(512, '\0')).size() == 1);
    CHECK(read(tar.open_tar() + std::string(600, '\0')).size() == 1);
    CHECK(read(tar.tar() + TarBuilder().file("not seen", "").tar()).size() == 1);
    CHECK(read("").empty());
    CHECK_THAT(problem(tar.open_tar() + std::string(512, '\0') + TarBuilder().file("b", "").tar()),
               Catch::Matchers::ContainsSubstring("no end marker"));
}

TEST_CASE("all four kinds of sparse file give the same map", "[store][tar]") {
    const std::vector<store::TarRange> map = {{512, 512}, {4096, 1024}, {10'000, 0}};
    const std::string data = std::string(512, 'a') + std::string(1024, 'b');
    TarBuilder tar;
    tar.sparse("new", 10'000, map, data);
    tar.pax({{"GNU.sparse.size", "10000"},
             {"GNU.sparse.numblocks", "3"},
             {"GNU.sparse.offset", "512"},
             {"GNU.sparse.numbytes", "512"},
             {"GNU.sparse.offset", "4096"},
             {"GNU.sparse.numbytes", "1024"},
             {"GNU.sparse.offset", "10000"},
             {"GNU.sparse.numbytes", "0"}});
    tar.raw({.name = "zero", .size = test::octal(data.size())}, data);
    tar.pax({{"GNU.sparse.size", "10000"},
             {"GNU.sparse.numblocks", "3"},
             {"GNU.sparse.name", "one"},
             {"GNU.sparse.map", "512,512,4096,1024,10000,0"}});
    tar.raw({.name = "GNUSparseFile.1/one", .size = test::octal(data.size())}, data);
    std::string tail(41, '\0');
    for (const auto& range : map) tail += test::octal(range.offset_bytes) + '\0' + test::octal(range.size_bytes) + '\0';
    tail.resize(138, '\0');
    tar.raw({.name = "old",
             .type_flag = 'S',
             .size = test::octal(data.size()),
             .magic = kGnuMagic,
             .tail = tail + test::octal(10'000)},
            data);
    const auto entries = read(tar.tar());
    REQUIRE(entries.size() == 4);
    std::set<std::string> names;
    for (const auto& entry : entries) {
        CAPTURE(entry.entry.path);
        names.insert(entry.entry.path);
        CHECK(entry.is_sparse);
        CHECK(entry.entry.size_bytes == 10'000);
        CHECK(entry.data_map == map);
        CHECK(entry.body == data);
    }
    CHECK(names == std::set<std::string>{"new", "zero", "one", "old"});
}

TEST_CASE("a bad path is refused by entry and offset", "[store][tar]") {
    const std::vector<std::pair<std::string, std::string>> table = {
        {"/etc/passwd", "path is absolute"}, {"//x", "path is absolute"},   {"..", "path has \"..\""},
        {"../x", "path has \"..\""},         {"a/../b", "path has \"..\""}, {"a/..", "path has \"..\""},
        {"./../x", "path has \"..\""},
    };
    for (const auto& [name, text] : table) {
        CAPTURE(name);
        const std::string front = TarBuilder().file("ok", "x").open_tar();
        const auto in_path = test::error_of([&] { read(front + TarBuilder().raw({.name = name}).tar()); });
        CHECK(in_path == "malformed: layer tar, offset 1024: entry \"" + name + "\": " + text);
        CHECK_THAT(problem(TarBuilder().raw({.name = "a", .type_flag = '1', .link_name = name}).tar()),
                   Catch::Matchers::ContainsSubstring("hard link to \"" + name + "\": " + text));
        CHECK_THAT(problem(TarBuilder().pax({{"path", name}}).raw({.name = "fine"}).tar()),
                   Catch::Matchers::ContainsSubstring(text));
        CHECK_THAT(problem(TarBuilder().long_name(name).raw({.name = "fine"}).tar()),
                   Catch::Matchers::ContainsSubstring(text));
    }
    CHECK(read(TarBuilder().symlink("a", "/../../etc").tar()).size() == 1);  // Only resolved inside a container.
}

TEST_CASE("what is ambiguous, out of range or unknown is refused", "[store][tar]") {
    using Pax = TarBuilder::Pax;
    const auto with = [](const Pax& pax, const RawHeader& header = {.name = "a"}) {
        return TarBuilder().pax(pax).raw(header).tar();
    };
    const auto raw = [](const RawHeader& header) { return TarBuilder().raw(header).tar(); };
    const std::string nul("a\0b", 3);
    const std::vector<std::pair<std::string, std::string>> table = {
        {raw({.name = "a", .type_flag = '9'}), "unknown type flag \"9\""},
        {raw({.name = "a", .type_flag = 'V'}), "unknown type flag"},
        {raw({.name = "a/"}), "ends in a slash"},
        {raw({.name = "."}), "the root is not a folder"},
        {raw({.name = ""}), "the root is not a folder"},
        {raw({.name = "a", .type_flag = '1'}), "hard link to nothing"},
        {raw({.name = "a", .type_flag = '1', .link_name = "./"}), "hard link to nothing"},
        {raw({.name = "a", .type_flag = '2'}), "symbolic link to nothing"},
        {raw({.name = "a", .size = test::base_256(-1)}), "size is negative"},
        {raw({.name = "a", .size = "0000000008"}), "size is not a number"},
        {raw({.name = "a", .size = std::string(12, '\xfe')}), "too large"},
        {raw({.name = "a", .size = "\x80\1"}), "too large"},
        {raw({.name = "a", .uid = test::base_256(-1, 8)}), "uid is negative"},
        {raw({.name = "a", .uid = test::base_256(1ll << 32, 8)}), "more than 32 bits"},
        {raw({.name = "a", .checksum = "000000"}), "checksum is wrong"},
        {raw({.name = "a", .type_flag = '3', .device_major = test::octal(0x1000, 7)}), "device number 4096"},
        {raw({.name = "a", .type_flag = '4', .device_minor = test::base_256(-1, 8)}), "device number"},
        {with({{"path", nul}}), "NUL"},
        {with({{"linkpath", nul}}, {.name = "a", .type_flag = '1'}), "NUL"},
        {with({{"linkpath", nul}}, {.name = "a", .type_flag = '2'}), "NUL"},
        {with({{"SCHILY.xattr." + nul, "x"}}), "xattr name"},
        {with({{"SCHILY.xattr.", "x"}}), "xattr name"},
        {with({{"uid", "4294967296"}}), "more than 32 bits"},
        {with({{"uid", "-1"}}), "is not a number"},
        {with({{"size", "99999999999999999999"}}), "too large"},
        {with({{"mtime", "today"}}), "is not a number"},
        {TarBuilder().pax({{"path", "a"}}, 'g').tar(), "global header"},
        {TarBuilder().pax({{"size", "1"}}, 'g').tar(), "global header"},
        {TarBuilder().pax({{"GNU.sparse.size", "1"}}, 'g').tar(), "global header"},
        {TarBuilder().pax({{"uid", "1"}}).pax({{"uid", "1"}}, 'g').file("a", "").tar(), "global header between"},
        {TarBuilder().pax({{"uid", "1"}}).tar(), "without an entry"},
        {TarBuilder().long_name("a").tar(), "without an entry"},
        {TarBuilder().long_name(nul).file("b", "").tar(), "long name has a NUL byte"},
    };
    for (const auto& [tar, text] : table) {
        CAPTURE(text);
        const std::string found = problem(tar);
        CHECK_THAT(found, Catch::Matchers::ContainsSubstring("malformed: layer tar, offset "));
        CHECK_THAT(found, Catch::Matchers::ContainsSubstring(text));
        CHECK(found.find('\n') == std::string::npos);
    }
}

TEST_CASE("a damaged extended header is refused", "[store][tar]") {
    for (const std::string body :
         {"x", "5 a=b", "7 a=b\n", "5 a=b\n", "6 a=bx", "6  a=b\n", "5 ab\n", "5 =b\n", "0 a=b\n", "3 \n", "-6 a=b\n",
          "99999999999999999999 a=b\n", "18446744073709551615 a=b\n", "6 a=b\n\n", "6 a=b\n6", "\n", " 6 a=b\n"}) {
        CAPTURE(body);
        const std::string tar = TarBuilder()
                                    .raw({.name = "x", .type_flag = 'x', .size = test::octal(body.size())}, body)
                                    .file("a", "")
                                    .tar();
        CHECK_THAT(problem(tar), Catch::Matchers::ContainsSubstring("malformed: "));
    }
}

TEST_CASE("a sparse map that is out of order, too large or does not add up is refused", "[store][tar]") {
    const auto sparse = [](std::uint64_t file_bytes, const std::vector<store::TarRange>& map, const std::string& data) {
        return problem(TarBuilder().sparse("s", file_bytes, map, data).tar());
    };
    using Catch::Matchers::ContainsSubstring;
    CHECK_THAT(sparse(100, {{10, 2}, {11, 2}}, "abcd"), ContainsSubstring("out of order"));
    CHECK_THAT(sparse(100, {{50, 2}, {10, 2}}, "abcd"), ContainsSubstring("out of order"));
    CHECK_THAT(sparse(100, {{99, 2}}, "ab"), ContainsSubstring("leaves the file"));
    CHECK_THAT(sparse(100, {{101, 0}}, ""), ContainsSubstring("leaves the file"));
    CHECK_THAT(sparse(100, {{1, INT64_MAX}}, "ab"), ContainsSubstring("leaves the file"));
    CHECK_THAT(sparse(100, {{1, 2}}, "abc"), ContainsSubstring("sparse map has 2 bytes"));
    CHECK_THAT(sparse(100, {{1, 2}}, "a"), ContainsSubstring("sparse map has 2 bytes"));
    const auto with = [](const TarBuilder::Pax& pax) {
        return problem(TarBuilder().pax(pax).raw({.name = "a"}).tar());
    };
    CHECK_THAT(with({{"GNU.sparse.map", "0,1"}}), ContainsSubstring("without the file's size"));
    CHECK_THAT(with({{"GNU.sparse.size", "9"}, {"GNU.sparse.map", "0"}}), ContainsSubstring("within a part"));
    CHECK_THAT(with({{"GNU.sparse.size", "9"}, {"GNU.sparse.map", "0,1,2"}}), ContainsSubstring("within a part"));
    CHECK_THAT(with({{"GNU.sparse.size", "9"}, {"GNU.sparse.map", "0,x"}}), ContainsSubstring("not a number"));
    CHECK_THAT(with({{"GNU.sparse.size", "9"}, {"GNU.sparse.offset", "0"}}), ContainsSubstring("within a part"));
    CHECK_THAT(with({{"GNU.sparse.offset", "0"}, {"GNU.sparse.offset", "0"}}), ContainsSubstring("two sparse offsets"));
    CHECK_THAT(with({{"GNU.sparse.size", "9"}}), ContainsSubstring("without a map"));
    CHECK_THAT(with({{"GNU.sparse.name", "b"}}), ContainsSubstring("without the file's size"));
    CHECK_THAT(with({{"GNU.sparse.minor", "0"}}), ContainsSubstring("without the file's size"));
    CHECK_THAT(with({{"GNU.sparse.numbytes", "0"}}), ContainsSubstring("without an offset"));
    CHECK_THAT(with({{"GNU.sparse.major", "2"}, {"GNU.sparse.realsize", "1"}}), ContainsSubstring("unknown sparse"));
    CHECK_THAT(with({{"GNU.sparse.major", "1"}, {"GNU.sparse.realsize", "1"}}),
               ContainsSubstring("larger than the body"));
    const TarBuilder::Pax pax = {{"GNU.sparse.size", "9"}};
    CHECK_THAT(problem(TarBuilder().pax(pax).folder("d").tar()), ContainsSubstring("of what is no file"));
}

TEST_CASE("limits hold at their value and refuse one more", "[store][tar]") {
    const auto is_fine = [](const std::string& tar, const store::LayerLimits& limits) {
        return problem(tar, limits).empty();
    };
    const auto name = [](std::size_t size) { return TarBuilder().file(std::string(size, 'n'), "").tar(); };
    CHECK(is_fine(name(255), {}));
    CHECK(!is_fine(name(256), {}));
    const auto path = [](std::size_t size) {
        std::string text;
        while (text.size() + 2 <= size) text += "a/";
        return TarBuilder().file(text + std::string(size - text.size(), 'b'), "").tar();
    };
    CHECK(is_fine(path(4095), {}));
    CHECK(!is_fine(path(4097), {}));
    CHECK(is_fine(TarBuilder().symlink("a", std::string(4096, 't')).tar(), {}));
    CHECK(!is_fine(TarBuilder().symlink("a", std::string(4097, 't')).tar(), {}));
    const auto xattr = [](std::size_t size) {
        return TarBuilder().file("a", "", {.xattrs = {{"user.a", "1"}, {"user.b", std::string(size, 'x')}}}).tar();
    };
    CHECK(is_fine(xattr(100), {.xattr_bytes = 113}));
    CHECK(!is_fine(xattr(100), {.xattr_bytes = 112}));
    const auto comment = [](std::size_t size) {
        return TarBuilder().pax({{"comment", std::string(size, 'x')}}).file("a", "").tar();
    };
    CHECK(is_fine(comment(1000), {.pax_bytes = 1014}));
    CHECK(!is_fine(comment(1000), {.pax_bytes = 1013}));
    const std::string three = TarBuilder().file("a", "").file("b", "").file("c", "").tar();
    CHECK(is_fine(three, {.entries = 3}));
    CHECK(!is_fine(three, {.entries = 2}));
    const std::string sparse = TarBuilder().sparse("s", 1 << 20, {{0, 1}, {9, 1}, {1 << 20, 0}}, "ab").tar();
    CHECK(is_fine(sparse, {.sparse_parts = 3}));
    CHECK(!is_fine(sparse, {.sparse_parts = 2}));
    CHECK(is_fine(sparse + "", {.file_bytes = 1 << 20}));
    CHECK(!is_fine(sparse, {.file_bytes = (1 << 20) - 1}));
    const std::string twice = TarBuilder().sparse("s", 1000, {{1000, 0}}, "").sparse("t", 1000, {{1000, 0}}, "").tar();
    CHECK(is_fine(twice, {.logical_bytes = 2000}));
    CHECK(!is_fine(twice, {.logical_bytes = 1999}));
}

TEST_CASE("a thousand extended headers for one entry, or one of 8 GiB, are refused at once", "[store][tar]") {
    TarBuilder many;
    for (int i = 0; i < 1000; ++i) many.pax({{"path", "a"}});
    CHECK_THAT(problem(many.tar()), Catch::Matchers::ContainsSubstring("too many extended headers"));
    const RawHeader large{.name = "x", .type_flag = 'x', .size = test::base_256(8ll << 30)};
    CHECK_THAT(problem(TarBuilder().raw(large).tar()), Catch::Matchers::ContainsSubstring("at most 1048576"));
    const RawHeader name{.name = "x", .type_flag = 'L', .size = test::base_256(INT64_MAX)};
    CHECK_THAT(problem(TarBuilder().raw(name).tar()), Catch::Matchers::ContainsSubstring("at most 1048576"));
}

TEST_CASE("a sparse file of 8 EiB is refused", "[store][tar]") {
    for (const std::uint64_t size : {std::uint64_t{INT64_MAX}, std::uint64_t{1} << 63}) {
        CHECK_THAT(problem(TarBuilder().sparse("s", size, {{size, 0}}, "").tar()),
                   Catch::Matchers::ContainsSubstring("malformed: "));
    }
}

TEST_CASE("a tar that is cut anywhere is refused, or ends at the end of an entry", "[store][tar]") {
    const TarBuilder builder = everything();
    const std::string tar = builder.open_tar();
    std::set<std::size_t> entry_ends = {0, 1024};  // Nothing, or only the global header.
    const auto entries = read(tar);
    for (std::size_t i = 1; i < entries.size(); ++i) entry_ends.insert(entries[i].offset_bytes);
    for (std::size_t size = 0; size < tar.size(); ++size) {
        if (size % 512 != 0 && size % 7 != 0) continue;
        const std::string error = problem(tar.substr(0, size));
        if (error.empty() == entry_ends.contains(size)) continue;
        CAPTURE(size, error);
        FAIL("cut without notice");
    }
}

TEST_CASE("a header with one wrong bit is refused", "[store][tar]") {
    const std::string tar = TarBuilder().file("folder/file", "hello").tar();
    for (std::size_t bit = 0; bit < 512 * 8; ++bit) {
        if (bit / 8 == 148 || bit / 8 == 154 || bit / 8 == 155) continue;  // Padding of the checksum may differ.
        std::string broken = tar;
        broken[bit / 8] = static_cast<char>(broken[bit / 8] ^ (1 << bit % 8));
        if (problem(broken).starts_with("malformed: ")) continue;
        CAPTURE(bit);
        FAIL("a wrong bit was not seen");
    }
}

TEST_CASE("random damage ends in a tar that reads or in one error of one line", "[store][tar]") {
    const std::string tar = everything().tar();
    std::mt19937 random(20240601);
    for (int round = 0; round < 3000; ++round) {
        std::string broken = tar;
        for (int i = 0; i < 3; ++i) broken[random() % broken.size()] = static_cast<char>(random());
        const std::string error = problem(broken);
        CHECK((error.empty() || error.starts_with("malformed: layer tar, offset ")));
        CHECK(std::ranges::all_of(error, [](char c) { return c >= ' ' && c < 0x7f; }));
    }
}
