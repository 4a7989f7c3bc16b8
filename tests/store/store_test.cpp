#include "store/store.h"

#include "store/error.h"
#include "store/file.h"
#include "store/read_view.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/tar_builder.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::ImageName;
using store::Store;

namespace {

const test::Files kBase{{"etc/os", "debian"}, {"usr/bin/tool", test::some_text(300'000, 1)}};
const test::Files kApp{{"app/main", test::some_text(90'000, 2)}, {"etc/os", "changed"}};

std::string two_images(const std::string& folder) {
    return test::write_layout(folder,
                              {{.name = "base:1", .layers = {kBase}}, {.name = "work:1", .layers = {kBase, kApp}}});
}

}  // namespace

TEST_CASE("a new store has its folders, closed to others, and can be opened again", "[store][open]") {
    const test::TempDir folder;
    for (int round = 0; round < 2; ++round) {
        const auto opened = Store::open(folder / "s");
        CHECK(opened->root() == folder / "s");
        CHECK(opened->images().empty());
        for (const char* name : {"", "/packs", "/layers", "/trees", "/mounts", "/staging"}) {
            struct stat st {};
            REQUIRE(::stat((folder / "s" + name).c_str(), &st) == 0);
            CHECK((st.st_mode & 07777) == 0700);
        }
        CHECK(test::read_text(folder / "s/format") == "lamina store 1\n");
        CHECK(test::problems_of(*opened) == "");
    }
}

TEST_CASE("a store that is in use is busy, and names the process", "[store][open]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const std::string error = test::error_of([&] { Store::open(folder / "s"); });
    CHECK_THAT(error, ContainsSubstring("busy: "));
    CHECK_THAT(error, ContainsSubstring("process " + std::to_string(::getpid())));
}

TEST_CASE("a store of another version, other folders and unusable paths are refused and not touched", "[store][open]") {
    const test::TempDir folder;
    Store::open(folder / "s").reset();
    test::write_text(folder / "s/format", "lamina store 2\n");
    CHECK_THAT(test::error_of([&] { Store::open(folder / "s"); }), ContainsSubstring("unsupported: "));
    test::write_text(folder / "s/format", "something");
    CHECK_THAT(test::error_of([&] { Store::open(folder / "s"); }), ContainsSubstring("malformed: "));

    store::make_folders(folder / "disk/lost+found");
    CHECK(Store::open(folder / "disk")->images().empty());
    test::write_text(folder / "home/letter", "dear");
    CHECK_THAT(test::error_of([&] { Store::open(folder / "home"); }), ContainsSubstring("something else"));
    CHECK(store::list_folder(folder / "home") == std::vector<std::string>{"letter"});
    test::write_text(folder / "file", "x");
    CHECK(test::error_of([&] { Store::open(folder / "file"); }) != "");
    for (const char* bad : {"a:b", "a,b", "a\nb"}) {
        CHECK_THAT(test::error_of([&] { Store::open(folder / bad); }), ContainsSubstring("malformed: "));
        CHECK(!store::exists(folder / bad));
    }
    CHECK_THAT(test::error_of([&] { Store::open(""); }), ContainsSubstring("malformed: "));
}

TEST_CASE("opening removes what a crash left and no committed row names", "[store][open][crash]") {
    const test::TempDir folder;
    const std::string source = two_images(folder / "layout");
    std::uint64_t bytes = 0;
    {
        const auto opened = Store::open(folder / "s");
        test::import_from(*opened, source);
    }
    bytes = test::bytes_on_disk(folder / "s");
    const std::string hex(64, 'a');
    test::write_text(folder / "s/staging/job-1/7.recipe", "half");
    test::write_text(folder / "s/packs/pack-0000000099.lpk", "stray");
    test::write_text(folder / "s/layers/" + hex + ".recipe", "stray");
    test::write_text(folder / "s/layers/" + hex + ".recipe.tmp1-1", "stray");
    test::write_text(folder / "s/trees/" + hex + ".tree", "stray");
    test::write_text(folder / "s/mounts/0123456789abcdef/log", "no base");
    test::write_text(folder / "s/format.tmp1-1", "half");
    const auto opened = Store::open(folder / "s");
    CHECK(store::list_folder(folder / "s/staging").empty());
    CHECK(store::list_folder(folder / "s/mounts").empty());
    CHECK(store::list_folder(folder / "s/layers").size() == 2);
    CHECK(store::list_folder(folder / "s/trees").size() == 2);
    CHECK(!store::exists(folder / "s/packs/pack-0000000099.lpk"));
    CHECK(!store::exists(folder / "s/format.tmp1-1"));
    CHECK(test::problems_of(*opened) == "");
    CHECK(bytes > 0);
}

TEST_CASE("a lost or foreign chunk index is rebuilt at open", "[store][open]") {
    const test::TempDir folder;
    test::import_from(*Store::open(folder / "s"), two_images(folder / "layout"));
    for (const std::string& name : store::list_folder(folder / "s/packs")) {
        if (!name.starts_with("pack-")) store::remove_file(folder / "s/packs/" + name);
    }
    const auto opened = Store::open(folder / "s");
    CHECK(test::problems_of(*opened) == "");
    CHECK(test::has_files(*opened, "base:1", kBase));
}

TEST_CASE("a store whose index is lost or empty is refused, and keeps its content", "[store][open]") {
    const test::TempDir folder;
    test::import_from(*Store::open(folder / "s"), two_images(folder / "layout"));
    const auto layers = store::list_folder(folder / "s/layers");
    const auto packs = store::list_folder(folder / "s/packs");
    const std::string sound = test::read_text(folder / "s/index.sqlite");
    SECTION("lost") {
        store::remove_file(folder / "s/index.sqlite");
    }
    SECTION("empty") {
        test::write_text(folder / "s/index.sqlite", "");
    }
    SECTION("cut") {
        test::write_text(folder / "s/index.sqlite", sound.substr(0, 5000));
    }
    SECTION("something else") {
        test::write_text(folder / "s/index.sqlite", std::string(20000, 'x'));
    }
    CHECK_THAT(test::error_of([&] { Store::open(folder / "s"); }), ContainsSubstring("corrupt: "));
    CHECK(store::list_folder(folder / "s/layers") == layers);
    CHECK(store::list_folder(folder / "s/packs") == packs);
    test::write_text(folder / "s/index.sqlite", sound);
    CHECK(test::problems_of(*Store::open(folder / "s")) == "");
}

TEST_CASE("images are found by name and by digest, and told with what they are", "[store]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const auto imported = test::import_from(*opened, two_images(folder / "layout"));
    REQUIRE(imported.size() == 2);
    const auto images = opened->images();
    REQUIRE(images.size() == 2);
    CHECK(images[0].names == std::vector<std::string>{"base:1"});
    CHECK(images[1].layers.size() == 2);
    CHECK(images[0].logical_bytes == 300'006);
    CHECK(images[0].platform.text() == "linux/amd64");
    for (const std::string& name : {std::string("base:1"), images[0].config.digest.text(),
                                    images[0].config.digest.hex().substr(0, 8), images[0].manifest.digest.text()}) {
        CHECK(opened->inspect(name).summary.config == images[0].config);
    }
    const auto details = opened->inspect("work:1");
    CHECK(store::Digest::of(store::as_bytes(details.config_json)) == images[1].config.digest);
    CHECK(store::Digest::of(store::as_bytes(details.manifest_json)) == images[1].manifest.digest);
    REQUIRE(details.layers.size() == 2);
    CHECK(details.layers[1].entry_count == 2);
    CHECK_THAT(test::error_of([&] { opened->inspect("nothing:1"); }), ContainsSubstring("not_found: "));
    CHECK_THAT(test::error_of([&] { opened->inspect("not an image"); }), ContainsSubstring("malformed: "));
}

TEST_CASE("names are given, moved and taken away; the image goes with its last name", "[store]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    test::import_from(*opened, two_images(folder / "layout"));
    opened->tag("base:1", ImageName::parse("other"));
    CHECK(opened->inspect("other:latest").summary.names == std::vector<std::string>{"base:1", "other:latest"});
    opened->tag("work:1", ImageName::parse("other"));
    CHECK(opened->inspect("other").summary.layers.size() == 2);
    CHECK(opened->inspect("base:1").summary.names == std::vector<std::string>{"base:1"});

    opened->remove_image("work:1", false);
    CHECK(opened->inspect("other").summary.names == std::vector<std::string>{"other:latest"});
    opened->remove_image("other", false);
    REQUIRE(opened->images().size() == 1);
    opened->tag("base:1", ImageName::parse("again"));
    opened->remove_image(opened->images()[0].config.digest.text(), false);
    CHECK(opened->images().empty());
    CHECK_THAT(test::error_of([&] { opened->remove_image("base:1", false); }), ContainsSubstring("not_found: "));
}

TEST_CASE("force takes all names of an image by one of them", "[store]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    test::import_from(*opened, two_images(folder / "layout"));
    opened->tag("base:1", ImageName::parse("other"));
    opened->remove_image("base:1", true);
    CHECK(opened->images().size() == 1);
}

TEST_CASE("an image that a mount uses is busy; by force it goes and the mount keeps its content", "[store][mount]") {
    const test::TempDir folder;
    auto opened = Store::open(folder / "s");
    test::import_from(*opened, two_images(folder / "layout"));
    const std::string id = opened->create_mount("work:1", "/mnt/app", false);
    CHECK(id.size() == 16);
    const store::MountBase base = store::read_mount_base(folder / "s/mounts/" + id);
    CHECK(base.image == "work:1");
    CHECK(base.mountpoint == "/mnt/app");
    CHECK(base.layers == opened->inspect("work:1").summary.layers);
    const std::string error = test::error_of([&] { opened->remove_image("work:1", false); });
    CHECK_THAT(error, ContainsSubstring("busy: "));
    CHECK_THAT(error, ContainsSubstring(id));

    opened->remove_image("work:1", true);
    CHECK_THAT(test::error_of([&] { opened->inspect("work:1"); }), ContainsSubstring("not_found: "));
    opened->remove_image("base:1", false);
    CHECK(opened->images().empty());
    opened->gc(false, {});
    opened.reset();
    opened = Store::open(folder / "s");
    const auto view = store::ReadView::open(folder / "s", base.tree, 1 << 20);
    const auto app = view->tree().lookup(view->tree().lookup(store::kTreeRoot, "app")->ino, "main");
    std::vector<std::byte> bytes(100'000);
    REQUIRE(view->read(app->ino, 0, bytes) == 90'000);
    CHECK(test::text_of(std::span(bytes).first(90'000)) == kApp.at("app/main"));
    CHECK(test::problems_of(*opened) == "");

    opened->discard_mount(id);
    CHECK(store::list_folder(folder / "s/mounts").empty());
    opened->gc(false, {});
    CHECK(store::list_folder(folder / "s/layers").empty());
    CHECK_THAT(test::error_of([&] { opened->discard_mount(id); }), ContainsSubstring("not_found: "));
    for (const char* bad : {"", ".", "..", "../packs", "0123", "0123456789ABCDEF"}) {
        CHECK_THAT(test::error_of([&] { opened->discard_mount(bad); }), ContainsSubstring("not_found: "));
    }
    CHECK(store::exists(folder / "s/packs"));
}

TEST_CASE("a mount whose server runs is not discarded", "[store][mount]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    test::import_from(*opened, two_images(folder / "layout"));
    const std::string id = opened->create_mount("work:1", "/mnt/app", false);
    {
        const store::File lock = store::File::create(folder / "s/mounts/" + id + "/lock");
        REQUIRE(::flock(lock.fd(), LOCK_EX) == 0);
        CHECK_THAT(test::error_of([&] { opened->discard_mount(id); }), ContainsSubstring("busy: "));
        CHECK(store::exists(folder / "s/mounts/" + id + "/base"));
    }
    opened->discard_mount(id);
    CHECK(!store::exists(folder / "s/mounts/" + id));
}

TEST_CASE("a mount of a removed image can still be committed", "[store][mount]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const auto image = test::import_from(*opened, two_images(folder / "layout")).at(0);
    opened->create_mount("base:1", "/mnt", false);
    opened->remove_image("base:1", true);
    opened->remove_image("work:1", true);
    opened->gc(false, {});
    test::TextSource tar(test::layer_tar({{"new", "file"}}));
    opened->commit({.base_config_digest = image.config.digest.text(),
                    .base_layers = image.layers,
                    .name = ImageName::parse("fresh"),
                    .created_by = "test"},
                   tar, {});
    CHECK(test::has_files(*opened, "fresh", kBase));
    CHECK(test::file_of(*opened, "fresh", "new") == "file");
}

TEST_CASE("files are listed and read inside the image's own root, links followed there", "[store]") {
    const test::TempDir folder;
    test::TarBuilder tar;
    tar.folder("etc").file("etc/real", "inside").folder("a").folder("a/b");
    tar.symlink("a/b/up", "../../../../etc/real").symlink("absolute", "/etc/real").symlink("dir", "etc");
    tar.symlink("loop", "loop").symlink("ping", "pong").symlink("pong", "ping").symlink("nowhere", "missing");
    tar.symlink("via", "/dir/../etc/./real").fifo("pipe");
    test::TestLayout layout(folder / "layout");
    layout.add_image({.name = "x", .layers = {{.tar = tar.tar()}}});
    layout.finish();
    const auto opened = Store::open(folder / "s");
    test::import_from(*opened, "oci:" + (folder / "layout"));

    for (const char* path : {"etc/real", "/etc/real", "a/b/up", "absolute", "dir/real", "via", "../../etc/real",
                             "a/../etc//real", "dir/../absolute"}) {
        CAPTURE(path);
        CHECK(test::file_of(*opened, "x", path) == "inside");
    }
    const auto error_of_reading = [&](const std::string& path) {
        return test::error_of([&] { static_cast<void>(test::file_of(*opened, "x", path)); });
    };
    for (const char* path :
         {"loop", "ping", "etc", "", "/", "pipe", "etc/real/x", "etc/real/", "absolute/", "etc/real/.."}) {
        CAPTURE(path);
        CHECK_THAT(error_of_reading(path), ContainsSubstring("malformed: "));
    }
    CHECK_THAT(error_of_reading("nowhere"), ContainsSubstring("not_found: "));
    CHECK_THAT(error_of_reading(std::string(5000, 'a')), ContainsSubstring("malformed: "));

    const auto names_of = [&](const std::string& path) {
        std::string names;
        for (const auto& name : opened->list("x", path)) names += name.path + ">" + name.link_target + " ";
        return names;
    };
    CHECK(names_of("etc") == "etc/real> ");
    CHECK(names_of("/dir/") == "dir/real> ");
    CHECK(names_of("a") == "a/b> ");
    CHECK(names_of("absolute") == "absolute>/etc/real ");
    CHECK(names_of("nowhere") == "nowhere>missing ");
    CHECK_THAT(names_of(""), ContainsSubstring("loop>loop "));
    CHECK_THAT(test::error_of([&] { opened->list("x", "missing"); }), ContainsSubstring("not_found: "));
}

TEST_CASE("what the store says it takes is what the folder holds, to the byte", "[store][usage]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const auto check = [&] {
        const store::DiskUsage usage = opened->disk_usage();
        CHECK(usage.pack_bytes + usage.index_bytes + usage.recipe_bytes + usage.tree_bytes + usage.mount_bytes +
                  usage.other_bytes ==
              test::bytes_on_disk(folder / "s"));
        return usage;
    };
    check();
    const std::string source = two_images(folder / "layout");
    test::import_from(*opened, source + ":base:1");  // Alone, so that its layer has a pack alone.
    test::import_from(*opened, source);
    opened->create_mount("base:1", "/mnt", true);
    auto usage = check();
    CHECK(usage.reclaimable_bytes == 0);
    REQUIRE(usage.images.size() == 2);
    CHECK(usage.images[0].unique_bytes == 0);
    CHECK(usage.images[1].unique_bytes > 0);
    CHECK(usage.images[1].stored_bytes > usage.images[0].stored_bytes);
    CHECK(usage.logical_bytes == 300'006 + 390'007);
    CHECK(usage.mount_bytes > 0);

    opened->remove_image("work:1", false);
    usage = check();
    CHECK(usage.reclaimable_bytes > 0);
    const std::uint64_t before = test::bytes_on_disk(folder / "s/packs") + usage.recipe_bytes + usage.tree_bytes;
    const store::GcReport report = opened->gc(false, {});
    CHECK(report.freed_bytes == usage.reclaimable_bytes);
    CHECK(report.packs_removed == 1);
    usage = check();
    CHECK(usage.reclaimable_bytes == 0);
    CHECK(test::bytes_on_disk(folder / "s/packs") + usage.recipe_bytes + usage.tree_bytes < before);
}

TEST_CASE("a saved image comes back with the same layers and config, and adds nothing", "[store][save]") {
    const test::TempDir folder;
    const auto opened = Store::open(folder / "s");
    const auto images = test::import_from(*opened, two_images(folder / "layout"));
    for (const std::string& target : {"oci:" + (folder / "out") + ":app", "oci-archive:" + (folder / "a.tar") + ":app",
                                      "docker-archive:" + (folder / "d.tar")}) {
        CAPTURE(target);
        opened->save({.image = "work:1", .target = target, .progress = {}}, {});
        const auto again = test::import_from(*opened, target);
        REQUIRE(again.size() == 1);
        CHECK(again[0].config == images[1].config);
        CHECK(again[0].layers == images[1].layers);
        CHECK(opened->images().size() == 2);
    }
    CHECK(opened->disk_usage().reclaimable_bytes == 0);
    CHECK(store::list_folder(folder / "s/layers").size() == 2);
    CHECK_THAT(test::error_of([&] { opened->save({.image = "no:1", .target = "oci:/x", .progress = {}}, {}); }),
               ContainsSubstring("not_found: "));
}
