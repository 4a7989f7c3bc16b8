#include "fuse/change.h"
#include "support/catch.h"

#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

using namespace lamina::unionfs;
namespace change = lamina::unionfs::change;

namespace {

std::vector<std::byte> encoded(const change::Change& value) {
    std::vector<std::byte> out;
    change::encode(value, out);
    return out;
}

constexpr std::int64_t kFarPast = std::numeric_limits<std::int64_t>::min();
constexpr std::uint64_t kMaxSize = std::numeric_limits<std::int64_t>::max();
const std::string kLongName(255, 'n');
const std::string kLongTarget(4095, 't');
const std::string kLongValue(65536, '\0');

change::SetAttributes set_all() {
    change::SetAttributes set{.node = 1, .mode = 07777, .uid = 0, .gid = 0xffffffff};
    set.atime = Timestamp{.seconds = kFarPast, .nanoseconds = 999'999'999};
    set.mtime = Timestamp{.seconds = 1'800'000'000, .nanoseconds = 5};
    set.ctime = *set.atime;
    return set;
}

/// At least one of each kind, with values at their limits.
std::vector<change::Change> samples() {
    const Timestamp past{.seconds = kFarPast, .nanoseconds = 999'999'999};
    const Timestamp now{.seconds = 1'800'000'000, .nanoseconds = 5};
    const NodeId node = kFirstNewNode + 7;
    change::PutNode put{.attributes = {.node = node, .mode = S_IFLNK | 0777, .uid = 0xffffffff, .gid = 1, .nlink = 3}};
    put.attributes.size_bytes = kMaxSize;
    put.attributes.allocated_bytes = 4096;
    put.attributes.device = std::numeric_limits<std::uint64_t>::max();
    put.attributes.birth = past;
    put.link_target = kLongTarget;
    put.view_size_bytes = 12;
    put.has_own_xattrs = true;
    return {
        change::Make{.parent = 1, .name = "a", .node = node, .mode = S_IFREG | 06755, .uid = 1, .gid = 2, .time = now},
        change::Make{.parent = 1,
                     .name = kLongName,
                     .node = node,
                     .mode = S_IFLNK | 0777,
                     .time = past,
                     .link_target = kLongTarget},
        change::Make{.node = node, .mode = S_IFREG, .time = now},
        change::Make{.parent = 5, .name = "dev", .node = node, .mode = S_IFCHR | 0600, .device = 0x103, .time = now},
        change::Make{.parent = 5,
                     .name = "acl",
                     .node = node,
                     .mode = S_IFDIR | 0700,
                     .time = now,
                     .access_acl = "aaaa",
                     .default_acl = kLongValue},
        change::Link{.node = 9, .parent = 1, .name = "b", .time = now},
        change::Remove{.parent = kFirstNewNode, .name = ".wh.x", .time = past},
        change::Rename{.old_parent = 1, .old_name = "a", .new_parent = 2, .new_name = "b", .time = now},
        change::Rename{.old_parent = 1, .old_name = "a", .new_parent = 2, .new_name = "b", .is_exchange = true},
        change::SetAttributes{.node = 1, .ctime = now},
        change::SetAttributes{
            .node = 1, .mode = 07777, .uid = 0, .gid = 0xffffffff, .atime = past, .mtime = now, .ctime = past},
        change::Resize{.node = 3, .size_bytes = kMaxSize, .clears_privileges = true, .time = now},
        change::Write{.node = 3, .offset_bytes = 1, .size_bytes = 4096, .extent_offset_bytes = 8192, .time = now},
        change::Write{.node = 3, .size_bytes = 1, .extent_offset_bytes = 4096, .is_mapped = true, .time = now},
        change::Zero{.node = 3, .offset_bytes = kMaxSize - 1, .size_bytes = 1, .new_size_bytes = kMaxSize},
        change::SetXattr{.node = 3, .name = "user.x", .value = kLongValue, .time = now},
        change::SetXattr{.node = 3, .name = kLongName, .value = "", .time = now},
        change::RemoveXattr{.node = 3, .name = "security.capability", .time = now},
        put,
        change::PutName{.parent = 1, .name = "gone"},
        change::PutExtent{.node = 3, .size_bytes = kMaxSize, .is_hole = true},
        change::PutExtent{.node = 3, .offset_bytes = 7, .size_bytes = 9, .extent_offset_bytes = 4096},
        change::PutXattr{.node = 3, .name = "user.x", .value = std::string_view("\0y", 2)},
        change::PutNextNode{.next = kFirstNewNode + 1000},
    };
}

bool decodes(const change::Change& value) {
    return change::decode(encoded(value)).has_value();
}

}  // namespace

TEST_CASE("a change of each kind comes back as it was", "[change]") {
    for (const change::Change& sample : samples()) {
        CAPTURE(sample.index());
        const auto bytes = encoded(sample);
        const auto back = change::decode(bytes);
        REQUIRE(back.has_value());
        CHECK(back->index() == sample.index());
        CHECK(encoded(*back) == bytes);  // Every field takes part in the encoding.
    }
}

TEST_CASE("the fields of a decoded change are those that were encoded", "[change]") {
    const auto bytes = encoded(set_all());
    const auto set = std::get<change::SetAttributes>(change::decode(bytes).value());
    CHECK(set.node == 1);
    CHECK(set.mode == 07777U);
    CHECK(set.uid == 0U);
    CHECK(set.gid == 0xffffffffU);
    CHECK(set.atime == Timestamp{.seconds = kFarPast, .nanoseconds = 999'999'999});
    CHECK(set.mtime == Timestamp{.seconds = 1'800'000'000, .nanoseconds = 5});
    const auto name_bytes = encoded(samples()[1]);
    const auto make = std::get<change::Make>(change::decode(name_bytes).value());
    CHECK(make.name == kLongName);
    CHECK(make.link_target == kLongTarget);
    CHECK(make.node == kFirstNewNode + 7);
}

TEST_CASE("the encoding of a change stays what the format says", "[change][golden]") {
    const auto bytes = encoded(change::Remove{.parent = 300, .name = "ab", .time = {.seconds = -1, .nanoseconds = 2}});
    const std::vector<unsigned> expected{3, 0xac, 0x02, 2, 'a', 'b', 1, 2};
    REQUIRE(bytes.size() == expected.size());
    for (std::size_t at = 0; at < expected.size(); ++at) CHECK(std::to_integer<unsigned>(bytes[at]) == expected[at]);
}

TEST_CASE("a create of a short name takes less than 40 bytes", "[change]") {
    CHECK(encoded(samples()[0]).size() < 40);
}

TEST_CASE("a change that ends early or goes on is refused", "[change][bad]") {
    for (const change::Change& sample : samples()) {
        auto bytes = encoded(sample);
        CAPTURE(sample.index());
        std::size_t accepted = 0;
        for (std::size_t size = 0; size < bytes.size(); ++size) {
            accepted += change::decode(std::span(bytes).first(size)).has_value() ? 1 : 0;
        }
        CHECK(accepted == 0);
        bytes.push_back(std::byte{0});
        CHECK_FALSE(change::decode(bytes).has_value());
    }
}

TEST_CASE("what decodes after a flipped bit is in its one shortest form", "[change][bad]") {
    for (const change::Change& sample : samples()) {
        const auto bytes = encoded(sample);
        for (std::size_t bit = 0; bit < std::min<std::size_t>(bytes.size() * 8, 4000); ++bit) {
            auto flipped = bytes;
            flipped[bit / 8] ^= std::byte{1} << (bit % 8);
            const auto back = change::decode(flipped);
            if (back && encoded(*back) != flipped) FAIL("another form was accepted, bit " << bit);
        }
    }
}

TEST_CASE("random bytes never decode to something that encodes to others", "[change][bad]") {
    std::mt19937 random(7);
    for (int round = 0; round < 200'000; ++round) {
        std::vector<std::byte> bytes(random() % 40);
        for (std::byte& byte : bytes) byte = std::byte(random() % (random() % 2 == 0 ? 256 : 8));
        if (!bytes.empty()) bytes[0] = std::byte(random() % 17);
        const auto back = change::decode(bytes);
        if (back && encoded(*back) != bytes) FAIL("another form was accepted in round " << round);
    }
}

TEST_CASE("names, sizes and places out of bounds are refused", "[change][bad]") {
    for (const std::string name : {"", ".", "..", "a/b", "/"}) {
        CHECK_FALSE(decodes(change::Remove{.parent = 1, .name = name}));
    }
    CHECK_FALSE(decodes(change::Remove{.parent = 1, .name = std::string_view("a\0b", 3)}));
    CHECK_FALSE(decodes(change::Remove{.parent = 1, .name = std::string(256, 'x')}));
    CHECK_FALSE(decodes(change::Remove{.parent = 0, .name = "a"}));
    CHECK_FALSE(decodes(change::Make{.parent = 1, .name = "a", .node = 0, .mode = S_IFREG}));
    CHECK_FALSE(decodes(change::Make{.parent = 1, .name = "a", .node = 2, .mode = 0}));
    CHECK_FALSE(decodes(change::Make{.parent = 1, .name = "a", .node = 2, .mode = 0170000}));
    CHECK_FALSE(decodes(change::Make{.parent = 1, .name = "a", .node = 2, .mode = S_IFREG, .link_target = "x"}));
    CHECK_FALSE(decodes(change::Make{.parent = 0, .name = "a", .node = 2, .mode = S_IFREG}));
    CHECK_FALSE(decodes(
        change::Make{.parent = 1, .name = "a", .node = 2, .mode = S_IFLNK, .link_target = std::string(4096, 'x')}));
    CHECK_FALSE(decodes(change::Resize{.node = 1, .size_bytes = kMaxSize + 1}));
    CHECK_FALSE(decodes(change::Write{.node = 1, .offset_bytes = 0, .size_bytes = 0, .extent_offset_bytes = 4096}));
    CHECK_FALSE(decodes(change::Write{.node = 1, .offset_bytes = kMaxSize, .size_bytes = 1}));
    CHECK_FALSE(decodes(change::Write{.node = 1, .size_bytes = 2, .extent_offset_bytes = kMaxSize - 1}));
    CHECK_FALSE(decodes(change::PutExtent{.node = 1, .size_bytes = 0, .is_hole = true}));
    CHECK_FALSE(decodes(change::SetXattr{.node = 1, .name = "", .value = "x"}));
    CHECK_FALSE(decodes(change::SetXattr{.node = 1, .name = "user.x", .value = std::string(65537, 'v')}));
    CHECK_FALSE(decodes(change::PutNextNode{.next = kFirstNewNode - 1}));
    CHECK_FALSE(decodes(change::SetAttributes{.node = 1, .mode = 010000}));
    CHECK_FALSE(decodes(change::SetAttributes{.node = 1, .mtime = Timestamp{.nanoseconds = 1'000'000'000}}));
}

TEST_CASE("an unknown kind is refused", "[change][bad]") {
    for (const unsigned kind : {0U, 16U, 128U, 255U}) {
        const std::vector<std::byte> bytes{std::byte(kind), std::byte{1}};
        CHECK_FALSE(change::decode(bytes).has_value());
    }
}
