#include "store/file.h"

#include "store/digest.h"
#include "store/error.h"
#include "store/file_ops.h"
#include "support/catch.h"
#include "support/fail_at.h"
#include "support/temp_dir.h"

#include <sys/stat.h>

using namespace lamina;

namespace {

std::string text_of(const std::string& path) {
    const auto data = store::read_file(path, 1 << 20);
    return std::string(reinterpret_cast<const char*>(data.data()), data.size());
}

}  // namespace

TEST_CASE("a file that is replaced is the old or the new one when any step fails, and nothing else is left",
          "[store][file]") {
    const test::TempDir folder;
    const std::string path = folder / "name";
    store::write_file_atomically(path, store::as_bytes("old"));
    for (int step = 1; step <= 5; ++step) {
        CAPTURE(step);
        const test::FailAt fault(step);
        CHECK_THROWS_AS(store::write_file_atomically(path, store::as_bytes("new")), store::Error);
        const std::string now = text_of(path);
        CHECK((now == "old" || now == "new"));
        CHECK(store::list_folder(folder.path()) == std::vector<std::string>{"name"});
    }
    store::write_file_atomically(path, store::as_bytes("new"));
    CHECK(text_of(path) == "new");
}

TEST_CASE("reading past the end is corrupt and names the file", "[store][file]") {
    const test::TempDir folder;
    const std::string path = folder / "short";
    store::write_file_atomically(path, store::as_bytes("12345"));
    const store::UniqueFd fd = store::open_read(path);
    std::vector<std::byte> out(6);
    try {
        store::read_exact(fd.get(), 0, out, path);
        FAIL("no error");
    } catch (const store::Error& error) {
        CHECK(error.code() == store::Errc::corrupt);
        CHECK_THAT(error.what(), Catch::Matchers::ContainsSubstring(path));
    }
}

TEST_CASE("removing a tree removes links, not what they point to", "[store][file]") {
    const test::TempDir folder;
    store::make_folders(folder / "keep");
    store::write_file_atomically(folder / "keep/file", store::as_bytes("x"));
    store::make_folders(folder / "gone/deep");
    REQUIRE(::symlink((folder / "keep").c_str(), (folder / "gone/deep/link").c_str()) == 0);
    store::remove_tree(folder / "gone");
    CHECK(!store::exists(folder / "gone"));
    CHECK(store::exists(folder / "keep/file"));
}

TEST_CASE("folders of a store are closed to others", "[store][file]") {
    const test::TempDir folder;
    store::make_folders(folder / "a/b");
    struct stat st {};
    REQUIRE(::stat((folder / "a/b").c_str(), &st) == 0);
    CHECK((st.st_mode & 0777) == 0700);
}
