#include "store/directory_source.h"

#include "store/error.h"
#include "store/file.h"
#include "store/tar_input.h"
#include "store/tar_reader.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/tar_builder.h"
#include "support/temp_dir.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;

namespace {

std::string tar_of(const std::string& folder) {
    return test::read_all(*store::DirectorySource(folder).open_layer(0, 0));
}

struct Entries {
    std::vector<std::string> order;
    std::map<std::string, store::TarEntry> by_path;
    std::map<std::string, std::string> bodies;  ///< Data only, without holes.
};

Entries entries_of(const std::string& tar) {
    test::TextSource source(tar);
    store::HashedTar input(source, {});
    store::LayerReader reader(input, {}, nullptr);
    Entries entries;
    while (auto entry = reader.next()) {
        const std::string path = entry->entry.path;
        for (auto piece = reader.peek_body(1); !piece.empty(); piece = reader.peek_body(1)) {
            entries.bodies[path] += test::text_of(piece);
            reader.consume_body(piece.size());
        }
        entries.order.push_back(path);
        entries.by_path.emplace(path, *std::move(entry));
    }
    return entries;
}

void set_time(const std::string& path, std::int64_t seconds, long nanoseconds) {
    const timespec times[2] = {{seconds, nanoseconds}, {seconds, nanoseconds}};
    REQUIRE(::utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW) == 0);
}

}  // namespace

TEST_CASE("a folder is one image of one layer, of which nothing is known before", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "f", "x");
    const auto source = store::open_source("dir:" + folder.path(), store::oci::Platform::host());
    const auto images = source->images();
    REQUIRE(images.size() == 1);
    REQUIRE(images[0].layers.size() == 1);
    CHECK_FALSE(images[0].layers[0].diff_id);
    CHECK_FALSE(images[0].layers[0].blob);
    CHECK(images[0].config.empty());
    CHECK(entries_of(test::read_all(*source->open_layer(0, 0))).bodies["f"] == "x");
}

TEST_CASE("names come sorted by their bytes, a folder before what is in it", "[store][source]") {
    const test::TempDir folder;
    for (const std::string path : {"b/2", "b/1", "a", "b-c", "B", "\xc3\xa4", "b.d/x"})
        test::write_text(folder / path, "");
    const std::vector<std::string> expected = {"", "B", "a", "b", "b/1", "b/2", "b-c", "b.d", "b.d/x", "\xc3\xa4"};
    CHECK(entries_of(tar_of(folder.path())).order == expected);
    CHECK(tar_of(folder.path()) == tar_of(folder.path() + "//"));
}

TEST_CASE("attributes, times, links and xattrs of a folder's files are kept", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "d/f", "hello");
    REQUIRE(::chmod((folder / "d/f").c_str(), 06751) == 0);
    REQUIRE(::link((folder / "d/f").c_str(), (folder / "d/g").c_str()) == 0);
    REQUIRE(::symlink("/etc/passwd", (folder / "link").c_str()) == 0);
    REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
    REQUIRE(::setxattr((folder / "d").c_str(), "user.a", "b\0c", 3, 0) == 0);
    set_time(folder / "d/f", -5, 250'000'000);
    set_time(folder / "link", 7, 1);
    set_time(folder / "d", 1'700'000'000, 999'999'999);

    const Entries entries = entries_of(tar_of(folder.path()));
    const auto& file = entries.by_path.at("d/f").entry;
    CHECK(entries.bodies.at("d/f") == "hello");
    CHECK(file.metadata.mode == 06751);
    CHECK(file.metadata.uid == ::getuid());
    CHECK(file.metadata.gid == ::getgid());
    CHECK(file.metadata.mtime == store::Timestamp{-5, 250'000'000});
    CHECK(entries.by_path.at("d/g").entry.is_hardlink);
    CHECK(entries.by_path.at("d/g").entry.hardlink_target == "d/f");
    CHECK(entries.by_path.at("link").entry.metadata.link_target == "/etc/passwd");
    CHECK(entries.by_path.at("link").entry.metadata.mtime == store::Timestamp{7, 1});
    CHECK(entries.by_path.at("fifo").entry.metadata.type == store::FileType::fifo);
    const auto& directory = entries.by_path.at("d").entry.metadata;
    CHECK(directory.mtime == store::Timestamp{1'700'000'000, 999'999'999});
    CHECK(directory.xattrs == std::map<std::string, std::string>{{"user.a", std::string("b\0c", 3)}});
}

TEST_CASE("devices, owners and capabilities are kept", "[store][source][root]") {
    const test::TempDir folder;
    test::write_text(folder / "f", "x");
    if (::mknod((folder / "null").c_str(), S_IFCHR | 0666, makedev(1, 3)) != 0) {
        WARN("skipped: needs CAP_MKNOD");
        return;
    }
    REQUIRE(::mknod((folder / "disk").c_str(), S_IFBLK | 0600, makedev(259, 70000)) == 0);
    REQUIRE(::lchown((folder / "f").c_str(), 3'000'000'000u, 12345678) == 0);
    REQUIRE(::setxattr((folder / "f").c_str(), "trusted.t", "1", 1, 0) == 0);
    const Entries entries = entries_of(tar_of(folder.path()));
    CHECK(entries.by_path.at("null").entry.metadata.type == store::FileType::char_device);
    CHECK(entries.by_path.at("null").entry.metadata.device_minor == 3);
    CHECK(entries.by_path.at("disk").entry.metadata.device_major == 259);
    CHECK(entries.by_path.at("disk").entry.metadata.device_minor == 70000);
    CHECK(entries.by_path.at("f").entry.metadata.uid == 3'000'000'000u);
    CHECK(entries.by_path.at("f").entry.metadata.gid == 12345678);
    CHECK(entries.by_path.at("f").entry.metadata.xattrs.contains("trusted.t"));
}

TEST_CASE("a link is stored, never followed, even where a folder is wanted", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "outside/secret", "x");
    store::make_folders(folder / "in");
    REQUIRE(::symlink("../outside", (folder / "in/d").c_str()) == 0);
    const std::vector<std::string> expected = {"", "d"};
    CHECK(entries_of(tar_of(folder / "in")).order == expected);
}

TEST_CASE("holes are kept as holes", "[store][source]") {
    const test::TempDir folder;
    const std::string path = folder / "sparse";
    const store::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    REQUIRE(::ftruncate(fd.get(), 1ll << 40) == 0);
    REQUIRE(::pwrite(fd.get(), "middle", 6, 1 << 30) == 6);
    REQUIRE(::truncate(path.c_str(), 1ll << 40) == 0);
    test::write_text(folder / "empty", "");
    const store::UniqueFd hole(::open((folder / "hole").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    REQUIRE(::ftruncate(hole.get(), 12345) == 0);

    const std::string tar = tar_of(folder.path());
    CHECK(tar.size() < 1 << 20);
    const Entries entries = entries_of(tar);
    const store::TarEntry& sparse = entries.by_path.at("sparse");
    CHECK(sparse.entry.size_bytes == 1ull << 40);
    REQUIRE_FALSE(sparse.data_map.empty());
    CHECK(sparse.data_map[0].offset_bytes <= 1 << 30);
    CHECK(sparse.data_map[0].offset_bytes + sparse.data_map[0].size_bytes >= (1 << 30) + 6);
    CHECK(entries.bodies.at("sparse").find("middle") == (1 << 30) - sparse.data_map[0].offset_bytes);
    CHECK(entries.by_path.at("hole").entry.size_bytes == 12345);
    CHECK(entries.by_path.at("hole").stored_bytes == 0);
    CHECK(entries.by_path.at("empty").entry.size_bytes == 0);
}

TEST_CASE("sockets are left out", "[store][source]") {
    const test::TempDir folder;
    const store::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = folder / "s";
    REQUIRE(path.size() < sizeof address.sun_path);
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    REQUIRE(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    CHECK(entries_of(tar_of(folder.path())).order.size() == 1);
}

TEST_CASE("long names, long links and files of every size around a block are kept", "[store][source]") {
    const test::TempDir folder;
    const std::string name(255, 'n');
    test::write_text(folder / name + "/" + name, "deep");
    REQUIRE(::symlink(std::string(3000, 'l').c_str(), (folder / "link").c_str()) == 0);
    for (const std::size_t size : {1u, 511u, 512u, 513u, 262143u, 262144u, 262145u, 600000u}) {
        test::write_text(folder / std::to_string(size), std::string(size, 's'));
    }
    const Entries entries = entries_of(tar_of(folder.path()));
    CHECK(entries.bodies.at(name + "/" + name) == "deep");
    CHECK(entries.by_path.at("link").entry.metadata.link_target == std::string(3000, 'l'));
    CHECK(entries.bodies.at("262145").size() == 262145);
    CHECK(entries.bodies.at("600000").size() == 600000);
    CHECK(entries.bodies.at("512").size() == 512);
}

TEST_CASE("names that would delete something in a layer are refused", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "d/.wh.x", "");
    CHECK_THAT(
        test::error_of([&] { tar_of(folder.path()); }),
        ContainsSubstring("malformed: " + (folder / "d/.wh.x") + ": a name in a layer must not begin with \".wh.\""));
}

TEST_CASE("an error about a strange name is still one line", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "a\nb/.wh.x", "");
    CHECK_THAT(test::error_of([&] { tar_of(folder.path()); }), ContainsSubstring("\"a\\x0ab/.wh.x\""));
}

TEST_CASE("folders nested too deep are refused", "[store][source]") {
    const test::TempDir folder;
    std::string path = folder.path();
    for (int i = 0; i < 257; ++i) REQUIRE(::mkdir((path += "/d").c_str(), 0700) == 0);
    CHECK_THAT(test::error_of([&] { tar_of(folder.path()); }), ContainsSubstring("nested deeper than 256"));
}

TEST_CASE("a file that changes while it is read is an error", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "f", std::string(1 << 20, 'x'));
    const auto tar = store::DirectorySource(folder.path()).open_layer(0, 0);
    std::vector<std::byte> buffer(2048);
    REQUIRE(tar->read(buffer) > 0);
    REQUIRE(tar->read(buffer) > 0);
    REQUIRE(tar->read(buffer) > 0);
    REQUIRE(::truncate((folder / "f").c_str(), 100) == 0);
    CHECK_THAT(test::error_of([&] { test::read_all(*tar); }),
               ContainsSubstring("unavailable: " + (folder / "f") + ": it changes while it is read"));
}

TEST_CASE("what goes away while a folder is read is an error", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "a", "x");
    test::write_text(folder / "b", "x");
    const auto tar = store::DirectorySource(folder.path()).open_layer(0, 0);
    std::vector<std::byte> buffer(512);
    REQUIRE(tar->read(buffer) > 0);
    store::remove_file(folder / "b");
    CHECK_THAT(test::error_of([&] { test::read_all(*tar); }), ContainsSubstring("not_found: open " + (folder / "b")));
}

TEST_CASE("a folder that is exchanged for a link at any moment is stored as one of both, never followed",
          "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "in/d/inside", "x");
    test::write_text(folder / "outside/secret", "x");
    REQUIRE(::symlink("../outside", (folder / "link").c_str()) == 0);
    std::atomic<bool> is_over = false;
    std::thread exchanger([&] {
        while (!is_over) {
            ::renameat2(AT_FDCWD, (folder / "in/d").c_str(), AT_FDCWD, (folder / "link").c_str(), RENAME_EXCHANGE);
        }
    });
    bool is_followed = false;
    for (int i = 0; i < 1000; ++i) {
        std::string tar;
        test::error_of([&] { tar = tar_of(folder / "in"); });
        is_followed |= tar.find("secret") != std::string::npos;
    }
    is_over = true;
    exchanger.join();
    CHECK_FALSE(is_followed);
}
