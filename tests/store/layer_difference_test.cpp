#include "store/layer_difference.h"

#include "store/blob_spool.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/imported_layer.h"
#include "support/temp_dir.h"

#include <string>
#include <vector>

using namespace lamina;
using test::TarAttributes;
using test::TarBuilder;

namespace {

std::string difference(TarBuilder& layer, TarBuilder& said) {
    const auto a = test::import_tar(layer.tar());
    const auto b = test::import_tar(said.tar());
    return store::first_difference(*a->recipe(), *b->recipe()).value_or("none");
}

}  // namespace

TEST_CASE("the first field in which two layers differ is named, with its path and both values") {
    struct Row {
        TarBuilder said;
        std::string line;
    };
    const auto layer = [] { return TarBuilder().folder("d").file("d/f", "abc").symlink("d/l", "f"); };
    std::vector<Row> rows;
    rows.push_back({layer(), "none"});
    rows.push_back({TarBuilder().folder("d").file("d/f", "abd").symlink("d/l", "f"),
                    "\"d/f\": its content is not what the index says"});
    rows.push_back(
        {TarBuilder().folder("d").file("d/f", "ab").symlink("d/l", "f"), "\"d/f\": its size is 3, the index says 2"});
    rows.push_back({TarBuilder().folder("d").file("d/f", "abc").symlink("d/l", "g"),
                    "\"d/l\": its link target is \"f\", the index says \"g\""});
    rows.push_back({TarBuilder().folder("d").file("d/f", "abc").folder("d/l"),
                    "\"d/l\": its type is symlink, the index says folder"});
    rows.push_back({TarBuilder().folder("d").file("d/f", "abc").hardlink("d/l", "d/f"),
                    "\"d/l\": its kind is no hard link, the index says a hard link"});
    rows.push_back({TarBuilder().folder("d").file("d/f", "abc"), "\"d/l\": the index lacks this entry"});
    rows.push_back({layer().file("x", ""), "\"x\": the layer has no such entry"});
    for (Row& row : rows) {
        TarBuilder truth = layer();
        CHECK(difference(truth, row.said) == row.line);
    }
}

TEST_CASE("a spool has what was put into it, and the digest of all of it") {
    const test::TempDir folder;
    const store::BlobSpool spool(folder / "blob");
    const std::string text(300'000, 'x');
    CHECK_FALSE(spool.has(0, 1));
    CHECK_FALSE(spool.digest(text.size(), {}));
    spool.put(200'000, store::as_bytes(text).first(100'000));
    CHECK(spool.has(200'000, 300'000));
    CHECK_FALSE(spool.has(0, 200'000));
    CHECK_FALSE(spool.has(200'000, 300'001));
    spool.put(0, store::as_bytes(text).first(200'000));
    CHECK(spool.has(0, 300'000));
    CHECK(spool.digest(text.size(), {}) == store::BlobDigest{store::Digest::of(store::as_bytes(text))});
    CHECK_FALSE(spool.digest(text.size() + 1, {}));
}
