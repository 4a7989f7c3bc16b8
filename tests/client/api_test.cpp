#include "client/api.h"

#include "support/catch.h"

#include <cstdlib>

using namespace lamina;

namespace {

std::string failure_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const api::FailureError& error) {
        return error.failure().code + ": " + error.failure().message;
    }
    return "";
}

}  // namespace

TEST_CASE("a request keeps the default of every member that it does not give", "[client][api]") {
    const auto request = api::parse_request<api::MountRequest>(R"({"image":"debian:12","mountpoint":"/mnt"})");
    CHECK(request.image == "debian:12");
    CHECK(request.mountpoint == "/mnt");
    CHECK(request.name.empty());
    CHECK(!request.read_only);
    CHECK(request.start);
    CHECK(!api::parse_request<api::GcRequest>("").dry_run);
    CHECK(api::parse_request<api::UpkeepRequest>(R"({"bytes_per_second":0})").bytes_per_second == 0);
    const api::UpkeepRequest fast{.scrub = true, .bytes_per_second = 18'000'000'000'000'000'000U};
    CHECK(api::parse_request<api::UpkeepRequest>(api::to_text(fast)).bytes_per_second == fast.bytes_per_second);
    const api::VerifyRequest verify{.repair = true, .sources = {"dir:/a", "oci:/b"}};
    CHECK(api::parse_request<api::VerifyRequest>(api::to_text(verify)).sources == verify.sources);
}

TEST_CASE("a request with an unknown member, a wrong type or no object is refused and says which", "[client][api]") {
    const auto parse = [](const char* text) { return failure_of([&] { api::parse_request<api::TagRequest>(text); }); };
    CHECK_THAT(parse(R"({"imago":"x"})"), Catch::Matchers::ContainsSubstring("\"imago\""));
    CHECK_THAT(parse(R"({"image":7})"), Catch::Matchers::ContainsSubstring("\"image\""));
    const auto parse_upkeep = [](const char* text) {
        return failure_of([&] { api::parse_request<api::UpkeepRequest>(text); });
    };
    CHECK_THAT(parse_upkeep(R"({"bytes_per_second":-1})"), Catch::Matchers::ContainsSubstring("\"bytes_per_second\""));
    CHECK_THAT(parse_upkeep(R"({"bytes_per_second":1.5})"), Catch::Matchers::ContainsSubstring("\"bytes_per_second\""));
    CHECK_THAT(failure_of([&] { api::parse_request<api::VerifyRequest>(R"({"sources":[1]})"); }),
               Catch::Matchers::ContainsSubstring("\"sources\""));
    CHECK_THAT(parse("[]"), Catch::Matchers::ContainsSubstring("not a JSON object"));
    CHECK_THAT(parse("{"), Catch::Matchers::ContainsSubstring("usage:"));
    const std::string deep(100'000, '[');
    CHECK_THAT(parse(deep.c_str()), Catch::Matchers::ContainsSubstring("usage:"));
}

TEST_CASE("a reply that lacks a member is no reply of this version", "[client][api]") {
    const auto value = api::parse_reply_value(R"({"version":"0.1.0"})");
    CHECK_THAT(failure_of([&] { api::parse_reply<api::Ping>(value); }),
               Catch::Matchers::ContainsSubstring("different versions"));
}

TEST_CASE("messages look as the golden text says", "[client][api]") {
    CHECK(api::to_text(api::Changed{"A", "/etc/new \"file\"", "file"}) ==
          R"({"kind":"A","path":"/etc/new \"file\"","type":"file"})");
    CHECK(api::to_text(api::Failure{"not_found", "no image \"x\""}) ==
          R"({"code":"not_found","message":"no image \"x\""})");
    CHECK(api::to_text(api::GcResult{}) ==
          R"({"dry_run":false,"freed_bytes":0,"images_removed":0,"packs_removed":0,)"
          R"("packs_rewritten":0,"layers_removed":0,"trees_removed":0,"packs_waiting":0})");
    CHECK(api::to_text(api::Progress{"reading", "layer 1", 5, 10, 2, 3}) ==
          R"({"phase":"reading","item":"layer 1","done_bytes":5,"total_bytes":10,)"
          R"("item_done_bytes":2,"item_total_bytes":3})");
}

TEST_CASE("percent encoding gives back any bytes, and a broken escape is refused", "[client][api]") {
    std::string all;
    for (int byte = 1; byte < 256; ++byte) all += static_cast<char>(byte);
    CHECK(api::percent_decode(api::percent_encode(all)) == all);
    CHECK(api::percent_encode("a b/ü") == "a%20b/%C3%BC");
    for (const char* const text : {"%", "%4", "%zz", "abc%"}) {
        CAPTURE(text);
        CHECK_THROWS_AS(api::percent_decode(text), api::FailureError);
    }
}

TEST_CASE("a store that is named has its socket inside, unless that is named too", "[client][api]") {
    ::unsetenv("LAMINA_STORE");
    ::unsetenv("LAMINA_SOCKET");
    CHECK(api::default_places("/srv/store/", "").store == "/srv/store");
    CHECK(api::default_places("/srv/store", "").socket == "/srv/store/lamina.sock");
    CHECK(api::default_places("/srv/store", "/tmp/s").socket == "/tmp/s");
}

TEST_CASE("a socket path that the kernel cannot take is refused with its length", "[client][api]") {
    CHECK_NOTHROW(api::check_socket_path("/" + std::string(106, 'x')));
    CHECK_THAT(failure_of([] { api::check_socket_path("/" + std::string(107, 'x')); }),
               Catch::Matchers::ContainsSubstring("108 bytes, the kernel takes at most 107"));
}
