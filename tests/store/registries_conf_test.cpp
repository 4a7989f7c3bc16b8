#include "store/registries_conf.h"

#include "support/catch.h"
#include "support/oci_archive.h"

#include <string>
#include <vector>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::RegistryReference;

namespace {

std::vector<std::string> places_of(const store::RegistriesConf& conf, std::string_view reference) {
    std::vector<std::string> texts;
    for (const store::RegistryPlace& place : conf.places(RegistryReference::parse(reference))) {
        texts.push_back(place.reference.text() + (place.is_insecure ? " insecure" : "") +
                        (place.is_mirror ? " mirror" : ""));
    }
    return texts;
}

store::RegistriesConf conf_of(std::string_view text) {
    store::RegistriesConf conf;
    conf.add(text, "test.conf");
    return conf;
}

const std::string kDigest = "sha256:" + std::string(64, 'a');
using Places = std::vector<std::string>;

}  // namespace

TEST_CASE("a reference is host, repository, tag and digest", "[store][registry]") {
    const auto whole = RegistryReference::parse("docker://localhost:5000/a/b:1@" + kDigest);
    CHECK(whole.host == "localhost:5000");
    CHECK(whole.repository == "a/b");
    CHECK(whole.tag == "1");
    CHECK(whole.reference() == kDigest);
    CHECK(whole.text() == "localhost:5000/a/b:1@" + kDigest);

    CHECK(RegistryReference::parse("a.example/x").text() == "a.example/x:latest");
    CHECK(RegistryReference::parse("a.example/x@" + kDigest).tag.empty());
    CHECK(RegistryReference::parse("docker.io/debian").text() == "docker.io/library/debian:latest");
    CHECK(RegistryReference::parse("index.docker.io/debian").text() == "docker.io/library/debian:latest");
    CHECK(RegistryReference::parse("docker.io/me/x").repository == "me/x");
    CHECK(RegistryReference::parse("[::1]:5000/x").host == "[::1]:5000");
    CHECK(RegistryReference::parse("debian:12").host.empty());
    CHECK(RegistryReference::parse("library/debian").repository == "library/debian");
}

TEST_CASE("what is no reference is refused, saying which rule it breaks", "[store][registry]") {
    const std::vector<std::string> all = {
        "",           "@" + kDigest,  "x@sha256:1", "x@md5:1",        "x:1@" + kDigest + "0", "X/",
        "a.example/", "a.example/x:", "a b/c",      "a.example/../x", "https://a.example/x"};
    for (const std::string& bad : all) {
        CAPTURE(bad);
        CHECK_THAT(test::error_of([&] { RegistryReference::parse(bad); }), ContainsSubstring("malformed: image name"));
    }
}

TEST_CASE("without configuration an image is where its name says, and short names are Docker's", "[store][registry]") {
    const store::RegistriesConf conf;
    CHECK(places_of(conf, "a.example/x:1") == Places{"a.example/x:1"});
    CHECK(places_of(conf, "debian:12") == Places{"docker.io/library/debian:12"});
    CHECK(conf.place_for_push(RegistryReference::parse("me/x")).reference.text() == "docker.io/me/x:latest");
}

TEST_CASE("mirrors come first, in their order, and some only for digests or tags", "[store][registry]") {
    const auto conf = conf_of(R"(
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "near.example/hub"
insecure = true
[[registry.mirror]]
location = "digests.example"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.example/"
pull-from-mirror = "tag-only"
)");
    CHECK(places_of(conf, "docker.io/debian:12") == Places{"near.example/hub/library/debian:12 insecure mirror",
                                                           "tags.example/library/debian:12 mirror",
                                                           "docker.io/library/debian:12"});
    CHECK(places_of(conf, "docker.io/debian@" + kDigest) ==
          Places{"near.example/hub/library/debian@" + kDigest + " insecure mirror",
                 "digests.example/library/debian@" + kDigest + " mirror", "docker.io/library/debian@" + kDigest});
    CHECK(conf.place_for_push(RegistryReference::parse("docker.io/debian:12")).reference.text() ==
          "docker.io/library/debian:12");
}

TEST_CASE("the longest prefix counts, and ends where a component ends", "[store][registry]") {
    const auto conf = conf_of(R"(
registry = [ {location = "a.example", insecure = true}, {prefix = "a.example/team", location = "b.example/moved"},
             {prefix = "*.c.example", location = "d.example"}, {prefix = "a.example/shut", blocked = true} ]
)");
    CHECK(places_of(conf, "a.example/x") == Places{"a.example/x:latest insecure"});
    CHECK(places_of(conf, "a.example/team/x:1") == Places{"b.example/moved/x:1 mirror"});
    CHECK(places_of(conf, "a.example/teams/x:1") == Places{"a.example/teams/x:1 insecure"});
    CHECK(places_of(conf, "a.example:5000/x:1") == Places{"a.example:5000/x:1"});
    CHECK(places_of(conf, "one.c.example/x:1") == Places{"d.example/x:1 mirror"});
    CHECK(places_of(conf, "c.example/x:1") == Places{"c.example/x:1"});
    CHECK_THAT(test::error_of([&] { places_of(conf, "a.example/shut/x"); }), ContainsSubstring("is blocked"));
    CHECK_THAT(test::error_of([&] { conf.place_for_push(RegistryReference::parse("a.example/shut/x")); }),
               ContainsSubstring("is blocked"));
}

TEST_CASE("short names are aliases first, then what every search registry has", "[store][registry]") {
    auto conf = conf_of(R"(
unqualified-search-registries = ["one.example", "docker.io"]
[aliases]
"fedora" = "registry.fedora.example/fedora"
)");
    CHECK(places_of(conf, "fedora:40") == Places{"registry.fedora.example/fedora:40"});
    CHECK(places_of(conf, "debian") == Places{"one.example/debian:latest", "docker.io/library/debian:latest"});
    conf.add("[aliases]\nfedora = \"\"\n", "later.conf");
    CHECK(places_of(conf, "fedora:40").size() == 2);
}

TEST_CASE("a broken file is named with its line", "[store][registry]") {
    CHECK_THAT(test::error_of([] { conf_of("a = 1\nb = [\n"); }), ContainsSubstring("malformed: test.conf:"));
    CHECK_THAT(test::error_of([] { conf_of("[[registry]]\n"); }), ContainsSubstring("neither prefix nor location"));
    CHECK_THAT(test::error_of([] { conf_of("[[registry]]\nlocation = 5\n"); }),
               ContainsSubstring("location is no string"));
    CHECK_THAT(test::error_of([] { conf_of("[[registry]]\nlocation = \"a\"\nblocked = \"no\"\n"); }),
               ContainsSubstring("neither true nor false"));
    CHECK_THAT(test::error_of([] { conf_of("[registries.search]\nregistries = [\"a\"]\n"); }),
               ContainsSubstring("version 1"));
}
