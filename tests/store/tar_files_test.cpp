#include "store/tar_files.h"

#include "store/error.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/tar_builder.h"
#include "support/temp_dir.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <string>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::TarFiles;

namespace {

std::string content(const TarFiles& files, const std::string& path) {
    return test::text_of(files.read(path, 1 << 20));
}
std::string open_error(const std::string& archive, const std::string& path,
                       TarFiles::Links links = TarFiles::Links::resolve) {
    const std::string error = test::error_of([&] { TarFiles(archive, links).open(path); });
    CHECK(error.find('\n') == std::string::npos);
    return error;
}

}  // namespace

TEST_CASE("members of a tar are read where they lie, in any order, in any compression", "[store][source]") {
    const test::TempDir folder;
    const std::string big(1 << 20, 'b');
    const std::string tar = test::TarBuilder()
                                .folder("d")
                                .file("./d/a", "first")
                                .file("big", big)
                                .file(std::string(200, 'n'), "long")
                                .file("empty", "")
                                .tar();
    const std::string packed = GENERATE(as<std::string>{}, "plain", "gzip", "zstd");
    test::write_text(folder / "x.tar", packed == "plain"  ? tar
                                       : packed == "gzip" ? test::gzipped(tar)
                                                          : test::zstd_compressed(tar));

    const TarFiles files(folder / "x.tar", TarFiles::Links::refuse);
    CHECK((content(files, "big") == big));
    CHECK(content(files, "d/a") == "first");
    CHECK(content(files, std::string(200, 'n')) == "long");
    CHECK(content(files, "empty").empty());
    CHECK(files.has("d/a"));
    CHECK_FALSE(files.has("d/b"));
    CHECK(test::text_of(files.open("d/a").first_bytes) == "firs");
}

TEST_CASE("what a tar's source has opened is read to its end after the source is gone", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "x.tar", test::TarBuilder().file("a", "one").file("b", "two").tar());
    auto files = std::make_unique<TarFiles>(folder / "x.tar", TarFiles::Links::refuse);
    const auto a = files->open("a").bytes;
    const auto b = files->open("b").bytes;
    files.reset();
    CHECK(test::read_all(*b) == "two");
    CHECK(test::read_all(*a) == "one");
}

TEST_CASE("links are followed inside of the archive only, and only where they are wanted", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "secret", "outside");
    test::write_text(folder / "x.tar", test::TarBuilder()
                                           .file("real/layer.tar", "layer")
                                           .symlink("id/layer.tar", "../real/layer.tar")
                                           .symlink("again", "./id//layer.tar")
                                           .hardlink("hard", "real/layer.tar")
                                           .symlink("out", "../secret")
                                           .symlink("absolute", folder / "secret")
                                           .symlink("dangling", "none")
                                           .symlink("loop", "loop")
                                           .symlink("folder", "real")
                                           .folder("real")
                                           .tar());
    const TarFiles files(folder / "x.tar", TarFiles::Links::resolve);
    CHECK(content(files, "id/layer.tar") == "layer");
    CHECK(content(files, "again") == "layer");
    CHECK(content(files, "hard") == "layer");
    CHECK_THAT(open_error(folder / "x.tar", "out"),
               ContainsSubstring("malformed: " + (folder / "x.tar") + ": out: a link out of the archive"));
    CHECK_THAT(open_error(folder / "x.tar", "absolute"), ContainsSubstring("a link out of the archive"));
    CHECK_THAT(
        open_error(folder / "x.tar", "dangling"),
        ContainsSubstring("not_found: " + (folder / "x.tar") + ": dangling: a link to \"none\", which is missing"));
    CHECK_THAT(open_error(folder / "x.tar", "loop"), ContainsSubstring("more than 8 links"));
    CHECK_THAT(open_error(folder / "x.tar", "folder"), ContainsSubstring("not a regular file"));
    CHECK_THAT(open_error(folder / "x.tar", "folder/layer.tar"), ContainsSubstring("missing"));
    CHECK_THAT(open_error(folder / "x.tar", "again", TarFiles::Links::refuse),
               ContainsSubstring("links are not followed"));
    CHECK_THAT(open_error(folder / "x.tar", "hard", TarFiles::Links::refuse),
               ContainsSubstring("links are not followed"));
}

TEST_CASE("a member that is there twice is refused when it is asked for", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "x.tar",
                     test::TarBuilder().file("a", "1").file("b", "2").file("./a", "3").folder("d").folder("d").tar());
    CHECK_THAT(open_error(folder / "x.tar", "a"), ContainsSubstring("a: occurs twice"));
    CHECK(open_error(folder / "x.tar", "b").empty());
}

TEST_CASE("files with holes, devices and folders are no documents", "[store][source]") {
    const test::TempDir folder;
    test::write_text(
        folder / "x.tar",
        test::TarBuilder().folder("d").fifo("p").sparse("s", 8192, {{0, 4}}, "data").file("after", "x").tar());
    for (const std::string name : {"d", "p", "s"}) {
        CHECK_THAT(open_error(folder / "x.tar", name), ContainsSubstring(name + ": not a regular file"));
    }
    CHECK(open_error(folder / "x.tar", "after").empty());
}

TEST_CASE("an archive that is cut off anywhere is refused or lacks what was cut off", "[store][source]") {
    const test::TempDir folder;
    const std::string tar = test::TarBuilder().file("a", "one").file("b", std::string(700, 'b')).tar();
    for (std::size_t size = 0; size < tar.size(); size += 61) {
        CAPTURE(size);
        test::write_text(folder / "x.tar", tar.substr(0, size));
        std::string error;
        error = test::error_of([&] {
            const TarFiles files(folder / "x.tar", TarFiles::Links::refuse);
            if (files.has("a")) CHECK(content(files, "a") == "one");
            if (files.has("b")) CHECK(content(files, "b") == std::string(700, 'b'));
        });
        const bool is_named = error.empty() || error.find(folder / "x.tar") != std::string::npos;
        CHECK(is_named);
    }
}

TEST_CASE("a compressed archive that is cut off or damaged is refused", "[store][source]") {
    const test::TempDir folder;
    std::string body;
    for (int i = 0; i < 20000; ++i) body += std::to_string(i * 7919);
    const std::string tar = test::TarBuilder().file("a", body).tar();
    for (const std::string& packed : {test::gzipped(tar), test::zstd_compressed(tar)}) {
        for (std::size_t size = 5; size < packed.size(); size += packed.size() / 37) {
            CAPTURE(size);
            test::write_text(folder / "x.tar", packed.substr(0, size));
            CHECK_THAT(open_error(folder / "x.tar", "a"), ContainsSubstring("malformed: " + (folder / "x.tar")));
        }
    }
    std::string damaged = test::gzipped(tar);
    damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 0x10);
    test::write_text(folder / "x.tar", damaged);
    CHECK_THAT(open_error(folder / "x.tar", "a"), ContainsSubstring("malformed"));
}

TEST_CASE("an archive that unpacks to more than 200 times its size is refused", "[store][source]") {
    const test::TempDir folder;
    const std::string zeros = test::zstd_compressed(std::string(96 << 20, '\0'));
    test::write_text(folder / "x.tar", zeros);
    CHECK_THAT(open_error(folder / "x.tar", "a"), ContainsSubstring("unpacks to more than 200 times its size"));
}

TEST_CASE("a member that claims more bytes than the archive has is refused", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "x.tar",
                     test::TarBuilder().raw({.name = "a", .size = test::octal(1ull << 32)}).open_tar());
    CHECK_THAT(open_error(folder / "x.tar", "a"), ContainsSubstring("malformed: " + (folder / "x.tar")));
    test::write_text(folder / "x.tar",
                     test::TarBuilder().raw({.name = "a", .size = test::base_256(INT64_MAX)}).open_tar());
    CHECK_THAT(open_error(folder / "x.tar", "a"), ContainsSubstring("malformed: " + (folder / "x.tar")));
}

TEST_CASE("what is no tar is refused by its name", "[store][source]") {
    const test::TempDir folder;
    test::write_text(folder / "x.tar", std::string(5000, 'x'));
    CHECK_THAT(open_error(folder / "x.tar", "a"), ContainsSubstring("malformed: " + (folder / "x.tar")));
    test::write_text(folder / "x.tar", "");
    CHECK_THAT(open_error(folder / "x.tar", "a"), ContainsSubstring("missing"));
    REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
    CHECK_THAT(open_error(folder / "fifo", "a"), ContainsSubstring("not a regular file"));
}

TEST_CASE("the bodies of an archive are not read to find its members", "[store][source]") {
    const test::TempDir folder;
    const std::string path = folder / "x.tar";
    const std::string head = test::TarBuilder().raw({.name = "huge", .size = test::octal(7ull << 30)}).open_tar();
    test::write_text(path, head);
    const std::string tail = test::TarBuilder().file("after", "x").tar();
    const int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);  // 7 GiB that take no space.
    REQUIRE(fd >= 0);
    const store::UniqueFd owner(fd);
    REQUIRE(::pwrite(fd, tail.data(), tail.size(), static_cast<off_t>(head.size() + (7ull << 30))) ==
            static_cast<ssize_t>(tail.size()));
    const TarFiles files(path, TarFiles::Links::refuse);
    CHECK(content(files, "after") == "x");
    CHECK(files.open("huge").size_bytes == 7ull << 30);
}
