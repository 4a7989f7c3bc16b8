// Calls on attributes and xattrs.
#include "e2e/differential/calls.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace lamina::test::differential {
namespace {

timespec time_word(const std::string& word) {
    if (word == "now") return {.tv_sec = 0, .tv_nsec = UTIME_NOW};
    if (word == "omit") return {.tv_sec = 0, .tv_nsec = UTIME_OMIT};
    const std::size_t dot = word.find('.');
    return {.tv_sec = std::stoll(word.substr(0, dot)), .tv_nsec = std::stol(word.substr(dot + 1))};
}

std::string text_of(const struct stat& attributes) {
    std::string text;
    const auto add = [&](const char* name, std::uint64_t value, int base = 10) {
        std::array<char, 32> room{};
        std::snprintf(room.data(), room.size(), base == 8 ? "%s%lo " : "%s%lu ", name, value);
        text += room.data();
    };
    add("mode=", attributes.st_mode, 8);
    add("nlink=", attributes.st_nlink);
    add("uid=", attributes.st_uid);
    add("gid=", attributes.st_gid);
    if (!S_ISDIR(attributes.st_mode)) add("size=", static_cast<std::uint64_t>(attributes.st_size));
    if (S_ISCHR(attributes.st_mode) || S_ISBLK(attributes.st_mode)) add("rdev=", attributes.st_rdev);
    return text;
}

/// Whether a chown that changes neither owner is one that the kernel does not tell from a write (fuse/SEMANTICS.md): of
/// a file that has set-id bits and is not the caller's, or has capabilities.
bool is_privileged(int file, const std::string& path) {
    struct stat attributes {};
    if ((file >= 0 ? ::fstat(file, &attributes) : ::stat(path.c_str(), &attributes)) != 0) return false;
    if ((attributes.st_mode & 06000) == 0) return false;
    const bool has_capability = file >= 0 ? ::fgetxattr(file, "security.capability", nullptr, 0) > 0
                                          : ::getxattr(path.c_str(), "security.capability", nullptr, 0) > 0;
    return has_capability || (::geteuid() != 0 && ::geteuid() != attributes.st_uid);
}

}  // namespace

void Actor::add_attribute_calls(std::map<std::string, Function>& table) {
    for (const char* const name : {"stat", "lstat", "fstat"}) table[name] = &Actor::stat;
    for (const char* const name : {"chmod", "fchmod"}) table[name] = &Actor::chmod;
    for (const char* const name : {"chown", "lchown", "fchown"}) table[name] = &Actor::chown;
    for (const char* const name : {"utimens", "futimens"}) table[name] = &Actor::utimens;
    for (const std::string prefix : {"", "l", "f"}) {
        table[prefix + "setxattr"] = &Actor::set_xattr;
        table[prefix + "getxattr"] = &Actor::get_xattr;
        table[prefix + "listxattr"] = &Actor::list_xattr;
        table[prefix + "removexattr"] = &Actor::remove_xattr;
    }
    table["access"] = &Actor::access;
}

std::string Actor::stat(const Words& words) {
    struct stat attributes {};
    const std::string& path = words.at(1);
    const int result = words[0] == "fstat"   ? ::fstat(fd(path), &attributes)
                       : words[0] == "lstat" ? ::lstat(path.c_str(), &attributes)
                                             : ::stat(path.c_str(), &attributes);
    return result == 0 ? text_of(attributes) : answer_of(result);
}

std::string Actor::access(const Words& words) {
    return answer_of(::faccessat(AT_FDCWD, words.at(1).c_str(), static_cast<int>(octal_word(words.at(2))), AT_EACCESS));
}

std::string Actor::chmod(const Words& words) {
    const mode_t mode = octal_word(words.at(2));
    return answer_of(words[0] == "fchmod" ? ::fchmod(fd(words.at(1)), mode) : ::chmod(words.at(1).c_str(), mode));
}

std::string Actor::chown(const Words& words) {
    const auto uid = static_cast<uid_t>(std::stol(words.at(2)));  // -1: as it is.
    const auto gid = static_cast<gid_t>(std::stol(words.at(3)));
    const std::string& path = words.at(1);
    if (uid + 1 == 0 && gid + 1 == 0 && is_privileged(words[0][0] == 'f' ? fd(path) : -1, path)) return "privileged";
    return answer_of(words[0] == "fchown"   ? ::fchown(fd(path), uid, gid)
                     : words[0] == "lchown" ? ::lchown(path.c_str(), uid, gid)
                                            : ::chown(path.c_str(), uid, gid));
}

std::string Actor::utimens(const Words& words) {
    const std::array<timespec, 2> times = {time_word(words.at(2)), time_word(words.at(3))};
    if (words[0] == "futimens") return answer_of(::futimens(fd(words.at(1)), times.data()));
    return answer_of(::utimensat(AT_FDCWD, words.at(1).c_str(), times.data(), flags_word(words.at(4))));
}

std::string Actor::set_xattr(const Words& words) {
    const char* const path = words.at(1).c_str();
    const char* const name = words.at(2).c_str();
    const std::string& value = words.at(3);
    const int flags = flags_word(words.at(4));
    return answer_of(words[0][0] == 'f'   ? ::fsetxattr(fd(words[1]), name, value.data(), value.size(), flags)
                     : words[0][0] == 'l' ? ::lsetxattr(path, name, value.data(), value.size(), flags)
                                          : ::setxattr(path, name, value.data(), value.size(), flags));
}

std::string Actor::get_xattr(const Words& words) {
    const char* const path = words.at(1).c_str();
    const char* const name = words.at(2).c_str();
    std::array<char, 4096> room{};
    const ssize_t got = words[0][0] == 'f'   ? ::fgetxattr(fd(words[1]), name, room.data(), room.size())
                        : words[0][0] == 'l' ? ::lgetxattr(path, name, room.data(), room.size())
                                             : ::getxattr(path, name, room.data(), room.size());
    return got < 0 ? answer_of(got) : digest_of(std::string_view(room.data(), static_cast<std::size_t>(got)));
}

std::string Actor::list_xattr(const Words& words) {
    const char* const path = words.at(1).c_str();
    std::array<char, 4096> room{};
    const ssize_t got = words[0][0] == 'f'   ? ::flistxattr(fd(words[1]), room.data(), room.size())
                        : words[0][0] == 'l' ? ::llistxattr(path, room.data(), room.size())
                                             : ::listxattr(path, room.data(), room.size());
    if (got < 0) return answer_of(got);
    std::vector<std::string> names;
    for (ssize_t at = 0; at < got; at += static_cast<ssize_t>(names.back().size()) + 1)
        names.emplace_back(room.data() + at);
    std::ranges::sort(names);
    std::string answer = "names:";
    for (const auto& name : names) answer += " " + name;
    return answer;
}

std::string Actor::remove_xattr(const Words& words) {
    const char* const path = words.at(1).c_str();
    const char* const name = words.at(2).c_str();
    return answer_of(words[0][0] == 'f'   ? ::fremovexattr(fd(words[1]), name)
                     : words[0][0] == 'l' ? ::lremovexattr(path, name)
                                          : ::removexattr(path, name));
}

}  // namespace lamina::test::differential
