#include "daemon/child_process.h"

#include "store/error.h"
#include "support/catch.h"

using namespace lamina;

namespace {

std::string error_of(const std::vector<std::string>& arguments) {
    try {
        daemon::ChildProcess child("/bin/sh", arguments, {});
        child.run_to_end(1000);
    } catch (const store::Error& error) {
        return error.what();
    }
    return "no error";
}

}  // namespace

TEST_CASE("a program's output is read to its end and cut at the limit", "[daemon][child_process]") {
    daemon::ChildProcess whole("/bin/echo", {"hello"}, {});
    CHECK(whole.run_to_end(1000) == "hello\n");
    daemon::ChildProcess cut("/bin/sh", {"-c", "for i in 1 2 3 4 5; do echo 0123456789; done"}, {});
    CHECK(cut.run_to_end(15) == "0123456789\n0123");
}

TEST_CASE("a program that fails is an error with its last words", "[daemon][child_process]") {
    CHECK(error_of({"-c", "echo half; echo 'disk on fire' >&2; exit 3"}) == "disk on fire");
    CHECK(error_of({"-c", "exit 3"}) == "/bin/sh failed");
    CHECK(error_of({"-c", "kill -9 $$"}) == "/bin/sh was ended by signal 9");
}

TEST_CASE("a program that asks to be tried again is busy", "[daemon][child_process]") {
    try {
        daemon::ChildProcess("/bin/sh", {"-c", "exit 75"}, {}).run_to_end(10);
        FAIL("no error");
    } catch (const store::Error& error) {
        CHECK(error.code() == store::Errc::busy);
    }
}

TEST_CASE("a program that is not there is an error that names it", "[daemon][child_process]") {
    CHECK_THROWS_WITH(daemon::ChildProcess("/no/such/program", {}, {}),
                      Catch::Matchers::ContainsSubstring("/no/such/program"));
}

TEST_CASE("a stop request ends the wait for a silent program, and the program", "[daemon][child_process]") {
    std::stop_source stop;
    stop.request_stop();
    daemon::ChildProcess child("/bin/sh", {"-c", "exec sleep 1000"}, stop.get_token());
    std::array<std::byte, 10> out;
    CHECK_THROWS_AS(child.read(out), store::Error);
}
