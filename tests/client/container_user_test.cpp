#include "client/container_user.h"

#include "client/api.h"
#include "support/catch.h"
#include "support/temp_dir.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

using namespace lamina;
using client::find_user;

namespace {

const client::UserFiles kFiles{
    .passwd =
        "# comment\nbroken\n\nhalf:x:9\nroot:x:0:0::/root:/bin/sh\napp:x:1001:1002::/home/app:/bin/sh\n"
        "again:x:1001:5::/elsewhere:/bin/sh\n12:x:44:45::/h12:/bin/sh\nhuge:x:99999999999:1::/:/bin/sh\n",
    .group = "root:x:0:\nstaff:x:50:\nbroken:x\nextra:x:77:app\nmore:x:78:root,app\n"};

std::string text_of(const client::ContainerUser& user) {
    std::string text = std::to_string(user.uid) + ":" + std::to_string(user.gid);
    for (const auto group : user.groups) text += "+" + std::to_string(group);
    return text + " " + user.home;
}

std::string failure_of(std::string_view spec) {
    try {
        return text_of(find_user(spec, kFiles));
    } catch (const api::FailureError& error) {
        return error.failure().code;
    }
}

void write(const std::string& path, const std::string& text) {
    std::ofstream(path) << text;
}

}  // namespace

TEST_CASE("a container's user is looked up by name or number in the image's files", "[client][container]") {
    CHECK(text_of(find_user("", kFiles)) == "0:0+78 /root");
    CHECK(text_of(find_user("0", kFiles)) == "0:0+78 /root");
    CHECK(text_of(find_user("app", kFiles)) == "1001:1002+77+78 /home/app");
    CHECK(text_of(find_user("app:", kFiles)) == "1001:1002+77+78 /home/app");
    CHECK(text_of(find_user("1001", kFiles)) == "1001:1002+77+78 /home/app");
    CHECK(text_of(find_user("app:staff", kFiles)) == "1001:50 /home/app");
    CHECK(text_of(find_user(":50", kFiles)) == "0:50 /root");
    CHECK(text_of(find_user("1234:77", kFiles)) == "1234:77 ");
    CHECK(text_of(find_user("1234", kFiles)) == "1234:0 ");
    CHECK(text_of(find_user("1234", {})) == "1234:0 ");
    CHECK(text_of(find_user("12", kFiles)) == "12:0 ");
}

TEST_CASE("a user or group that is not there, or out of range, is an error", "[client][container]") {
    CHECK(failure_of("nobody") == "not_found");
    CHECK(failure_of("app:nogroup") == "not_found");
    CHECK(failure_of("half") == "not_found");
    CHECK(failure_of("huge") == "not_found");
    CHECK(failure_of("-5") == "malformed");
    CHECK(failure_of("2147483648") == "malformed");
    CHECK(failure_of("99999999999999999999") == "malformed");
    CHECK(failure_of("0:2147483648") == "malformed");
}

TEST_CASE("the image's links cannot make the host's user files be read", "[client][container]") {
    const test::TempDir temp;
    const std::string root = temp.path() + "/root";
    std::filesystem::create_directories(root + "/etc");
    write(temp.path() + "/secret", "secret");
    write(root + "/own", "own");
    REQUIRE(::symlink("../../secret", (root + "/etc/passwd").c_str()) == 0);
    REQUIRE(::symlink("/own", (root + "/etc/group").c_str()) == 0);

    const auto files = client::read_user_files(root);

    CHECK(files.passwd.empty());
    CHECK(files.group == "own");
}

TEST_CASE("user files that are none are refused, and do not hang", "[client][container]") {
    const test::TempDir temp;
    std::filesystem::create_directories(temp.path() + "/etc");
    const std::string path = temp.path() + "/etc/passwd";
    CHECK(client::read_user_files(temp.path()).passwd.empty());
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    CHECK_THROWS_AS(client::read_user_files(temp.path()), api::FailureError);
    REQUIRE(::unlink(path.c_str()) == 0);
    write(path, std::string((4 << 20) + 1, 'x'));
    CHECK_THROWS_AS(client::read_user_files(temp.path()), api::FailureError);
    REQUIRE(::truncate(path.c_str(), 4 << 20) == 0);
    CHECK(client::read_user_files(temp.path()).passwd.size() == 4 << 20);
}
