#include "store/oci.h"

#include "store/error.h"
#include "support/catch.h"
#include "support/oci_archive.h"

#include <string>
#include <utility>
#include <vector>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;

namespace {

constexpr auto kManifestType = "application/vnd.oci.image.manifest.v1+json";
constexpr auto kDockerManifestType = "application/vnd.docker.distribution.manifest.v2+json";
const std::string kHexA(64, 'a');
const std::string kHexB(64, 'b');

const std::string kManifest =
    R"({"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",)"
    R"("config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:)" +
    kHexA + R"(","size":12},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:)" +
    kHexB + R"(","size":34}]})";

const std::string kConfig = R"({"architecture":"arm64","variant":"v8","os":"linux","created":"2026-01-01T00:00:00Z",)"
                            R"("config":{"Env":["A=1"]},"rootfs":{"type":"layers","diff_ids":["sha256:)" +
                            kHexA + R"("]}})";

std::string entry(const std::string& platform, const std::string& hex) {
    return R"({"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:)" + hex + R"(","size":1)" +
           (platform.empty() ? "" : R"(,"platform":)" + platform) + "}";
}

std::string index_of(const std::vector<std::string>& entries) {
    std::string list;
    for (const std::string& text : entries) list += (list.empty() ? "" : ",") + text;
    return R"({"schemaVersion":2,"manifests":[)" + list + "]}";
}

std::string manifest_error(const std::string& document, const std::string& media_type = kManifestType) {
    return test::error_of([&] { store::oci::parse_manifest(store::as_bytes(document), media_type); });
}
std::string index_error(const std::string& document) {
    return test::error_of([&] { store::oci::parse_image_index(store::as_bytes(document)); });
}
std::string config_error(const std::string& document) {
    return test::error_of([&] { store::oci::parse_config(store::as_bytes(document)); });
}

}  // namespace

TEST_CASE("a manifest gives its config and its layers in order", "[store][oci]") {
    const auto manifest = store::oci::parse_manifest(store::as_bytes(kManifest), kManifestType);
    CHECK(manifest.media_type == kManifestType);
    CHECK(manifest.config.digest.digest.hex() == kHexA);
    CHECK(manifest.config.size_bytes == 12);
    REQUIRE(manifest.layers.size() == 1);
    CHECK(manifest.layers[0].digest.digest.hex() == kHexB);
    CHECK(manifest.layers[0].media_type == "application/vnd.oci.image.layer.v1.tar+gzip");
}

TEST_CASE("a Docker manifest is read like an OCI one", "[store][oci]") {
    const std::string docker = test::replaced(kManifest, kManifestType, kDockerManifestType);
    CHECK(store::oci::parse_manifest(store::as_bytes(docker), kDockerManifestType).media_type == kDockerManifestType);
}

TEST_CASE("a manifest that does not name its type has its descriptor's", "[store][oci]") {
    const std::string silent =
        test::replaced(kManifest, R"("mediaType":"application/vnd.oci.image.manifest.v1+json",)", "");
    CHECK(store::oci::parse_manifest(store::as_bytes(silent), kManifestType).media_type == kManifestType);
    CHECK(store::oci::parse_manifest(store::as_bytes(silent), "").media_type == kManifestType);
}

TEST_CASE("a manifest that is something else to somebody else is refused", "[store][oci]") {
    CHECK_THAT(manifest_error(kManifest, kDockerManifestType), ContainsSubstring("its descriptor says"));
    CHECK_THAT(manifest_error(test::replaced(kManifest, R"("layers")", R"("manifests":[],"layers")")),
               ContainsSubstring("an image index or a manifest, not both"));
    CHECK_THAT(manifest_error(test::replaced(kManifest, R"("layers")", R"("Layers":[],"layers")")),
               ContainsSubstring("\"Layers\" differs from \"layers\" in case only"));
    CHECK_THAT(manifest_error(test::replaced(kManifest, R"("size":12)", R"("size":12,"Digest":"x")")),
               ContainsSubstring("config: the field \"Digest\""));
    CHECK_THAT(manifest_error(test::replaced(kManifest, R"("size":12)", R"("size":12,"size":13)")),
               ContainsSubstring("the key \"size\" occurs twice"));
    CHECK_THAT(manifest_error(test::replaced(kManifest, R"("size":12)", R"("size":12,"si\u007ae":13)")),
               ContainsSubstring("the key \"size\" occurs twice"));
    CHECK_THAT(manifest_error(index_of({entry("", kHexA)})), ContainsSubstring("malformed"));
    CHECK_THAT(index_error(kManifest), ContainsSubstring("malformed"));
}

TEST_CASE("each wrong field of a manifest is named", "[store][oci]") {
    const std::pair<std::pair<std::string, std::string>, std::string> cases[] = {
        {{R"("schemaVersion":2)", R"("schemaVersion":1)"}, "unsupported: schemaVersion: 1"},
        {{R"("schemaVersion":2)", R"("schemaVersion":3)"}, "malformed: schemaVersion: 3"},
        {{R"("schemaVersion":2)", R"("schemaVersion":"2")"}, "schemaVersion: not an integer"},
        {{R"("schemaVersion":2,)", ""}, "schemaVersion: missing"},
        {{R"("size":12)", R"("size":-1)"}, "config.size: not an integer"},
        {{R"("size":12)", R"("size":1.5)"}, "config.size: not an integer"},
        {{R"("size":12)", R"("size":1e1)"}, "config.size: not an integer"},
        {{R"("size":12)", R"("size":9223372036854775808)"}, "config.size: not an integer"},
        {{R"("size":12)", R"("size":18446744073709551628)"}, "config.size: not an integer"},
        {{R"("size":12)", R"("size":"12")"}, "config.size: not an integer"},
        {{R"("size":12)", R"("size":null)"}, "config.size: missing"},
        {{R"("size":34)", R"("size":true)"}, "layers[0].size: not an integer"},
        {{R"("sha256:)" + kHexB, R"("sha256:../../)" + kHexB}, "layers[0].digest: \"sha256:../../"},
        {{R"("sha256:)" + kHexB, R"("sha512:)" + kHexB}, "layers[0].digest: \"sha512:"},
        {{R"("sha256:)" + kHexA, R"("sha256:A)" + kHexA.substr(1)}, "config.digest: \"sha256:A"},
        {{R"("config":{)", R"("konfig":{)"}, "config: missing"},
        {{R"("layers":[)", R"("laiers":[)"}, "layers: missing"},
        {{R"("mediaType":"application/vnd.oci.image.config.v1+json",)", ""}, "config.mediaType: missing"},
        {{R"("mediaType":"application/vnd.oci.image.config.v1+json",)", R"("mediaType":"",)"}, "a media type has 1 to"},
        {{R"("size":34)", R"("size":34,"annotations":{"a\nb":1})"}, "annotations.\"a\\x0ab\": not a string"},
        {{R"("size":34)", R"("size":34,"annotations":[])"}, "layers[0].annotations: not a JSON object"},
    };
    for (const auto& [change, expected] : cases) {
        const std::string error = manifest_error(test::replaced(kManifest, change.first, change.second));
        CAPTURE(change.second);
        CHECK_THAT(error, ContainsSubstring(expected));
        CHECK(error.find('\n') == std::string::npos);
    }
}

TEST_CASE("a manifest cut off at any byte is refused", "[store][oci]") {
    for (std::size_t size = 0; size < kManifest.size(); ++size) {
        CAPTURE(size);
        CHECK_THAT(manifest_error(kManifest.substr(0, size)), ContainsSubstring("malformed"));
    }
}

TEST_CASE("a flipped bit of a manifest gives a refusal or another manifest, never worse", "[store][oci]") {
    for (std::size_t bit = 0; bit < kManifest.size() * 8; ++bit) {
        std::string damaged = kManifest;
        damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
        const std::string error = manifest_error(damaged);
        CAPTURE(bit, error);
        CHECK(error.find('\n') == std::string::npos);
    }
}

TEST_CASE("text that is no strict JSON is refused", "[store][oci]") {
    const std::string bad[] = {"",
                               "nul",
                               "[]",
                               "\"x\"",
                               "{} {}",
                               "{}x",
                               "{,}",
                               "{\"a\":1,}",
                               "{'a':1}",
                               "{\"a\":01}",
                               "{\"a\":NaN}",
                               "{\"a\":\"\x01\"}",
                               "{\"a\":\"\xff\"}",
                               "{\"\xc0\xaf\":1}",
                               "{\"a\":\"\\ud800\"}",
                               "// c\n{}",
                               "\xef\xbb\xbf{}",
                               std::string("{}\0", 3)};
    for (const std::string& text : bad) {
        CAPTURE(text);
        CHECK_THAT(manifest_error(text), ContainsSubstring("malformed"));
    }
}

TEST_CASE("documents are limited in size and depth", "[store][oci]") {
    const auto nested = [](std::size_t depth) {
        return test::replaced(kConfig, R"({"Env":["A=1"]})", std::string(depth, '[') + std::string(depth, ']'));
    };
    CHECK(config_error(nested(63)).empty());
    CHECK_THAT(config_error(nested(64)), ContainsSubstring("malformed"));
    CHECK_THAT(config_error(nested(1'000'000)), ContainsSubstring("malformed"));

    const std::string space(store::oci::kMaxDocumentBytes - kConfig.size(), ' ');
    CHECK(config_error(kConfig + space).empty());
    CHECK_THAT(config_error(kConfig + space + " "), ContainsSubstring("at most 4194304"));
}

TEST_CASE("an image has at most 500 layers", "[store][oci]") {
    const auto with_layers = [](std::size_t count) {
        std::string layers;
        for (std::size_t i = 0; i < count; ++i) layers += (i == 0 ? "" : ",") + entry("", kHexA);
        const std::size_t begin = kManifest.find("\"layers\":[") + 10;
        return kManifest.substr(0, begin) + layers + "]}";
    };
    CHECK(manifest_error(with_layers(500)).empty());
    CHECK(manifest_error(with_layers(0)).empty());
    CHECK_THAT(manifest_error(with_layers(501)), ContainsSubstring("layers: 501 layers, at most 500"));

    std::string ids;
    for (int i = 0; i < 501; ++i) ids += (i == 0 ? "\"sha256:" : ",\"sha256:") + kHexA + "\"";
    CHECK_THAT(config_error(test::replaced(kConfig, "\"sha256:" + kHexA + "\"", ids)),
               ContainsSubstring("rootfs.diff_ids: 501 layers, at most 500"));
}

TEST_CASE("a config gives platform, time and diff IDs, and ignores the rest", "[store][oci]") {
    const auto config = store::oci::parse_config(store::as_bytes(kConfig));
    CHECK(config.platform.text() == "linux/arm64/v8");
    CHECK(config.created == "2026-01-01T00:00:00Z");
    REQUIRE(config.diff_ids.size() == 1);
    CHECK(config.diff_ids[0].digest.hex() == kHexA);
}

TEST_CASE("each wrong field of a config is named", "[store][oci]") {
    CHECK_THAT(config_error("{}"), ContainsSubstring("rootfs: missing"));
    CHECK_THAT(config_error("[]"), ContainsSubstring("not a JSON object"));
    CHECK_THAT(config_error(test::replaced(kConfig, R"("type":"layers",)", "")), ContainsSubstring("rootfs.type"));
    CHECK_THAT(config_error(test::replaced(kConfig, R"("layers")", R"("windows")")), ContainsSubstring("rootfs.type"));
    CHECK_THAT(config_error(test::replaced(kConfig, R"("os":"linux")", R"("os":7)")),
               ContainsSubstring("os: not a string"));
    CHECK_THAT(config_error(test::replaced(kConfig, "sha256:", "")), ContainsSubstring("rootfs.diff_ids[0]"));
    CHECK_THAT(config_error(test::replaced(kConfig, R"("diff_ids")", R"("Diff_IDs":[],"diff_ids")")),
               ContainsSubstring("in case only"));
}

TEST_CASE("the first entry that fits the platform is chosen", "[store][oci]") {
    const std::string document = index_of({entry("", kHexA), entry(R"({"os":"linux","architecture":"arm64"})", kHexA),
                                           entry(R"({"os":"linux","architecture":"amd64"})", kHexB),
                                           entry(R"({"os":"linux","architecture":"amd64"})", kHexA)});
    const auto index = store::oci::parse_image_index(store::as_bytes(document));
    const auto amd64 = store::oci::Platform::parse("linux/amd64");
    CHECK(store::oci::choose_platform(index, amd64).digest.digest.hex() == kHexB);
    CHECK(store::oci::choose_platform(index, store::oci::Platform::parse("linux/arm64/v8")).digest.digest.hex() ==
          kHexA);
    CHECK_THAT(test::error_of([&] { store::oci::choose_platform(index, store::oci::Platform::parse("linux/s390x")); }),
               ContainsSubstring("no image for linux/s390x; there are: linux/arm64, linux/amd64, linux/amd64"));
}

TEST_CASE("a lone entry need not name its platform, an attestation is never chosen", "[store][oci]") {
    const auto amd64 = store::oci::Platform::parse("linux/amd64");
    const auto parse = [](const std::string& document) {
        return store::oci::parse_image_index(store::as_bytes(document));
    };
    const auto lone = parse(index_of({entry("", kHexA)}));
    CHECK(store::oci::choose_platform(lone, amd64).digest.digest.hex() == kHexA);
    const auto attestation = parse(index_of({entry(R"({"os":"unknown","architecture":"unknown"})", kHexA)}));
    CHECK_THAT(test::error_of([&] { store::oci::choose_platform(attestation, amd64); }),
               ContainsSubstring("no image for linux/amd64"));
    CHECK_THAT(test::error_of([&] { store::oci::choose_platform(parse(index_of({})), amd64); }),
               ContainsSubstring("no image for linux/amd64"));
}

TEST_CASE("a platform is two or three words", "[store][oci]") {
    CHECK(store::oci::Platform::parse("linux/arm/v7").variant == "v7");
    for (const std::string text :
         {"", "linux", "linux/", "/amd64", "linux/amd64/", "a/b/c/d", "linux/am d64", "a//b"}) {
        CAPTURE(text);
        CHECK_THAT(test::error_of([&] { store::oci::Platform::parse(text); }),
                   ContainsSubstring("malformed: platform"));
    }
    CHECK(store::oci::Platform::host().os == "linux");
    CHECK(store::oci::Platform::parse(store::oci::Platform::host().text()).matches(store::oci::Platform::host()));
}

TEST_CASE("layer media types of OCI and Docker say how they are compressed, others are unknown", "[store][oci]") {
    using store::Compression;
    CHECK(store::oci::layer_compression("application/vnd.oci.image.layer.v1.tar") == Compression::none);
    CHECK(store::oci::layer_compression("application/vnd.oci.image.layer.v1.tar+zstd") == Compression::zstd);
    CHECK(store::oci::layer_compression("application/vnd.docker.image.rootfs.diff.tar.gzip") == Compression::gzip);
    CHECK(store::oci::layer_compression("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip") ==
          Compression::gzip);
    CHECK(store::oci::layer_compression("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip") ==
          Compression::gzip);
    CHECK_FALSE(store::oci::layer_compression("application/vnd.erofs.layer.v1"));
    CHECK_FALSE(store::oci::layer_compression("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"));
    CHECK_FALSE(store::oci::layer_compression(""));
}

TEST_CASE("a written manifest is the same bytes each time, and is read back as it was", "[store][oci]") {
    auto manifest = store::oci::parse_manifest(store::as_bytes(kManifest), kManifestType);
    CHECK(store::oci::write_manifest(manifest.config, manifest.layers) == kManifest);

    manifest.layers[0].annotations = {{"z", "quote \" and \n"}, {"a", "\xc3\xa4"}};
    const std::string written = store::oci::write_manifest(manifest.config, manifest.layers);
    const auto again = store::oci::parse_manifest(store::as_bytes(written), kManifestType);
    CHECK(again.layers[0].annotations == manifest.layers[0].annotations);
    CHECK(store::oci::write_manifest(again.config, again.layers) == written);
}
