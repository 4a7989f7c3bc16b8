// Calls on names, and listings that are read while the folder changes.
#include "e2e/differential/calls.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

namespace lamina::test::differential {
namespace {

constexpr std::size_t kMostBytes = 1 << 20;

/// Every name that a call mentions: these may come and go.
void add_mentioned(std::set<std::string>& mentioned, const Call& call) {
    for (const auto& word : call.words) {
        for (std::size_t begin = 0; begin <= word.size();) {
            const std::size_t end = std::min(word.find('/', begin), word.size());
            mentioned.insert(word.substr(begin, end - begin));
            begin = end + 1;
        }
    }
}

}  // namespace

std::vector<std::string> names_of(int directory) {
    const int again = ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (again < 0) return {"/"};
    auto names = names_in(again);
    ::close(again);
    for (auto& name : names) name.resize(name.rfind('/') == std::string::npos ? name.size() : name.rfind('/'));
    return names;
}

void Actor::add_name_calls(std::map<std::string, Function>& table) {
    table.insert({{"rename", &Actor::rename},
                  {"link", &Actor::link},
                  {"symlink", &Actor::symlink},
                  {"unlink", &Actor::unlink},
                  {"rmdir", &Actor::rmdir},
                  {"mkdir", &Actor::mkdir},
                  {"mknod", &Actor::mknod},
                  {"bind", &Actor::bind},
                  {"umask", &Actor::umask},
                  {"chdir", &Actor::chdir},
                  {"getcwd", &Actor::getcwd},
                  {"readlink", &Actor::readlink},
                  {"cat", &Actor::cat},
                  {"list", &Actor::list},
                  {"truncate", &Actor::truncate},
                  {"diropen", &Actor::diropen},
                  {"dirread", &Actor::dirread},
                  {"dirend", &Actor::dirend}});
}

std::string Actor::rename(const Words& words) {
    return answer_of(::renameat2(AT_FDCWD, words.at(1).c_str(), AT_FDCWD, words.at(2).c_str(),
                                 static_cast<unsigned>(flags_word(words.at(3)))));
}

std::string Actor::link(const Words& words) {
    return answer_of(::linkat(AT_FDCWD, words.at(1).c_str(), AT_FDCWD, words.at(2).c_str(), flags_word(words.at(3))));
}

std::string Actor::symlink(const Words& words) {
    return answer_of(::symlink(words.at(1).c_str(), words.at(2).c_str()));
}

std::string Actor::unlink(const Words& words) {
    return answer_of(::unlink(words.at(1).c_str()));
}

std::string Actor::rmdir(const Words& words) {
    return answer_of(::rmdir(words.at(1).c_str()));
}

std::string Actor::mkdir(const Words& words) {
    return answer_of(::mkdir(words.at(1).c_str(), octal_word(words.at(2))));
}

std::string Actor::mknod(const Words& words) {
    constexpr unsigned kNoDriver = 240;  // Reserved for local use: opening it is ENXIO everywhere.
    const char type = words.at(2).at(0);
    const std::uint32_t mode = octal_word(words.at(3)) | (type == 'p'   ? S_IFIFO
                                                          : type == 'c' ? S_IFCHR
                                                          : type == 'b' ? S_IFBLK
                                                                        : S_IFREG);
    const dev_t device = type == 'c' ? makedev(1, 3) : type == 'b' ? makedev(kNoDriver, 77) : 0;
    return answer_of(::mknod(words.at(1).c_str(), mode, device));
}

std::string Actor::bind(const Words& words) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (words.at(1).size() >= sizeof address.sun_path) return "too long a name";
    std::memcpy(address.sun_path, words.at(1).data(), words.at(1).size());
    const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const std::string answer = answer_of(::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address));
    ::close(socket);
    return answer;
}

std::string Actor::umask(const Words& words) {
    ::umask(octal_word(words.at(1)));
    return "ok";
}

std::string Actor::chdir(const Words& words) {
    return answer_of(::chdir(words.at(1).c_str()));
}

std::string Actor::getcwd(const Words&) {
    std::array<char, 4096> room{};
    return ::getcwd(room.data(), room.size()) ? std::string(room.data()) : answer_of(-1);
}

std::string Actor::readlink(const Words& words) {
    std::array<char, 4096> room{};
    const ssize_t got = ::readlink(words.at(1).c_str(), room.data(), room.size());
    return got < 0 ? answer_of(got) : std::string(room.data(), static_cast<std::size_t>(got));
}

std::string Actor::cat(const Words& words) {
    const int file = ::open(words.at(1).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) return answer_of(file);
    std::string room(kMostBytes, '\0');
    const ssize_t got = ::read(file, room.data(), room.size());
    const std::string answer =
        got < 0 ? answer_of(got) : digest_of(std::string_view(room.data(), static_cast<std::size_t>(got)));
    ::close(file);
    return answer;
}

std::string Actor::list(const Words& words) {
    const int directory = ::open(words.at(1).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return answer_of(directory);
    std::string answer;
    for (const auto& name : names_in(directory)) answer += name + " ";
    ::close(directory);
    return answer;
}

std::string Actor::truncate(const Words& words) {
    return answer_of(::truncate(words.at(1).c_str(), std::stoll(words.at(2))));
}

std::string Actor::diropen(const Words& words) {
    const std::string answer = put(words.at(1), ::open(words.at(2).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (answer != "ok") return answer;
    Listing listing{.begun_at = at_, .before = names_of(fd(words.at(1))), .seen = {}, .is_checked = true};
    if (!listing.before.empty() && listing.before[0] == "/") listing.is_checked = false;
    listings_[words.at(1)] = listing;
    return "ok";
}

std::string Actor::dirread(const Words& words) {
    const auto found = listings_.find(words.at(1));
    if (found == listings_.end()) return "no such slot";
    constexpr std::size_t kNameAt = 19;
    std::array<char, 600> room{};  // A few names, and at least one of 255 bytes.
    const long got = ::syscall(SYS_getdents64, fd(words.at(1)), room.data(), room.size());
    if (got < 0) return answer_of(got);
    for (long at = 0; at < got;) {
        std::uint16_t size_bytes = 0;
        std::memcpy(&size_bytes, room.data() + at + 16, sizeof size_bytes);
        found->second.seen.emplace_back(room.data() + at + kNameAt);
        at += size_bytes;
    }
    return "ok";
}

std::string Actor::dirend(const Words& words) {
    const auto found = listings_.find(words.at(1));
    if (found == listings_.end()) return "no such slot";
    for (std::size_t before = SIZE_MAX; before != found->second.seen.size();) {
        before = found->second.seen.size();
        if (const auto answer = dirread(words); answer != "ok") return answer;
    }
    const Listing listing = found->second;
    listings_.erase(found);
    const auto after = names_of(fd(words.at(1)));
    if (!listing.is_checked || (!after.empty() && after[0] == "/")) return "ok";
    std::set<std::string> mentioned = {".", ".."};
    for (std::size_t at = listing.begun_at; at < at_; ++at) add_mentioned(mentioned, program_.calls[at]);
    std::set<std::string> names(listing.before.begin(), listing.before.end());
    names.insert(after.begin(), after.end());
    names.insert(listing.seen.begin(), listing.seen.end());
    for (const auto& name : names) {
        if (mentioned.contains(name)) continue;
        const bool was = std::ranges::binary_search(listing.before, name);
        const auto count = std::ranges::count(listing.seen, name);
        if (count != (was ? 1 : 0)) return name + " was listed " + std::to_string(count) + " times";
    }
    return "ok";
}

}  // namespace lamina::test::differential
