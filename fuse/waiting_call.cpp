#include "fuse/waiting_call.h"

#include "store/file.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <chrono>
#include <string>
#include <string_view>
#include <thread>

namespace lamina::unionfs {
namespace {

// None of these is the number of a chown in the calls of 32-bit programs, whose numbers look the same here.
constexpr std::array<long, 10> kWritingCalls = {SYS_write,     SYS_writev,   SYS_pwrite64, SYS_pwritev,
                                                SYS_pwritev2,  SYS_splice,   SYS_sendfile, SYS_copy_file_range,
                                                SYS_fallocate, SYS_ftruncate};
constexpr int kLooks = 50;
constexpr std::chrono::microseconds kBetweenLooks{100};

}  // namespace

bool waits_in_write(std::uint32_t thread) {
    const std::string path = fmt::format("/proc/{}/syscall", thread);
    for (int look = 0; look < kLooks; ++look) {
        const store::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
        if (!file) return false;
        std::array<char, 256> room{};
        const ssize_t got = ::read(file.get(), room.data(), room.size());
        if (got <= 0) return false;
        if (std::isdigit(static_cast<unsigned char>(room[0])) != 0) {
            long call = -1;
            std::from_chars(room.data(), room.data() + got, call);
            return std::ranges::find(kWritingCalls, call) != kWritingCalls.end();
        }
        std::this_thread::sleep_for(kBetweenLooks);  // "running"
    }
    return false;
}

}  // namespace lamina::unionfs
