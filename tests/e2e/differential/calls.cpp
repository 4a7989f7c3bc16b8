// What the calls share. A word that names a free slot is answered "no such slot" on both sides, so that programs stay
// runnable when calls are cut out of them.
#include "e2e/differential/calls.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace lamina::test::differential {

Actor::~Actor() {
    for (auto& [slot, mapping] : mappings_) ::munmap(mapping.address, mapping.size_bytes);
    for (const auto& [slot, descriptor] : fds_) ::close(descriptor);
}

const std::map<std::string, Actor::Function>& Actor::table() {
    static const auto all = [] {
        std::map<std::string, Function> table;
        add_file_calls(table);
        add_name_calls(table);
        add_attribute_calls(table);
        add_folder_calls(table);
        return table;
    }();
    return all;
}

std::string Actor::run(std::size_t call_index) {
    at_ = call_index;
    const Words& words = program_.calls[call_index].words;
    const auto found = table().find(words.at(0));
    if (found == table().end()) return "no such call";
    try {
        return (this->*found->second)(words);
    } catch (const std::exception& error) {
        return std::string("not understood: ") + error.what();
    }
}

int Actor::fd(const std::string& slot) const {
    const auto found = fds_.find(slot);
    return found == fds_.end() ? -1 : found->second;  // -1: the call says EBADF.
}

std::string Actor::put(const std::string& slot, int descriptor) {
    if (descriptor < 0) return answer_of(descriptor);
    if (const auto old = fds_.find(slot); old != fds_.end()) ::close(old->second);
    fds_[slot] = descriptor;
    listings_.erase(slot);
    return "ok";
}

std::string answer_of(long result) {
    if (result >= 0) return "ok";
    const char* const name = ::strerrorname_np(errno);
    return name ? name : "errno " + std::to_string(errno);
}

std::string digest_of(std::string_view bytes) {
    std::uint64_t hash = 14695981039346656037ULL;
    for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 1099511628211ULL;
    return std::to_string(bytes.size()) + " bytes " + std::to_string(hash % 1'000'000'007);
}

std::uint64_t number_word(const std::string& word) {
    return std::stoull(word);
}

std::uint32_t octal_word(const std::string& word) {
    return static_cast<std::uint32_t>(std::stoul(word, nullptr, 8));
}

int flags_word(const std::string& word) {
    static const std::map<std::string, int> kFlags = {
        {"rd", O_RDONLY},
        {"wr", O_WRONLY},
        {"rdwr", O_RDWR},
        {"creat", O_CREAT},
        {"excl", O_EXCL},
        {"trunc", O_TRUNC},
        {"append", O_APPEND},
        {"nofollow", O_NOFOLLOW},
        {"directory", O_DIRECTORY},
        {"path", O_PATH},
        {"sync", O_SYNC},
        {"noatime", O_NOATIME},
        {"direct", O_DIRECT},
        {"dir", AT_REMOVEDIR},
        {"noreplace", RENAME_NOREPLACE},
        {"exchange", RENAME_EXCHANGE},
        {"follow", AT_SYMLINK_FOLLOW},
        {"self", AT_SYMLINK_NOFOLLOW},
        {"create", XATTR_CREATE},
        {"replace", XATTR_REPLACE},
        {"keep", FALLOC_FL_KEEP_SIZE},
        {"punch", FALLOC_FL_PUNCH_HOLE},
        {"zero", FALLOC_FL_ZERO_RANGE},
        {"-", 0},
    };
    int flags = 0;
    for (std::size_t begin = 0; begin < word.size();) {
        const std::size_t end = std::min(word.find(',', begin), word.size());
        flags |= kFlags.at(word.substr(begin, end - begin));
        begin = end + 1;
    }
    return flags;
}

std::vector<std::string> names_in(int directory) {
    struct Record {
        std::uint64_t inode;
        std::int64_t offset;
        std::uint16_t size_bytes;
        std::uint8_t type;
    };
    constexpr std::size_t kNameAt = 19;
    std::vector<std::string> names;
    std::array<char, 2048> room{};
    for (;;) {
        const long got = ::syscall(SYS_getdents64, directory, room.data(), room.size());
        if (got < 0) names.push_back(answer_of(got));
        if (got <= 0) break;
        for (long at = 0; at < got;) {
            Record record{};
            std::memcpy(&record, room.data() + at, kNameAt);
            const std::string name = room.data() + at + kNameAt;
            at += record.size_bytes;
            if (name != "." && name != "..") names.push_back(name + "/" + "?pc?d?b?-?l?s?w"[record.type & 15]);
        }
    }
    std::ranges::sort(names);
    return names;
}

}  // namespace lamina::test::differential
