#include "store/index.h"

#include "store/error.h"
#include "store/file.h"
#include "store/file_ops.h"
#include "store/sqlite.h"
#include "support/catch.h"
#include "support/golden.h"
#include "support/oci_archive.h"
#include "support/temp_dir.h"

#include <set>
#include <thread>

using namespace lamina;
using store::Errc;

namespace {

store::Digest digest_of(std::string_view text) {
    return store::Digest::of(store::as_bytes(text));
}

std::vector<std::byte> bytes_of(std::string_view text) {
    const auto bytes = store::as_bytes(text);
    return {bytes.begin(), bytes.end()};
}

store::DiffId layer_of(std::string_view text) {
    return {digest_of(text)};
}

void add_layer(store::Index& index, std::string_view text) {
    const std::uint32_t pack = index.allocate_pack();
    index.add_layer({.diff_id = layer_of(text), .tar_bytes = 100, .entry_count = 3, .recipe_bytes = 50},
                    store::PackRow{.number = pack, .file_bytes = 1000, .raw_bytes = 2000});
}

store::NewImage image_of(std::string_view config, std::vector<store::DiffId> layers) {
    const store::ChainId chain = store::chain_id(nullptr, layers.front());
    return {.manifest = bytes_of("manifest of " + std::string(config)),
            .manifest_media_type = "application/vnd.oci.image.manifest.v1+json",
            .config = bytes_of(config),
            .platform = {"linux", "amd64", ""},
            .created = "2024-01-01T00:00:00Z",
            .imported_at = 1700000000,
            .layers = std::move(layers),
            .chain = chain,
            .tree = {.digest = {digest_of("tree")}, .file_bytes = 10, .inode_count = 4, .logical_bytes = 99},
            .name = std::nullopt};
}

store::NewImage named(store::NewImage image, std::string_view name) {
    image.name = store::ImageName::parse(name);
    return image;
}

template <class Function>
Errc code_of(Function&& function) {
    try {
        function();
    } catch (const store::Error& error) {
        return error.code();
    }
    FAIL("no error");
    return Errc::internal;
}

/// Fails before or after the transaction's COMMIT.
class FailAtStep : public store::FaultHook {
public:
    explicit FailAtStep(std::string step) : step_(std::move(step)) { store::g_fault_hook = this; }
    ~FailAtStep() override { store::g_fault_hook = nullptr; }
    void before(std::string_view step, std::string_view path) override {
        if (step == step_) throw store::Error(Errc::no_space, std::string(step) + " " + std::string(path));
    }

private:
    std::string step_;
};

}  // namespace

TEST_CASE("a pack number is never given twice, also after an allocation that failed late", "[store][index]") {
    const test::TempDir folder;
    std::set<std::uint32_t> seen;
    {
        const auto index = store::Index::open(folder / "index");
        CHECK(seen.insert(index->allocate_pack()).second);
        {
            const FailAtStep fault("sql commit");
            CHECK_THROWS_AS(index->allocate_pack(), store::Error);
        }
        CHECK(seen.insert(index->allocate_pack()).second);
        {
            const FailAtStep fault("sql committed");
            CHECK_THROWS_AS(index->allocate_pack(), store::Error);
        }
        CHECK(seen.insert(index->allocate_pack()).second);
    }
    const auto index = store::Index::open(folder / "index");
    CHECK(seen.insert(index->allocate_pack()).second);
    CHECK(*seen.begin() == 1);
}

TEST_CASE("threads get different pack numbers", "[store][index]") {
    const test::TempDir folder;
    const auto index = store::Index::open(folder / "index");
    std::vector<std::vector<std::uint32_t>> numbers(4);
    {
        std::vector<std::jthread> threads;
        for (auto& mine : numbers) {
            threads.emplace_back([&] {
                for (int i = 0; i < 10; ++i) mine.push_back(index->allocate_pack());
            });
        }
    }
    std::set<std::uint32_t> all;
    for (const auto& mine : numbers) all.insert(mine.begin(), mine.end());
    CHECK(all.size() == 40);
}

TEST_CASE("an image is found by name, by digest prefix of config or manifest, and after reopening", "[store][index]") {
    const test::TempDir folder;
    {
        const auto index = store::Index::open(folder / "index");
        add_layer(*index, "a");
        index->add_image(named(image_of("{}", {layer_of("a"), layer_of("a")}), "x:1"));
    }
    const auto index = store::Index::open(folder / "index");
    const auto image = index->find_by_name(store::ImageName::parse("x:1"));
    REQUIRE(image);
    CHECK(image->config.digest == digest_of("{}"));
    CHECK(image->names == std::vector<std::string>{"x:1"});
    CHECK(image->layers == std::vector<store::DiffId>{layer_of("a"), layer_of("a")});
    CHECK(image->tree.logical_bytes == 99);
    CHECK(image->platform.text() == "linux/amd64");
    CHECK(index->find_by_digest(digest_of("{}").hex().substr(0, 6)).size() == 1);
    CHECK(index->find_by_digest(digest_of("manifest of {}").hex()).size() == 1);
    CHECK(index->find_by_digest("").size() == 1);
    CHECK(index->find_by_digest(digest_of("nothing").hex()).empty());
    CHECK(index->documents(image->id).config == bytes_of("{}"));
    CHECK(index->find_tree(store::chain_id(nullptr, layer_of("a"))));
    CHECK(index->packs() == std::vector<store::PackRow>{{1, 1000, 2000}});
}

TEST_CASE("a name moves to the image that takes it, and the other stays", "[store][index]") {
    const test::TempDir folder;
    const auto index = store::Index::open(folder / "index");
    add_layer(*index, "a");
    const auto old = index->add_image(named(image_of("{\"a\":1}", {layer_of("a")}), "x:1"));
    const auto taker = index->add_image(named(image_of("{\"a\":2}", {layer_of("a")}), "x:1"));
    CHECK(index->find_by_name(store::ImageName::parse("x:1"))->id == taker.id);
    REQUIRE(index->images().size() == 2);
    CHECK(index->images()[0].id == old.id);
    CHECK(index->images()[0].names.empty());
    CHECK(!index->images()[0].is_anonymous);
    index->set_name(store::ImageName::parse("x:1"), old.id);
    CHECK(index->find_by_name(store::ImageName::parse("x:1"))->id == old.id);
    CHECK(code_of([&] { index->set_name(store::ImageName::parse("y:1"), 999); }) == Errc::not_found);
}

TEST_CASE("another manifest over the same config is the same image, known by both digests", "[store][index]") {
    const test::TempDir folder;
    const auto index = store::Index::open(folder / "index");
    add_layer(*index, "a");
    auto image = image_of("{}", {layer_of("a")});
    const auto first = index->add_image(image);
    CHECK(first.is_anonymous);
    image.manifest = bytes_of("another");
    const auto second = index->add_image(named(image, "x"));
    CHECK(second.id == first.id);
    CHECK(!second.is_anonymous);
    CHECK(index->images().size() == 1);
    CHECK(index->documents(first.id).manifest == bytes_of("another"));
    CHECK(index->find_by_digest(digest_of("another").hex()).size() == 1);
    CHECK(index->find_by_digest(digest_of("manifest of {}").hex()).size() == 1);
}

TEST_CASE("a hidden image is unseen but by its config, and comes back with the next import", "[store][index]") {
    const test::TempDir folder;
    const auto index = store::Index::open(folder / "index");
    add_layer(*index, "a");
    const auto image = index->add_image(named(image_of("{}", {layer_of("a")}), "x"));
    index->hide_image(image.id);
    CHECK(index->images().empty());
    CHECK(index->all_images().size() == 1);
    CHECK(!index->find_by_name(store::ImageName::parse("x")));
    CHECK(index->find_by_digest(digest_of("{}").hex()).empty());
    CHECK(index->find_by_config(image.config));
    CHECK(index->add_image(named(image_of("{}", {layer_of("a")}), "x")).id == image.id);
    CHECK(index->images().size() == 1);
}

TEST_CASE("a layer or tree that an image names cannot be removed", "[store][index]") {
    const test::TempDir folder;
    const auto index = store::Index::open(folder / "index");
    add_layer(*index, "a");
    const auto image = index->add_image(named(image_of("{}", {layer_of("a")}), "x"));
    CHECK_THROWS_AS(index->remove({.layers = {layer_of("a")}}), store::Error);
    CHECK_THROWS_AS(index->remove({.trees = {image.tree.digest}}), store::Error);
    CHECK(index->find_layer(layer_of("a")));
    index->remove({.images = {image.id}, .layers = {layer_of("a")}, .trees = {image.tree.digest}, .packs = {1}});
    CHECK(index->all_images().empty());
    CHECK(index->layers().empty());
    CHECK(index->trees().empty());
    CHECK(index->packs().empty());
    CHECK(!index->find_tree(store::chain_id(nullptr, layer_of("a"))));
    CHECK(index->check().empty());
}

TEST_CASE("an image whose layer is missing is refused whole", "[store][index]") {
    const test::TempDir folder;
    const auto index = store::Index::open(folder / "index");
    CHECK_THROWS_AS(index->add_image(named(image_of("{}", {layer_of("a")}), "x")), store::Error);
    CHECK(index->all_images().empty());
    CHECK(index->trees().empty());
}

TEST_CASE("an index of version 1 is brought up to date, once, and keeps what it holds", "[store][index]") {
    const test::TempDir folder;
    const auto sql = store::read_file(test::golden_path("index_1.sql"), 1 << 20);
    store::Database::open(folder / "index").execute(test::text_of(sql).c_str());
    SECTION("in one step") {}
    SECTION("after a first try that failed") {
        const FailAtStep fault("sql commit");
        CHECK_THROWS_AS(store::Index::open(folder / "index"), store::Error);
    }
    for (int round = 0; round < 2; ++round) {
        const auto index = store::Index::open(folder / "index");
        CHECK(index->packs() == std::vector<store::PackRow>{{.number = 1, .file_bytes = 1000, .raw_bytes = 2000}});
        CHECK(index->allocate_pack() == 2U + static_cast<unsigned>(round));
        const auto images = index->images();
        REQUIRE(images.size() == 2);
        CHECK(images[0].used_at == 1700000000);
        CHECK(images[0].use_order < images[1].use_order);
        CHECK(!images[0].is_pinned);
        CHECK(index->check().empty());
    }
    const auto index = store::Index::open(folder / "index");
    index->record_use(1, 1700000001);
    CHECK(index->images()[0].use_order > index->images()[1].use_order);
}

TEST_CASE("who was used last is known whatever the clock says", "[store][index]") {
    const test::TempDir folder;
    const auto index = store::Index::open(folder / "index");
    add_layer(*index, "a");
    add_layer(*index, "b");
    const auto first = index->add_image(named(image_of("{1}", {layer_of("a")}), "first"));
    const auto second = index->add_image(named(image_of("{2}", {layer_of("b")}), "second"));
    const auto order = [&](std::int64_t id) {
        for (const auto& image : index->images()) {
            if (image.id == id) return image.use_order;
        }
        return std::int64_t{-1};
    };
    CHECK(order(first.id) < order(second.id));
    index->record_use(first.id, 1000);  // Long before the import.
    CHECK(order(first.id) > order(second.id));
    CHECK(index->images()[0].used_at == 1000);
    index->record_use(first.id, 1059);  // The same use, told again.
    CHECK(index->images()[0].used_at == 1000);
    index->record_use(first.id, 1060);
    CHECK(index->images()[0].used_at == 1060);
    index->record_use(second.id, 500);
    CHECK(order(second.id) > order(first.id));
    CHECK(code_of([&] { index->record_use(77, 1); }) == Errc::not_found);
    CHECK(code_of([&] { index->set_pinned(77, true); }) == Errc::not_found);
}

TEST_CASE("an index of another version is refused with what to do", "[store][index]") {
    const test::TempDir folder;
    store::Index::open(folder / "index").reset();
    store::Database::open(folder / "index").execute("PRAGMA user_version = 99");
    CHECK(code_of([&] { store::Index::open(folder / "index"); }) == Errc::unsupported);
}

TEST_CASE("an index that was cut or flipped is corrupt or found by check, never a crash", "[store][index][attack]") {
    const test::TempDir folder;
    {
        const auto index = store::Index::open(folder / "index");
        add_layer(*index, "a");
        index->add_image(named(image_of("{}", {layer_of("a")}), "x"));
    }
    const auto sound = store::read_file(folder / "index", 16 << 20);
    const auto try_with = [&](const std::vector<std::byte>& bytes) {
        store::remove_file(folder / "index-wal");
        store::write_file_atomically(folder / "index", bytes);
        try {
            const auto index = store::Index::open(folder / "index");
            static_cast<void>(index->images());
            static_cast<void>(index->check());
        } catch (const store::Error&) {  // An answer, too.
        }
    };
    for (std::size_t size = 0; size < sound.size(); size += 509) {
        try_with({sound.begin(), sound.begin() + static_cast<std::ptrdiff_t>(size)});
    }
    for (std::size_t at = 0; at < sound.size(); at += 331) {
        auto bytes = sound;
        bytes[at] ^= std::byte{0xff};
        try_with(bytes);
    }
}
