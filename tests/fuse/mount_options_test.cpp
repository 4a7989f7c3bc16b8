#include "fuse/mount_options.h"

#include "store/error.h"
#include "support/catch.h"

using namespace lamina;
using namespace lamina::unionfs;

namespace {

using Words = std::vector<std::string>;

ServerOptions parse(const Words& words) {
    return parse_server_options(words);
}

}  // namespace

TEST_CASE("a mount's command line is its folder, options and a mount point", "[mount_options]") {
    const auto options = parse({"--state", "/s/mounts/1", "-o", "ro,dev,nosuid,cache=8M,reader=plain", "-f", "/mnt"});
    CHECK(options.action == ServerOptions::Action::serve);
    CHECK(options.mount_folder == "/s/mounts/1");
    CHECK(options.mountpoint == "/mnt");
    CHECK(options.is_read_only);
    CHECK(options.allows_devices);
    CHECK_FALSE(options.allows_set_id);
    CHECK(options.cache_bytes == 8 << 20);
    CHECK(options.quiet_reader == QuietReader::never);
    CHECK(options.stays_in_foreground);
    CHECK_FALSE(options.is_debug);
    CHECK(options.warnings.empty());
}

TEST_CASE("options may be joined, repeated, empty and in any order", "[mount_options]") {
    const auto options = parse({"/mnt", "-oro,,", "-o", "", "-o", ",cache=1M,cache=2M,", "--state=/s/mounts/1", "-d"});
    CHECK(options.is_read_only);
    CHECK(options.cache_bytes == 2 << 20);
    CHECK(options.is_debug);
    CHECK(options.stays_in_foreground);
}

TEST_CASE("an unknown -o option is a warning, not an error", "[mount_options]") {
    const auto options = parse({"--state", "/s", "-o", "rw,fsync=0,private,noatime", "/mnt"});
    REQUIRE(options.warnings.size() == 2);
    CHECK(options.warnings[0] == "option fsync is not known and has no effect");
}

TEST_CASE("a wrong command line is refused with what is wrong", "[mount_options]") {
    struct Case {
        Words words;
        std::string why;
    };
    const std::vector<Case> cases = {
        {Words{}, "--state is missing"},
        {{"/mnt"}, "--state is missing"},
        {{"--state", "/s"}, "mount point is missing"},
        {{"--state"}, "a value is missing"},
        {{"--state", ""}, "a path of"},
        {{"--state", std::string(5000, 'x'), "/mnt"}, "a path of"},
        {{"--state", "/s", "/a", "/b"}, "one mount point"},
        {{"--state", "/s", "/mnt", "-o"}, "a value is missing"},
        {{"--state", "/s", "/mnt", "-o", "cache=x"}, "not a size"},
        {{"--state", "/s", "/mnt", "-o", "cache=1"}, "between"},
        {{"--state", "/s", "/mnt", "-o", "cache=99999999999999999999"}, "not a size"},
        {{"--state", "/s", "/mnt", "-o", "reader=loud"}, "auto, plain or eager"},
        {{"--state", "/s", "/mnt", "-x"}, "unknown option"},
        {{"--state", "/s", "/mnt", "--stop"}, "no mount point is wanted"},
        {{"--state", "/s", "--stop", "--stats"}, "more than one thing"},
    };

    for (const auto& wrong : cases) {
        CAPTURE(wrong.why);
        try {
            parse(wrong.words);
            FAIL("was accepted");
        } catch (const store::Error& error) {
            CHECK(error.code() == store::Errc::malformed);
            CHECK(std::string(error.what()).find(wrong.why) != std::string::npos);
        }
    }
}

TEST_CASE("help and version need nothing else", "[mount_options]") {
    CHECK(parse({"--help"}).action == ServerOptions::Action::help);
    CHECK(parse({"-V"}).action == ServerOptions::Action::version);
}

TEST_CASE("sizes are numbers with K, M or G", "[mount_options]") {
    CHECK(parse_size("0") == 0);
    CHECK(parse_size("3K") == 3072);
    CHECK(parse_size("2G") == std::uint64_t{2} << 30);
    CHECK_THROWS(parse_size(""));
    CHECK_THROWS(parse_size("K"));
    CHECK_THROWS(parse_size("-1"));
    CHECK_THROWS(parse_size("1MB"));
    CHECK_THROWS(parse_size("9999999999G"));
}
