#include "store/error.h"
#include "store/file.h"
#include "store/file_ops.h"
#include "store/gc.h"
#include "store/read_view.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/run_before.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <poll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

// gc writes packs anew while other processes read them, and while jobs find chunks in them.

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::Store;

namespace {

test::Files numbered(unsigned seed, unsigned count) {
    test::Files files;
    for (unsigned i = 0; i < count; ++i) files[std::to_string(i)] = test::some_text(30'000, 1000 * seed + i);
    return files;
}

/// Both, those of `more` under other names.
test::Files with(test::Files files, const test::Files& more) {
    for (const auto& [name, body] : more) files["x" + name] = body;
    return files;
}

void import(Store& store, const std::string& folder, const std::string& name, const test::Files& files) {
    test::import_from(store, test::write_layout(folder + "/" + name, {{name + ":1", {files}}}));
}

/// A process that reads all files of an image again and again, cold, until it is told to end. Its exit code says what
/// it saw.
class Reader {
public:
    Reader(const std::string& root, const store::TreeDigest& tree, const test::Files& files) {
        REQUIRE(::pipe(end_) == 0);
        REQUIRE(::pipe(began_) == 0);
        child_ = ::fork();
        REQUIRE(child_ >= 0);
        if (child_ == 0) {
            ::close(end_[1]);
            ::_exit(read_on(root, tree, files));
        }
        ::close(end_[0]);
        char byte = 0;
        REQUIRE(::read(began_[0], &byte, 1) == 1);
    }
    ~Reader() {
        if (child_ > 0) finish();
        ::close(began_[0]);
        ::close(began_[1]);
    }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;

    static constexpr int kRight = 0, kWrongBytes = 2, kError = 3;
    int finish() {
        ::close(end_[1]);
        int status = 0;
        ::waitpid(std::exchange(child_, -1), &status, 0);
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }

private:
    int read_on(const std::string& root, const store::TreeDigest& tree, const test::Files& files) const {
        try {
            const auto view = store::ReadView::open(root, tree, 1);  // Keeps no frame.
            for (bool is_first = true;; is_first = false) {
                for (const auto& [name, body] : files) {
                    const auto found = view->tree().lookup(store::kTreeRoot, name);
                    std::vector<std::byte> bytes(body.size());
                    if (view->read(found->ino, 0, bytes) != body.size() || test::text_of(bytes) != body) {
                        return kWrongBytes;
                    }
                }
                if (is_first && ::write(began_[1], "", 1) != 1) return kError;
                pollfd ended{.fd = end_[0], .events = POLLIN, .revents = 0};
                if (::poll(&ended, 1, 0) != 0) return kRight;
            }
        } catch (const store::Error& error) {
            std::fprintf(stderr, "reader: %s\n", error.what());
            return kError;
        }
    }

    int end_[2] = {-1, -1};
    int began_[2] = {-1, -1};
    pid_t child_ = -1;
};

std::uint64_t allocated_bytes(const std::string& folder) {
    std::uint64_t bytes = 0;
    for (const std::string& name : store::list_folder(folder)) {
        struct stat st {};
        REQUIRE(::stat((folder + "/" + name).c_str(), &st) == 0);
        bytes += static_cast<std::uint64_t>(st.st_blocks) * 512;
    }
    return bytes;
}

}  // namespace

TEST_CASE("a process that reads while packs are written anew and removed sees no error and no wrong byte",
          "[store][gc][readers]") {
    const test::TempDir folder("/dev/shm");
    const auto opened = Store::open(folder / "s");
    const test::Files kept = numbered(1, 30);
    import(*opened, folder.path(), "first", with(kept, numbered(2, 30)));
    import(*opened, folder.path(), "kept", kept);
    opened->remove_image("first:1", false);
    import(*opened, folder.path(), "t0", numbered(3, 5));
    Reader reader(folder / "s", opened->inspect("kept:1").summary.tree, kept);
    std::uint64_t rewritten = 0;
    for (unsigned round = 1; round < 12; ++round) {
        // What is kept lies in one pack with what goes in the next round: so it moves in each.
        const std::string name = "t" + std::to_string(round);
        const test::Files own = numbered(10 * round, 20);
        import(*opened, folder.path(), "doomed" + name, with(own, numbered(10 * round + 1, 20)));
        import(*opened, folder.path(), name, own);
        opened->remove_image("doomed" + name + ":1", false);
        opened->remove_image("t" + std::to_string(round - 1) + ":1", false);
        rewritten += opened->gc(false, {}).packs_rewritten;
        CHECK(store::list_folder(folder / "s/packs").size() == 3);  // One pack, and its index.
    }
    CHECK(reader.finish() == Reader::kRight);
    CHECK(rewritten >= 20);
    CHECK(test::problems_of(*opened) == "");
}

TEST_CASE("the space of a removed pack is free although a reader has it open", "[store][gc][readers]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const test::Files kept = numbered(1, 10);
    import(*opened, folder.path(), "first", with(kept, numbered(3, 40)));
    import(*opened, folder.path(), "kept", kept);
    const std::string pack = folder / "s/packs/pack-0000000001.lpk";
    const store::UniqueFd open_pack = store::open_read(pack);
    Reader reader(folder / "s", opened->inspect("kept:1").summary.tree, kept);
    opened->remove_image("first:1", false);
    const std::uint64_t before = allocated_bytes(folder / "s/packs");
    CHECK(opened->gc(false, {}).packs_rewritten == 1);
    CHECK(!store::exists(pack));
    struct stat st {};
    REQUIRE(::fstat(open_pack.get(), &st) == 0);
    CHECK(st.st_blocks == 0);
    CHECK(allocated_bytes(folder / "s/packs") < before);
    CHECK(reader.finish() == Reader::kRight);
}

TEST_CASE("what an import finds in a pack that is just written anew stays, also when the import ends first",
          "[store][gc][threads]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const test::Files kept = numbered(1, 10);
    const test::Files old = with(kept, numbered(3, 40));
    import(*opened, folder.path(), "old", old);
    import(*opened, folder.path(), "kept", kept);
    opened->remove_image("old:1", false);
    const test::Files found{{"found", old.at("x7")}};  // Dead when gc decides.
    test::RunBefore::When when;
    SECTION("while its chunks are copied") {
        when = {"write", "/staging/job-"};
    }
    SECTION("before the new pack has its name") {
        when = {"rename", "/packs/pack-"};
    }
    SECTION("before the rows are replaced") {
        when = {"fsync", "/s/packs"};
    }
    {
        const test::RunBefore middle(when, [&] { import(*opened, folder.path(), "new", found); });
        opened->gc(false, {});
        CHECK(middle.has_run());
    }
    CHECK(store::exists(folder / "s/packs/pack-0000000001.lpk"));
    CHECK(test::problems_of(*opened) == "");
    CHECK(test::has_files(*opened, "new:1", found));
    CHECK(test::has_files(*opened, "kept:1", kept));
    opened->gc(false, {});
    CHECK(!store::exists(folder / "s/packs/pack-0000000001.lpk"));
    CHECK(test::problems_of(*opened) == "");
    CHECK(test::has_files(*opened, "new:1", found));
    CHECK(test::has_files(*opened, "kept:1", kept));
}

TEST_CASE("what an import found in a pack that is just written anew stays with the layer, also when the import fails",
          "[store][gc][threads]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const test::Files kept = numbered(1, 10);
    const test::Files old = with(kept, numbered(3, 40));
    import(*opened, folder.path(), "old", old);
    import(*opened, folder.path(), "kept", kept);
    opened->remove_image("old:1", false);
    const test::Files found{{"found", old.at("x7")}};  // Dead when gc decides.
    test::TestLayout broken(folder / "broken");
    broken.add_image(
        {.name = "new:1", .layers = {{.tar = test::layer_tar(found)}, {.tar = test::layer_tar(numbered(9, 1))}}});
    broken.finish();
    const std::string blob = broken.blob_file(broken.layers.back());
    std::string bytes = test::read_text(blob);
    bytes.at(bytes.size() / 2) ^= 1;
    test::write_text(blob, bytes);
    {
        const test::RunBefore middle({"rename", "/packs/pack-"}, [&] {
            CHECK(test::error_of([&] { test::import_from(*opened, "oci:" + broken.folder()); }) != "");
        });
        opened->gc(false, {});
        CHECK(middle.has_run());
    }
    import(*opened, folder.path(), "new", found);
    CHECK(test::problems_of(*opened) == "");
    CHECK(test::has_files(*opened, "new:1", found));
    CHECK(test::has_files(*opened, "kept:1", kept));
}
