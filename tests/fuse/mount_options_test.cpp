#include "fuse/mount_options.h"

#include "fuse/mount_context.h"
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
    const auto options = parse({"--state", "/s", "-o", "rw,fsync=0,private,noatime,made-up=1", "/mnt"});
    REQUIRE(options.warnings.size() == 2);
    CHECK(options.warnings[0] == "option private is not known and has no effect");
}

TEST_CASE("the kernel gets no flag that libfuse does not pass on", "[mount_options]") {
    const auto options = parse({"-o", "lowerdir=/a,nodiratime,dirsync,remount,strictatime,noatime,noexec", "/mnt"});
    CHECK(options.warnings.empty());
    CHECK(options.mount_flags == Words{"noatime", "noexec"});
}

TEST_CASE("a wrong command line is refused with what is wrong", "[mount_options]") {
    struct Case {
        Words words;
        std::string why;
    };
    const std::vector<Case> cases = {
        {Words{}, "--state or -o lowerdir= is missing"},
        {{"/mnt"}, "--state or -o lowerdir= is missing"},
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
        {{"-o", "lowerdir=/a"}, "mount point is missing"},
        {{"-o", "lowerdir=/a", "/b", "/c", "/d"}, "one mount point"},
        {{"--state", "/s", "-o", "lowerdir=/a", "/m"}, "exclude each other"},
        {{"--stop", "-o", "lowerdir=/a"}, "with --state only"},
        {{"-o", "lowerdir=", "/m"}, "no folder is named"},
        {{"-o", "lowerdir=::", "/m"}, "no folder is named"},
        {{"-o", "upperdir=/u,workdir=/w", "/m"}, "-o lowerdir= is missing"},
        {{"-o", "lowerdir=/a,upperdir=", "/m"}, "no folder is named"},
        {{"-o", "lowerdir=/a,uidmapping=0:1", "/m"}, "ID:SHOWN:COUNT"},
        {{"-o", "lowerdir=/a,gidmapping=a:b:c", "/m"}, "not a number"},
        {{"-o", "lowerdir=/a,squash_to_uid=-1", "/m"}, "not a number"},
        {{"-o", "lowerdir=/a,squash_to_gid=4294967296", "/m"}, "not a number"},
        {{"-o", "lowerdir=/a,xattr_permissions=3", "/m"}, "xattr_permissions"},
        {{"-o", "image=debian:12", "/m"}, "a mount's folder is wanted"},
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

TEST_CASE("a mount of folders is called as fuse-overlayfs is", "[mount_options]") {
    const auto options = parse({"-o",
                                "lowerdir=l/A:l/B:/c,upperdir=/u,workdir=/w,,volatile,uidmapping=:0:100000:65536,"
                                "gidmapping=0:1:2:3:4:5,xattr_permissions=2,context=\"system:x,y\",",
                                "/mnt"});
    CHECK(options.warnings.empty());
    CHECK(options.stack.lowers == Words{"l/A", "l/B", "/c"});
    CHECK(options.stack.upper == "/u");
    CHECK(options.stack.work == "/w");
    CHECK(options.stack.is_volatile);
    CHECK(options.stack.override_stat == OverrideStat::containers);
    REQUIRE(options.stack.uids.size() == 1);
    CHECK(options.stack.uids[0].shown == 100000);
    CHECK(options.stack.uids[0].count == 65536);
    REQUIRE(options.stack.gids.size() == 2);
    CHECK(options.stack.gids[1].kept == 3);
    CHECK(options.mountpoint == "/mnt");
}

TEST_CASE("names of folders may hold colons, commas and backslashes", "[mount_options]") {
    const auto options =
        parse({"-o", R"(lowerdir=a\:b:c\,d:e\\f::g",upperdir=u\,\:,workdir=w,fsname=x\,y)", "src", "/m"});
    CHECK(options.stack.lowers == Words{"a:b", "c,d", R"(e\f)", "g\""});
    CHECK(options.stack.upper == "u,:");
    CHECK(options.stack.source_name == "x,y");
    CHECK(parse({"src", "/m", "-o", "lowerdir=/a"}).stack.source_name == "src");
}

TEST_CASE("images lie above or below the folders as the options stand", "[mount_options]") {
    const auto options = parse({"-o", "image=/s/mounts/1,lowerdir=/a:/b,image=/s/mounts/2", "/m"});
    CHECK(options.stack.images_above == Words{"/s/mounts/1"});
    CHECK(options.stack.images_below == Words{"/s/mounts/2"});
    CHECK(parse({"-o", "image=/s/mounts/1", "/m"}).stack.is_wanted());
}

TEST_CASE("option lists of any length are taken", "[mount_options]") {
    std::string list = "lowerdir=";
    for (int number = 0; number < 500; ++number)
        list += "/a/long/path/to/a/layer/of/many/" + std::to_string(number) + ":";
    CHECK(parse({"-o", list + ",volatile", "/m"}).stack.lowers.size() == 500);
}

TEST_CASE("ids are shown as mapped, and what no range holds is nobody's", "[mount_options]") {
    const IdMap map{.ranges = {{.kept = 0, .shown = 1000, .count = 1}, {.kept = 1, .shown = 100000, .count = 10}},
                    .is_closed = true};
    CHECK(map.shown(0) == 1000);
    CHECK(map.shown(10) == 100009);
    CHECK(map.shown(11) == IdMap::kOverflow);
    CHECK(map.kept(1000) == 0);
    CHECK(map.kept(100009) == 10);
    CHECK(map.kept(5) == IdMap::kOverflow);
    const IdMap squashed{.squashed_to = 7, .own = 3};
    CHECK(squashed.shown(0) == 7);
    CHECK(squashed.kept(7) == 3);
    CHECK(IdMap::root_as(1000).shown(0) == 1000);
    CHECK(IdMap::root_as(1000).kept(1000) == 0);
    CHECK(IdMap::root_as(1000).shown(5) == 5);
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
