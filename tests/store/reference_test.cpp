#include "store/reference.h"

#include "store/error.h"
#include "support/catch.h"
#include "support/oci_archive.h"

#include <string>
#include <vector>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;

TEST_CASE("an image name without a tag has the tag latest, and is not expanded otherwise", "[store][reference]") {
    CHECK(store::ImageName::parse("debian").text() == "debian:latest");
    CHECK(store::ImageName::parse("debian:12").text() == "debian:12");
    CHECK(store::ImageName::parse("localhost:5000/a/b").text() == "localhost:5000/a/b:latest");
    CHECK(store::ImageName::parse("debian") == store::ImageName::parse("debian:latest"));
}

TEST_CASE("names of the distribution grammar are taken", "[store][reference]") {
    const std::string good[] = {"a",
                                "a.b",
                                "a_b",
                                "a__b",
                                "a-b",
                                "a---b",
                                "0/1",
                                "docker.io/library/debian:bookworm-slim",
                                "localhost/x:T_a.g-1",
                                "EXAMPLE.com/x",
                                "Registry/x",
                                "127.0.0.1:5000/x:1",
                                "[::1]:5000/x:1",
                                "[fe80::1]/x",
                                "a:" + std::string(128, 't'),
                                std::string(255, 'a')};
    for (const std::string& text : good) {
        CAPTURE(text);
        CHECK(test::error_of([&] { store::ImageName::parse(text); }).empty());
    }
}

TEST_CASE("text that is no image name is refused with the rule that it breaks", "[store][reference]") {
    const std::string bad[] = {"",
                               ":",
                               ":tag",
                               "a:",
                               "/a",
                               "a/",
                               "a//b",
                               "A",
                               "a/B",
                               "a..b",
                               "a._b",
                               "a___b",
                               "-a",
                               "a-",
                               "a b",
                               "a:b c",
                               "a:-b",
                               "a:.b",
                               "a@b",
                               "a:b:c",
                               "../a",
                               "a/../b",
                               "a\nb",
                               "a:b/c",
                               "x.y:/a",
                               "x.y:66666666/a",
                               "-x.y/a",
                               "x..y/a",
                               "[::1/a",
                               "[zz]/a",
                               "[]:5/a",
                               ".a/b",
                               "a\xc3\xa4",
                               std::string("a\0b", 3),
                               "a:" + std::string(129, 't'),
                               std::string(256, 'a'),
                               "debian@sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"};
    for (const std::string& text : bad) {
        CAPTURE(text);
        const std::string error = test::error_of([&] { store::ImageName::parse(text); });
        CHECK_THAT(error, ContainsSubstring("malformed: image name"));
        CHECK(error.find('\n') == std::string::npos);
    }
}

TEST_CASE("an image is named by name, or by six and more digits of its digest", "[store][reference]") {
    const auto both = store::ImageReference::parse("abcdef");
    CHECK(both.name->text() == "abcdef:latest");
    CHECK(both.digest_prefix_hex == "abcdef");

    CHECK(store::ImageReference::parse("abcde").digest_prefix_hex.empty());
    CHECK(store::ImageReference::parse("sha256:0123456").digest_prefix_hex == "0123456");
    CHECK(store::ImageReference::parse("debian:12").digest_prefix_hex.empty());

    const std::string whole(64, 'a');
    CHECK(store::ImageReference::parse("sha256:" + whole).digest_prefix_hex == whole);
    CHECK(store::ImageReference::parse(whole + "a").digest_prefix_hex.empty());
}

TEST_CASE("what is neither name nor digest names no image", "[store][reference]") {
    for (const std::string text : {"", "sha256:", "../x", "ABCDEF", "a\nb"}) {
        CAPTURE(text);
        CHECK_THAT(test::error_of([&] { store::ImageReference::parse(text); }), ContainsSubstring("malformed"));
    }
}
