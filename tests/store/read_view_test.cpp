#include "store/read_view.h"

#include "store/error.h"
#include "store/file.h"
#include "store/tree_read_view.h"
#include "support/catch.h"
#include "support/layer_text.h"
#include "support/temp_dir.h"

#include <map>
#include <set>

using namespace lamina;

namespace {

// Chunks that lie in memory.
class MemoryChunks : public store::ChunkSource {
public:
    store::ChunkId add(std::string bytes) {
        const store::ChunkId id = test::chunk_of(bytes);
        chunks_[id] = std::move(bytes);
        return id;
    }
    void read(const store::ChunkId& chunk, std::uint32_t offset_bytes, std::span<std::byte> out) override {
        const auto found = chunks_.find(chunk);
        if (found == chunks_.end()) throw store::Error(store::Errc::not_found, "no pack has the chunk");
        REQUIRE(offset_bytes + out.size() <= found->second.size());
        std::memcpy(out.data(), found->second.data() + offset_bytes, out.size());
        warm_.insert(chunk);
    }
    bool is_warm(const store::ChunkId& chunk) override { return warm_.contains(chunk); }

private:
    std::map<store::ChunkId, std::string> chunks_;
    std::set<store::ChunkId> warm_;
};

struct ViewOfOneFile {
    std::string bytes;
    std::unique_ptr<store::ReadView> view;
    store::TreeIno ino = 0;
};

// Parts: "\0" * n is a hole of n bytes.
ViewOfOneFile view_of(const std::vector<std::string>& parts, bool loses_last_chunk = false) {
    const test::TempDir folder;  // Gone when this returns: an open tree needs its file, not its name.
    ViewOfOneFile out;
    auto chunks = std::make_unique<MemoryChunks>();
    store::LayerEntry entry = test::file("file");
    for (const std::string& part : parts) {
        const bool is_hole = part.find_first_not_of('\0') == std::string::npos;
        const bool is_lost = loses_last_chunk && &part == &parts.back();
        const store::ChunkId id = is_lost || is_hole ? test::chunk_of(part) : chunks->add(part);
        entry.content.push_back(is_hole ? store::ContentPart::hole(part.size())
                                        : store::ContentPart{.chunk = id, .size_bytes = part.size()});
        out.bytes += part;
    }
    entry.size_bytes = out.bytes.size();
    auto tree = test::built_tree({{entry, test::folder("folder")}}, folder.path());
    out.ino = tree->lookup(store::kTreeRoot, "file")->ino;
    out.view = store::make_read_view(std::move(tree), std::move(chunks));
    return out;
}

std::string read(ViewOfOneFile& file, std::uint64_t offset_bytes, std::size_t size_bytes) {
    std::string out(size_bytes, '!');
    out.resize(file.view->read(file.ino, offset_bytes, std::as_writable_bytes(std::span(out))));
    return out;
}

store::MountBase example_base() {
    return {.tree = {store::Digest::of(store::as_bytes("tree"))},
            .layers = {{store::Digest::of(store::as_bytes("1"))}, {store::Digest::of(store::as_bytes("2"))}},
            .image = "docker.io/library/debian:bookworm",
            .manifest_digest = "sha256:0123",
            .config_digest = "",
            .mountpoint = "/mnt/with space/100%/\n\x01\xc3\xa4",
            .is_read_only = true};
}

void check_equal(const store::MountBase& a, const store::MountBase& b) {
    CHECK(a.tree == b.tree);
    CHECK(a.layers == b.layers);
    CHECK(a.image == b.image);
    CHECK(a.manifest_digest == b.manifest_digest);
    CHECK(a.config_digest == b.config_digest);
    CHECK(a.mountpoint == b.mountpoint);
    CHECK(a.is_read_only == b.is_read_only);
}

std::string base_text(const std::string& folder) {
    const auto data = store::read_file(folder + "/base", 1 << 20);
    return {reinterpret_cast<const char*>(data.data()), data.size()};
}

void put_base(const std::string& folder, std::string_view text) {
    store::write_file_atomically(folder + "/base", store::as_bytes(text));
}

}  // namespace

TEST_CASE("a read returns the bytes of any range, with zeros for holes", "[store][view]") {
    auto file = view_of({"abc", std::string(5, '\0'), "defgh", "i", std::string(2, '\0')});
    for (std::uint64_t offset = 0; offset <= file.bytes.size() + 2; ++offset) {
        for (std::size_t size = 0; size <= file.bytes.size() + 3; ++size) {
            const std::string expected = offset < file.bytes.size() ? file.bytes.substr(offset, size) : "";
            REQUIRE(read(file, offset, size) == expected);
        }
    }
}

TEST_CASE("a read at an absurd offset is empty", "[store][view]") {
    auto file = view_of({"abc"});
    CHECK(read(file, ~std::uint64_t{0}, 10).empty());
    CHECK(read(file, std::uint64_t{1} << 63, 10).empty());
    CHECK(file.view->is_warm(file.ino, ~std::uint64_t{0}, ~std::uint64_t{0}));
}

TEST_CASE("an empty file and a file that is one hole need no chunk", "[store][view]") {
    auto empty = view_of({});
    CHECK(read(empty, 0, 10).empty());
    CHECK(empty.view->is_warm(empty.ino, 0, 10));
    auto hole = view_of({std::string(100, '\0')});
    CHECK(read(hole, 90, 20) == std::string(10, '\0'));
    CHECK(hole.view->is_warm(hole.ino, 0, 100));
}

TEST_CASE("a range is warm when all its chunks are", "[store][view]") {
    auto file = view_of({"abc", std::string(5, '\0'), "def"});
    CHECK(!file.view->is_warm(file.ino, 0, 1));
    read(file, 1, 1);
    CHECK(file.view->is_warm(file.ino, 0, 8));
    CHECK(!file.view->is_warm(file.ino, 0, 9));
    CHECK(file.view->is_warm(file.ino, 0, 0));
}

TEST_CASE("a lost chunk is corrupt and names the inode, and the rest of the file stays readable", "[store][view]") {
    auto file = view_of({"abc", "def"}, true);
    CHECK(read(file, 0, 3) == "abc");
    try {
        read(file, 2, 2);
        FAIL("no error");
    } catch (const store::Error& error) {
        CHECK(error.code() == store::Errc::corrupt);
        CHECK_THAT(error.what(), Catch::Matchers::ContainsSubstring("inode 2, offset 3: no pack has the chunk"));
    }
}

TEST_CASE("reading what is no file is an error", "[store][view]") {
    auto file = view_of({"abc"});
    std::array<std::byte, 4> out;
    CHECK_THROWS_AS(file.view->read(file.view->tree().lookup(1, "folder")->ino, 0, out), store::Error);
    CHECK_THROWS_AS(file.view->read(0, 0, out), store::Error);
    CHECK_THROWS_AS(file.view->read(99, 0, out), store::Error);
}

TEST_CASE("a mount's base comes back as it was written", "[store][base]") {
    const test::TempDir folder;
    store::write_mount_base(folder.path(), example_base());
    check_equal(store::read_mount_base(folder.path()), example_base());
    store::MountBase other = example_base();
    other.layers.clear();
    other.is_read_only = false;
    other.image.clear();
    other.mountpoint = "%0A%";
    store::write_mount_base(folder.path(), other);
    check_equal(store::read_mount_base(folder.path()), other);
}

TEST_CASE("the bytes of a mount's base are those that FORMAT.md shows", "[store][base]") {
    const test::TempDir folder;
    store::write_mount_base(folder.path(), example_base());
    CHECK(base_text(folder.path()) ==
          "lamina-mount-base 1\n"
          "tree sha256:dc9c5edb8b2d479e697b4b0b8ab874f32b325138598ce9e7b759eb8292110622\n"
          "layer sha256:6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b\n"
          "layer sha256:d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35\n"
          "image docker.io/library/debian:bookworm\n"
          "manifest sha256:0123\n"
          "config \n"
          "mountpoint /mnt/with space/100%25/%0A%01\xc3\xa4\n"
          "read-only yes\n"
          "sum sha256:" +
              store::Digest::of(
                  store::as_bytes(base_text(folder.path()).substr(0, base_text(folder.path()).find("sum "))))
                  .hex() +
              "\n");
}

TEST_CASE("a mount without a base has none", "[store][base]") {
    const test::TempDir folder;
    try {
        store::read_mount_base(folder.path());
        FAIL("no error");
    } catch (const store::Error& error) {
        CHECK(error.code() == store::Errc::not_found);
    }
}

TEST_CASE("a mount's base that is truncated, changed in one bit or continued is refused", "[store][base]") {
    const test::TempDir folder;
    store::write_mount_base(folder.path(), example_base());
    const std::string good = base_text(folder.path());
    const auto is_refused = [&](std::string_view text) {
        put_base(folder.path(), text);
        try {
            store::read_mount_base(folder.path());
            return false;
        } catch (const store::Error& error) {
            return error.code() == store::Errc::malformed || error.code() == store::Errc::unsupported;
        }
    };
    for (std::size_t size = 0; size < good.size(); ++size) CHECK(is_refused(good.substr(0, size)));
    for (std::size_t bit = 0; bit < good.size() * 8; bit += 3) {
        std::string bad = good;
        bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ 1 << bit % 8);
        CHECK(is_refused(bad));
    }
    CHECK(is_refused(good + "x"));
    CHECK(is_refused(good + good));
    CHECK(is_refused(std::string(1 << 20, 'x')));
}

TEST_CASE("a mount's base may not break its limits", "[store][base]") {
    const test::TempDir folder;
    store::MountBase base = example_base();
    base.layers.assign(500, base.layers.front());
    store::write_mount_base(folder.path(), base);
    check_equal(store::read_mount_base(folder.path()), base);
    base.layers.push_back(base.layers.front());
    CHECK_THROWS_AS(store::write_mount_base(folder.path(), base), store::Error);
    base.layers.clear();
    base.image.assign(1 << 20, 'x');
    CHECK_THROWS_AS(store::write_mount_base(folder.path(), base), store::Error);
    CHECK(store::read_mount_base(folder.path()).layers.size() == 500);
}
