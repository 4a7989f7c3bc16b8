#include "fuse/request_counts.h"

namespace lamina::unionfs {
namespace {

constexpr std::array<std::string_view, 54> kNames = {"",
                                                     "lookup",
                                                     "forget",
                                                     "getattr",
                                                     "setattr",
                                                     "readlink",
                                                     "symlink",
                                                     "",
                                                     "mknod",
                                                     "mkdir",
                                                     "unlink",
                                                     "rmdir",
                                                     "rename",
                                                     "link",
                                                     "open",
                                                     "read",
                                                     "write",
                                                     "statfs",
                                                     "release",
                                                     "",
                                                     "fsync",
                                                     "setxattr",
                                                     "getxattr",
                                                     "listxattr",
                                                     "removexattr",
                                                     "flush",
                                                     "init",
                                                     "opendir",
                                                     "readdir",
                                                     "releasedir",
                                                     "fsyncdir",
                                                     "getlk",
                                                     "setlk",
                                                     "setlkw",
                                                     "access",
                                                     "create",
                                                     "interrupt",
                                                     "bmap",
                                                     "destroy",
                                                     "ioctl",
                                                     "poll",
                                                     "notify_reply",
                                                     "batch_forget",
                                                     "fallocate",
                                                     "readdirplus",
                                                     "rename2",
                                                     "lseek",
                                                     "copy_file_range",
                                                     "setupmapping",
                                                     "removemapping",
                                                     "syncfs",
                                                     "tmpfile",
                                                     "statx",
                                                     "copy_file_range_64"};

}  // namespace

std::string_view opcode_name(std::uint32_t opcode) {
    if (opcode >= kNames.size() || kNames[opcode].empty()) return "other";
    return kNames[opcode];
}

std::uint64_t RequestCounts::total() const noexcept {
    std::uint64_t total = 0;
    for (const auto& count : counts_) total += count.load(std::memory_order_relaxed);
    return total;
}

std::vector<std::pair<std::string_view, std::uint64_t>> RequestCounts::list() const {
    std::vector<std::pair<std::string_view, std::uint64_t>> result;
    std::uint64_t other = 0;
    for (std::uint32_t opcode = 0; opcode < kernel::kOpLimit; ++opcode) {
        const std::uint64_t count = of(opcode);
        if (count == 0) continue;
        const std::string_view name = opcode_name(opcode);
        if (name == "other") {
            other += count;
        } else {
            result.emplace_back(name, count);
        }
    }
    if (other != 0) result.emplace_back("other", other);
    return result;
}

}  // namespace lamina::unionfs
