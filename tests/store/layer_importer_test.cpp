#include "store/layer_importer.h"

#include "store/error.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/imported_layer.h"
#include "support/oci_archive.h"

using namespace lamina;

TEST_CASE("a layer comes back byte for byte, and its diff ID covers all of it", "[store][layer]") {
    const std::string tar = test::TarBuilder()
                                .folder("etc")
                                .file("etc/motd", "hello")
                                .file("etc/empty", "")
                                .file("big", std::string(300'000, 'x') + "end")
                                .symlink("link", "etc/motd")
                                .hardlink("hard", "etc/motd")
                                .device("null", '3', {1, 3})
                                .fifo("pipe")
                                .tar() +
                            "what follows the end marker";
    const auto imported = test::import_tar(tar);
    CHECK(imported->layer.diff_id.digest == store::Digest::of(store::as_bytes(tar)));
    CHECK(imported->layer.tar_bytes == tar.size());
    CHECK(imported->layer.entry_count == 8);
    CHECK(imported->tar() == tar);
}
