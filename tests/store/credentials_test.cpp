#include "store/credentials.h"

#include "store/digest.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/oci_archive.h"
#include "support/temp_dir.h"

#include <sys/stat.h>

#include <cstdlib>
#include <string>
#include <vector>

using namespace lamina;
using Catch::Matchers::ContainsSubstring;
using store::Credentials;

namespace {

store::AuthFileAnswer answer_of(const std::string& file, const std::string& host,
                                const std::string& repository = "a/b") {
    return store::find_in_auth_file(store::as_bytes(file), {host, repository});
}

std::string auth(const std::string& pair) {
    return R"("auth":")" + store::encode_base64(pair) + "\"";
}

void write_program(const std::string& path, const std::string& text) {
    store::write_file_atomically(path, store::as_bytes(text));
    REQUIRE(::chmod(path.c_str(), 0700) == 0);
}

}  // namespace

TEST_CASE("base64 gives back any bytes, and refuses what is none", "[store][credentials]") {
    for (const std::string& text : std::vector<std::string>{"", "a", "ab", "abc", "user:p\xc3\xa4ss", {"\0\xff", 2}}) {
        CHECK(store::decode_base64(store::encode_base64(text)) == text);
    }
    for (const char* bad : {"a", "ab=c", "a===", "ab c", "\n\n\n\n", "=abc"}) {
        CAPTURE(bad);
        CHECK(!store::decode_base64(bad));
    }
}

TEST_CASE("an auth file gives a registry its own credentials and nobody else's", "[store][credentials]") {
    const std::string file =
        R"({"auths":{"a.example":{)" + auth("root:one") + R"(},"a.example/team":{)" + auth("team:t:wo") +
        R"(},"https://index.docker.io/v1/":{)" + auth("hub:three") +
        R"(},"b.example:5000":{"username":"u","password":"p"},"c.example":{"identitytoken":"id"}}})";
    CHECK(answer_of(file, "a.example").credentials == Credentials{.user = "root", .password = "one"});
    CHECK(answer_of(file, "a.example", "team/x").credentials == Credentials{.user = "team", .password = "t:wo"});
    CHECK(answer_of(file, "a.example", "teams/x").credentials->user == "root");
    CHECK(answer_of(file, "docker.io", "library/x").credentials->user == "hub");
    CHECK(answer_of(file, "b.example:5000").credentials->user == "u");
    CHECK(answer_of(file, "c.example").credentials->identity_token == "id");
    for (const char* other : {"b.example", "b.example:500", "b.example:50000", "a.example.evil", "xa.example",
                              "A.example:443", "index.docker.io.evil", ""}) {
        CAPTURE(other);
        CHECK(!answer_of(file, other).credentials);
    }
}

TEST_CASE("a helper for a registry comes before credentials, the common one after them", "[store][credentials]") {
    const std::string file = R"({"credsStore":"all","credHelpers":{"a.example":"one"},"auths":{"a.example":{)" +
                             auth("u:p") + R"(},"b.example":{)" + auth("u:p") + R"(},"d.example":{}}})";
    CHECK(answer_of(file, "a.example").helper == "one");
    CHECK(answer_of(file, "b.example").helper.empty());
    CHECK(answer_of(file, "c.example").helper == "all");
    CHECK(answer_of(file, "d.example").helper == "all");
}

TEST_CASE("a broken auth file is refused without a word of it", "[store][credentials]") {
    for (const std::string& bad : {std::string("{"), std::string("hunter2"), std::string(R"({"auths":"hunter2"})"),
                                   std::string(R"({"auths":{"a.example":{"auth":"hunter2"}}})"),
                                   std::string(R"({"auths":{"a.example":"hunter2"}})"),
                                   R"({"auths":{"a.example":{)" + auth("hunter2") + "}}}"}) {
        CAPTURE(bad);
        const std::string error = test::error_of([&] { answer_of(bad, "a.example"); });
        CHECK_THAT(error, ContainsSubstring("malformed"));
        CHECK(error.find("hunter2") == std::string::npos);
        CHECK(error.find(store::encode_base64("hunter2")) == std::string::npos);
    }
}

TEST_CASE("a credential helper is asked for the registry, and its failures show no secret", "[store][credentials]") {
    const test::TempDir folder;
    const std::string old_path = std::getenv("PATH");
    ::setenv("PATH", (folder.path() + ":" + old_path).c_str(), 1);
    const std::string file = folder.path() + "/auth.json";
    store::write_file_atomically(file, store::as_bytes(R"({"credsStore":"lamina-test"})"));
    const std::string program = folder.path() + "/docker-credential-lamina-test";
    const auto found = [&] { return store::find_credentials({"docker.io", "library/x"}, file); };

    write_program(program,
                  "#!/bin/sh\n[ \"$1\" = get ] || exit 9\nread server\n"
                  "echo '{\"ServerURL\":\"'$server'\",\"Username\":\"u\",\"Secret\":\"'$server'\"}'\n");
    CHECK(found() == Credentials{.user = "u", .password = "https://index.docker.io/v1/"});
    write_program(program, "#!/bin/sh\necho '{\"Username\":\"<token>\",\"Secret\":\"id\"}'\n");
    CHECK(found() == Credentials{.identity_token = "id"});
    write_program(program, "#!/bin/sh\necho 'credentials not found in native keychain'; exit 1\n");
    CHECK(!found());
    write_program(program, "#!/bin/sh\necho 'hunter2'\n");
    CHECK_THAT(test::error_of(found), ContainsSubstring("not understood") && !ContainsSubstring("hunter2"));
    write_program(program, "#!/bin/sh\necho 'hunter2'; exit 3\n");
    CHECK_THAT(test::error_of(found), ContainsSubstring("exit status 3") && !ContainsSubstring("hunter2"));
    store::remove_file(program);
    CHECK_THAT(test::error_of(found), ContainsSubstring("cannot start docker-credential-lamina-test"));
    store::write_file_atomically(file, store::as_bytes(R"({"credsStore":"../evil"})"));
    CHECK_THAT(test::error_of(found), ContainsSubstring("not a name"));
    ::setenv("PATH", old_path.c_str(), 1);
}

TEST_CASE("USER:PASSWORD is cut at its first colon", "[store][credentials]") {
    CHECK(Credentials::parse("u:p:q") == Credentials{.user = "u", .password = "p:q"});
    CHECK(Credentials::parse("u:").password.empty());
    CHECK_THAT(test::error_of([] { Credentials::parse("hunter2"); }),
               ContainsSubstring("USER:PASSWORD") && !ContainsSubstring("hunter2"));
    CHECK_THAT(test::error_of([] { Credentials::parse(":p"); }), ContainsSubstring("malformed"));
}
