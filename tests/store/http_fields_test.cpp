#include "store/http_fields.h"

#include "store/http_url.h"
#include "support/catch.h"
#include "support/oci_archive.h"

#include <string>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;

TEST_CASE("challenges are read as RFC 9110 writes them", "[store][http]") {
    const auto bearer = store::parse_challenges(
        R"(Bearer realm="https://auth.example/token?a=1,2",service="registry.example", scope="repository:a/b:pull")");
    REQUIRE(bearer.size() == 1);
    CHECK(bearer[0].scheme == "bearer");
    CHECK(bearer[0].parameters.at("realm") == "https://auth.example/token?a=1,2");
    CHECK(bearer[0].parameters.at("service") == "registry.example");
    CHECK(bearer[0].parameters.at("scope") == "repository:a/b:pull");

    const auto two = store::parse_challenges(R"(BASIC Realm = "a \"b\" c", Negotiate, Bearer realm=plain)");
    REQUIRE(two.size() == 3);
    CHECK(two[0].scheme == "basic");
    CHECK(two[0].parameters.at("realm") == "a \"b\" c");
    CHECK(two[1].scheme == "negotiate");
    CHECK(two[2].parameters.at("realm") == "plain");
}

TEST_CASE("a challenge that breaks off or repeats itself gives what was read before, and ends", "[store][http]") {
    CHECK(store::parse_challenges("").empty());
    CHECK(store::parse_challenges(" , ,,").empty());
    CHECK(store::parse_challenges("=\"x\"").empty());
    CHECK(store::parse_challenges(R"(Bearer realm="open)").at(0).parameters.empty());
    CHECK(store::parse_challenges(R"(Bearer realm="x\)").at(0).parameters.empty());
    CHECK(store::parse_challenges(R"(Bearer a=1,a=2)").at(0).parameters.at("a") == "1");
    std::string many;
    for (int i = 0; i < 1000; ++i) many += "s" + std::to_string(i) + " a=1,";
    CHECK(store::parse_challenges(many).size() == 8);
    std::string wide = "Bearer a=1";
    for (int i = 0; i < 1000; ++i) wide += ",p" + std::to_string(i) + "=1";
    CHECK(store::parse_challenges(wide).at(0).parameters.size() == 16);
}

TEST_CASE("a content range is its numbers or nothing", "[store][http]") {
    const auto range = store::parse_content_range("bytes 5-9/20");
    REQUIRE(range);
    CHECK(range->first == 5);
    CHECK(range->last == 9);
    CHECK(range->total_bytes == 20);
    CHECK(!store::parse_content_range("bytes 5-9/*")->total_bytes);
    for (const char* bad : {"", "bytes", "bytes 9-5/20", "bytes 5-20/20", "bytes 5-9", "bytes -9/20", "bytes 5-/20",
                            "bytes */20", "items 5-9/20", "bytes 5-9/20 ", "bytes 0x5-9/20", "bytes 5-9/-1",
                            "bytes 5-99999999999999999999/*", "bytes 5/9-20"}) {
        CAPTURE(bad);
        CHECK(!store::parse_content_range(bad));
    }
}

TEST_CASE("Retry-After is seconds or a date, and never more than a day", "[store][http]") {
    constexpr std::int64_t kNow = 784'111'777;  // Sun, 06 Nov 1994 08:49:37 GMT
    CHECK(store::parse_retry_after("7", kNow)->count() == 7);
    CHECK(store::parse_retry_after("Sun, 06 Nov 1994 08:50:37 GMT", kNow)->count() == 60);
    CHECK(store::parse_retry_after("Sun, 06 Nov 1994 08:48:37 GMT", kNow)->count() == 0);
    CHECK(store::parse_retry_after("99999999999999999999999", kNow)->count() == 86'400);
    CHECK(!store::parse_retry_after("soon", kNow));
    CHECK(!store::parse_retry_after("", kNow));
    CHECK(!store::parse_retry_after("-1", kNow));
}

TEST_CASE("a URL has an origin, and shows no query", "[store][http]") {
    const store::Url url = store::Url::parse("https://Registry.example/v2/a/blobs/x?sig=secret&b=1#part");
    CHECK(url.origin() == "https://registry.example:443");
    CHECK(url.shown() == "https://registry.example:443/v2/a/blobs/x");
    CHECK(url.resolve("/other?x=1").text() == "https://registry.example/other?x=1");
    CHECK(url.resolve("next").text() == "https://registry.example/v2/a/blobs/next");
    CHECK(url.resolve("http://else.example:8080/y").origin() == "http://else.example:8080");
    CHECK(url.resolve("//else.example/y").origin() == "https://else.example:443");
    CHECK(store::Url::parse("http://[::1]:5000/").origin() == "http://[::1]:5000");
    CHECK_THAT(url.with_parameter("scope", "repository:a/b:pull,push").text(),
               ContainsSubstring("&scope=repository%3aa%2fb%3apull%2cpush"));
}

TEST_CASE("a URL that could mean something else to another reader is refused", "[store][http]") {
    for (const char* bad : {"", "/v2/", "ftp://a/", "file:///etc/passwd", "https://", "https://user@a/",
                            "https://user:secret@a/", "https://a b/", "https://a/\r\nX: y", "https://a\t/",
                            "a.example/x", "javascript:x", "https://a:99999999/", "https://a:b/"}) {
        CAPTURE(bad);
        const std::string error = test::error_of([&] { store::Url::parse(bad); });
        CHECK_THAT(error, ContainsSubstring("malformed"));
        CHECK(error.find("secret") == std::string::npos);
    }
    const store::Url url = store::Url::parse("https://a.example/");
    CHECK_THAT(test::error_of([&] { url.resolve("gopher://b/"); }), ContainsSubstring("malformed"));
    CHECK_THAT(test::error_of([&] { url.resolve("https://u:p@b/"); }), ContainsSubstring("malformed"));
    CHECK_THAT(test::error_of([&] { store::Url::parse("https://a/" + std::string(9000, 'x')); }),
               ContainsSubstring("8 KiB"));
}

TEST_CASE("addresses that only machines nearby have are told from public ones", "[store][http]") {
    for (const char* near : {"127.0.0.1",
                             "10.1.2.3",
                             "172.16.0.1",
                             "172.31.255.255",
                             "192.168.1.1",
                             "169.254.169.254",
                             "100.64.0.1",
                             "0.0.0.0",
                             "224.0.0.1",
                             "::1",
                             "::",
                             "fe80::1",
                             "fe80::1%eth0",
                             "fd00::1",
                             "ff02::1",
                             "::ffff:127.0.0.1",
                             "::ffff:10.0.0.1",
                             "64:ff9b::a00:1",
                             "2002:a00:1::",
                             "::7f00:1",
                             "",
                             "localhost",
                             "2130706433"}) {
        CAPTURE(near);
        CHECK(store::is_private_address(near));
    }
    for (const char* far : {"8.8.8.8", "172.32.0.1", "172.15.0.1", "192.167.0.1", "100.128.0.1", "2606:4700::1",
                            "::ffff:8.8.8.8", "64:ff9b::808:808"}) {
        CAPTURE(far);
        CHECK(!store::is_private_address(far));
    }
}
