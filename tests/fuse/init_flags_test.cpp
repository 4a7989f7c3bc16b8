// The INIT reply as fuse/SEMANTICS.md has it, byte by byte, with the numbers of the kernel's header written out.
#include "fuse/init_table.h"
#include "support/catch.h"

#include <cstring>

using namespace lamina::unionfs;

namespace {

constexpr std::uint64_t bit(unsigned number) {
    return std::uint64_t{1} << number;
}

// SEMANTICS.md, "The INIT reply", column "on".
constexpr std::uint64_t kOn = bit(0) | bit(5) | bit(6) | bit(13) | bit(14) | bit(15) | bit(18) | bit(20) | bit(22) |
                              bit(23) | bit(25) | bit(28) | bit(29) | bit(30) | bit(39);

fuse_init_out reply_to(std::uint64_t offered) {
    fuse_init_in request{};
    request.major = 7;
    request.minor = 45;
    request.max_readahead = 131072;
    request.flags = static_cast<std::uint32_t>(offered);
    request.flags2 = static_cast<std::uint32_t>(offered >> 32);
    fuse_init_out libfuse{};
    libfuse.major = 7;
    libfuse.minor = 38;
    libfuse.flags = 0xffffffff;
    libfuse.flags2 = 0xffffffff;
    libfuse.max_write = 4096;
    return init::make_reply(request, libfuse);
}

}  // namespace

TEST_CASE("the reply to INIT is the table, byte for byte", "[init_flags][init.reply]") {
    const fuse_init_out reply = reply_to(~std::uint64_t{0});
    unsigned char bytes[64];
    static_assert(sizeof reply == sizeof bytes);
    std::memcpy(bytes, &reply, sizeof bytes);
    const auto word = [&](std::size_t at) {
        return bytes[at] | bytes[at + 1] << 8 | bytes[at + 2] << 16 | std::uint32_t{bytes[at + 3]} << 24;
    };
    CHECK(word(0) == 7);                                       // major
    CHECK(word(4) == 38);                                      // minor
    CHECK(word(8) == 131072);                                  // max_readahead
    CHECK(word(12) == static_cast<std::uint32_t>(kOn));        // flags
    CHECK(word(16) == (64 | 48 << 16));                        // max_background, congestion_threshold
    CHECK(word(20) == 1 << 20);                                // max_write
    CHECK(word(24) == 1);                                      // time_gran
    CHECK(word(28) == 256);                                    // max_pages, map_alignment
    CHECK(word(32) == static_cast<std::uint32_t>(kOn >> 32));  // flags2
    for (std::size_t at = 36; at < sizeof bytes; ++at) CHECK(bytes[at] == 0);
}

TEST_CASE("what the kernel does not offer is not agreed on", "[init_flags][init.reply]") {
    const fuse_init_out none = reply_to(0);
    CHECK(none.flags == 0);
    CHECK(none.flags2 == 0);
    CHECK(none.max_pages == 0);
    CHECK(none.max_write == 32 * 4096);
    for (unsigned number = 0; number < 64; ++number) {
        const fuse_init_out one = reply_to(bit(number));
        const std::uint64_t agreed = one.flags | std::uint64_t{one.flags2} << 32;
        CHECK(agreed == (kOn & bit(number)));
    }
}

TEST_CASE("what loses bytes or messages stays off", "[init_flags]") {
    const fuse_init_out reply = reply_to(~std::uint64_t{0});
    CHECK((reply.flags & bit(3)) == 0);   // ATOMIC_O_TRUNC
    CHECK((reply.flags & bit(16)) == 0);  // WRITEBACK_CACHE
    CHECK((reply.flags & bit(12)) == 0);  // AUTO_INVAL_DATA
    CHECK((reply.flags & bit(1)) == 0);   // POSIX_LOCKS
    CHECK((reply.flags & bit(10)) == 0);  // FLOCK_LOCKS
    CHECK((reply.flags & bit(19)) == 0);  // HANDLE_KILLPRIV
}
