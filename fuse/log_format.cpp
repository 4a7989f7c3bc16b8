#include "fuse/log_format.h"

#include "store/error.h"
#include "store/file.h"

#include <sys/random.h>

#include <xxhash.h>

#include <cctype>
#include <string>

namespace lamina::unionfs::log_format {

std::uint64_t checksum_of(std::span<const std::byte> bytes, std::uint64_t seed) {
    return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

std::span<const std::byte> bytes_of(const Header& header) {
    return std::as_bytes(std::span(&header, 1));
}

Header make_header(const char* magic, const store::TreeDigest& tree, std::uint64_t generation, const BootId& boot) {
    Header header;
    std::memcpy(header.magic.data(), magic, kMagicBytes);
    header.header_bytes = kHeaderBytes;
    std::memcpy(header.tree.data(), tree.digest.bytes().data(), header.tree.size());
    header.generation = generation;
    header.boot = boot;
    if (::getrandom(&header.salt, sizeof header.salt, 0) != ssize_t{sizeof header.salt}) {
        store::throw_errno(errno, "getrandom");
    }
    header.checksum = checksum_of(bytes_of(header).first(offsetof(Header, checksum)), 0);
    return header;
}

std::uint64_t seal(std::span<std::byte> record, std::uint64_t sequence, std::uint64_t previous_checksum) {
    codec::store_little(record.data() + kFrameChecksumBytes, sequence);
    codec::store_little(record.data() + 16, static_cast<std::uint32_t>(record.size() - kFrameBytes));
    const std::uint64_t checksum = checksum_of(record.subspan(kFrameChecksumBytes), previous_checksum);
    codec::store_little(record.data(), checksum);
    return checksum;
}

BootId current_boot() {
    const std::string path = "/proc/sys/kernel/random/boot_id";
    std::array<std::byte, 64> text{};
    const store::UniqueFd fd = store::open_read(path);
    const std::size_t size = store::read_some(fd.get(), 0, text, path);
    BootId boot{};
    std::size_t digits = 0;
    for (const std::byte byte : std::span(text).first(size)) {
        const int character = std::tolower(std::to_integer<int>(byte));
        if (std::isxdigit(character) == 0 || digits == 2 * boot.size()) continue;
        const int value = character <= '9' ? character - '0' : character - 'a' + 10;
        boot[digits / 2] = boot[digits / 2] << 4 | std::byte(value);
        ++digits;
    }
    if (digits != 2 * boot.size()) throw store::Error(store::Errc::unavailable, path + ": not a boot id");
    return boot;
}

}  // namespace lamina::unionfs::log_format
