#include "store/tar_writer.h"

#include "store/error.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/imported_layer.h"
#include "support/oci_archive.h"

#include <sys/wait.h>

#include <cstdlib>
#include <random>

using namespace lamina;
using store::FileType;
using store::LayerEntry;

namespace {

using Map = std::vector<store::TarWriter::Range>;

struct Written {
    LayerEntry entry;
    std::string data;  ///< Of a regular file.
    Map map = {};
};

std::string tar_of(const std::vector<Written>& entries) {
    test::StringSink out;
    store::TarWriter writer(out);
    for (const Written& written : entries) {
        writer.begin(written.entry, written.map);
        for (std::size_t i = 0; i < written.data.size(); i += 1000) {
            writer.write_body(store::as_bytes(std::string_view(written.data).substr(i, 1000)));
        }
    }
    writer.finish();
    return out.text;
}

LayerEntry entry(const std::string& path, const store::Metadata& metadata) {
    LayerEntry out;
    out.path = path;
    out.metadata = metadata;
    return out;
}

Written file(const std::string& path, const std::string& data, store::Metadata metadata = {.mode = 0644}) {
    Written out{.entry = entry(path, metadata), .data = data};
    out.entry.size_bytes = data.size();
    return out;
}

/// The one entry that comes back when `written` is read; its content is checked and taken away.
LayerEntry read_back(const Written& written) {
    const auto imported = test::import_tar(tar_of({written}));
    auto entries = imported->entries();
    REQUIRE(entries.size() == 1);
    entries[0].content.clear();
    return entries[0];
}

void check_same(const Written& written) {
    CAPTURE(written.entry.path);
    const LayerEntry back = read_back(written);
    CHECK(back.path == written.entry.path);
    CHECK(back.metadata == written.entry.metadata);
    CHECK(back.size_bytes == written.entry.size_bytes);
}

}  // namespace

TEST_CASE("every kind of entry comes back as it was written", "[store][tar_writer]") {
    const store::Timestamp time{1'700'000'000, 123'456'789};
    check_same(file("a", "hello", {.mode = 0644, .uid = 1, .gid = 2, .mtime = time}));
    check_same(file("empty", "", {.mode = 04755}));
    check_same({entry("", {.type = FileType::directory, .mode = 0755}), ""});
    check_same({entry("folder", {.type = FileType::directory, .mode = 01777}), ""});
    check_same({entry("link", {.type = FileType::symlink, .mode = 0777, .link_target = "/to/there"}), ""});
    check_same(
        {entry("null", {.type = FileType::char_device, .mode = 0666, .device_major = 1, .device_minor = 3}), ""});
    check_same({entry("b", {.type = FileType::block_device, .device_major = 0xfff, .device_minor = 0xfffff}), ""});
    check_same({entry("pipe", {.type = FileType::fifo, .mode = 0600}), ""});
}

TEST_CASE("times, ids, names and xattrs of any size are kept", "[store][tar_writer]") {
    for (const store::Timestamp time : {store::Timestamp{0, 1},
                                        {-1, 0},
                                        {-1, 1},
                                        {-5, 999'999'999},
                                        {1ll << 33, 0},
                                        {INT64_MAX, 999'999'999},
                                        {INT64_MIN + 1, 0},
                                        {INT64_MIN, 1}}) {
        CAPTURE(time.seconds, time.nanoseconds);
        check_same(file("a", "", {.mtime = time}));
    }
    for (const std::uint32_t id : {07777777u, 010000000u, 0xffffffffu})
        check_same(file("a", "", {.uid = id, .gid = id}));
    for (const std::size_t size : {99u, 100u, 101u, 255u}) {
        check_same(file(std::string(size, 'n'), "x"));
        check_same({entry(std::string(size, 'd'), {.type = FileType::directory}), ""});
        check_same({entry("l", {.type = FileType::symlink, .link_target = std::string(size, 't')}), ""});
    }
    check_same(file("\xff\xfe\n\xc3\xa4", "x"));
    const std::map<std::string, std::string> xattrs = {{"user.empty", ""},
                                                       {"user.a=b%3D", "v"},
                                                       {"security.capability", std::string("\1\0\0\2\n=", 6)},
                                                       {"user.big", std::string(60'000, 'x')}};
    check_same(file("x", "body", {.xattrs = xattrs}));
}

TEST_CASE("a hard link carries its target and its file's attributes", "[store][tar_writer]") {
    Written link{.entry = entry("b", {.mode = 0755, .uid = 7}), .data = ""};
    link.entry.is_hardlink = true;
    link.entry.hardlink_target = std::string(150, 'a');
    const LayerEntry back = read_back(link);
    CHECK(back.is_hardlink);
    CHECK(back.hardlink_target == link.entry.hardlink_target);
    CHECK(back.metadata.uid == 7);
}

TEST_CASE("holes of a sparse file stay holes", "[store][tar_writer]") {
    Written sparse = file("sparse", std::string(512, 'a') + "tail");
    sparse.map = {{4096, 512}, {1'000'000, 4}};
    sparse.entry.size_bytes = 2'000'000;
    const auto imported = test::import_tar(tar_of({sparse, file("next", "n")}));
    const LayerEntry back = imported->entry("sparse");
    CHECK(back.size_bytes == 2'000'000);
    REQUIRE(back.content.size() == 5);
    CHECK(back.content[0] == store::ContentPart::hole(4096));
    CHECK(back.content[4].is_hole);
    std::string expected(2'000'000, '\0');
    expected.replace(4096, 512, std::string(512, 'a')).replace(1'000'000, 4, "tail");
    CHECK(imported->body("sparse") == expected);
    CHECK(imported->body("next") == "n");

    Written hole = file("hole", "");
    hole.map = {{1'000'000, 0}};
    hole.entry.size_bytes = 1'000'000;
    check_same(hole);
}

TEST_CASE("a socket is left out", "[store][tar_writer]") {
    const auto imported = test::import_tar(tar_of({{entry("s", {.type = FileType::socket}), ""}, file("a", "x")}));
    CHECK(imported->entries().size() == 1);
}

TEST_CASE("the same entries give the same bytes, in whole blocks", "[store][tar_writer]") {
    const std::vector<Written> entries = {file("a", std::string(513, 'x'), {.mtime = {1, 1}}), file("b", "")};
    CHECK(tar_of(entries) == tar_of(entries));
    CHECK(tar_of(entries).size() == 512 * (3 + 2 + 1 + 2));
}

TEST_CASE("a body that is not what its header says is refused", "[store][tar_writer]") {
    test::StringSink out;
    store::TarWriter writer(out);
    writer.begin(file("a", "12345").entry);
    writer.write_body(store::as_bytes("1234"));
    CHECK_THROWS_AS(writer.write_body(store::as_bytes("56")), store::Error);
    CHECK_THROWS_AS(writer.finish(), store::Error);
    CHECK_THROWS_AS(writer.begin(file("b", "").entry), store::Error);
    writer.write_body(store::as_bytes("5"));
    writer.finish();
}

TEST_CASE("ranges of any size and place give the file back, in ranges of whole blocks", "[store][tar_writer]") {
    std::mt19937 random(11);
    for (int round = 0; round < 200; ++round) {
        Written sparse = file("s", "");
        std::string expected;
        while (expected.size() < 20'000) {
            expected += std::string(random() % 3 == 0 ? random() % 600 : random() % 5000, '\0');
            const std::size_t size = random() % 3 == 0 ? random() % 3 : random() % 1500;
            sparse.map.push_back({expected.size(), size});
            sparse.data += std::string(size, static_cast<char>('a' + random() % 26));
            expected += sparse.data.substr(sparse.data.size() - size);
        }
        expected += std::string(random() % 2 * (random() % 2000), '\0');
        sparse.entry.size_bytes = expected.size();
        CAPTURE(round);
        const auto imported = test::import_tar(tar_of({sparse, file("next", "n")}));
        const bool is_same = imported->body("s") == expected;
        CHECK(is_same);
        CHECK(imported->body("next") == "n");
    }
}

TEST_CASE("a data map that is out of order or leaves the file is refused", "[store][tar_writer]") {
    for (const Map& map : {Map{{10, 2}, {11, 2}}, Map{{99, 2}}, Map{{101, 0}}, Map{{1, UINT64_MAX}}}) {
        test::StringSink out;
        store::TarWriter writer(out);
        Written sparse = file("s", "");
        sparse.entry.size_bytes = 100;
        CHECK_THROWS_AS(writer.begin(sparse.entry, map), store::Error);
    }
}

TEST_CASE("GNU tar reads what we write, holes, times and long names too", "[store][tar_writer]") {
    const test::TempDir folder;
    const std::string name = std::string(90, 'd') + "/" + std::string(90, 'f');
    Written sparse = file("sparse", std::string(500, 'a') + std::string(1001, 'b') + "tail");
    sparse.map = {{4097, 500}, {65'530, 1001}, {1'000'000, 4}};
    sparse.entry.size_bytes = 2'000'000;
    const std::string tar = tar_of({{entry(std::string(90, 'd'), {.type = FileType::directory, .mode = 0755}), ""},
                                    file(name, "long", {.mode = 0640, .mtime = {-1, 250'000'000}}),
                                    sparse});
    test::write_text(folder / "t.tar", tar);
    const std::string command = "cd '" + folder.path() + "' && tar -xf t.tar 2>err && stat -c '%.9Y %a %s' " + name +
                                " sparse >out && cmp -s <(head -c 1000004 sparse | tail -c 4) <(printf tail)";
    const int status = std::system(("bash -c \"" + command + "\"").c_str());
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    CHECK(test::read_text(folder / "out") == "-0.750000000 640 4\n0.000000000 644 2000000\n");
    std::string expected(2'000'000, '\0');
    expected.replace(4097, 500, std::string(500, 'a')).replace(65'530, 1001, std::string(1001, 'b'));
    expected.replace(1'000'000, 4, "tail");
    const bool is_same = test::read_text(folder / "sparse") == expected;
    CHECK(is_same);
}
