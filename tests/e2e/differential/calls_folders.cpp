// Calls below the descriptor of a folder, which stays the same folder whatever becomes of its names.
#include "e2e/differential/calls.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace lamina::test::differential {

void Actor::add_folder_calls(std::map<std::string, Function>& table) {
    table.insert({{"openat", &Actor::openat},
                  {"mkdirat", &Actor::mkdirat},
                  {"unlinkat", &Actor::unlinkat},
                  {"renameat", &Actor::renameat},
                  {"linkat", &Actor::linkat},
                  {"symlinkat", &Actor::symlinkat},
                  {"fchdir", &Actor::fchdir},
                  {"dirrewind", &Actor::dirrewind}});
}

std::string Actor::openat(const Words& words) {
    const int flags = flags_word(words.at(4)) | O_CLOEXEC | O_NONBLOCK;
    return put(words.at(1), ::openat(fd(words.at(2)), words.at(3).c_str(), flags, octal_word(words.at(5))));
}

std::string Actor::mkdirat(const Words& words) {
    return answer_of(::mkdirat(fd(words.at(1)), words.at(2).c_str(), octal_word(words.at(3))));
}

std::string Actor::unlinkat(const Words& words) {
    return answer_of(::unlinkat(fd(words.at(1)), words.at(2).c_str(), flags_word(words.at(3))));
}

std::string Actor::renameat(const Words& words) {
    return answer_of(::renameat2(fd(words.at(1)), words.at(2).c_str(), fd(words.at(3)), words.at(4).c_str(),
                                 static_cast<unsigned>(flags_word(words.at(5)))));
}

std::string Actor::linkat(const Words& words) {
    return answer_of(::linkat(fd(words.at(1)), words.at(2).c_str(), fd(words.at(3)), words.at(4).c_str(), 0));
}

std::string Actor::symlinkat(const Words& words) {
    return answer_of(::symlinkat(words.at(1).c_str(), fd(words.at(2)), words.at(3).c_str()));
}

std::string Actor::fchdir(const Words& words) {
    return answer_of(::fchdir(fd(words.at(1))));
}

std::string Actor::dirrewind(const Words& words) {
    const auto found = listings_.find(words.at(1));
    if (found == listings_.end()) return "no such slot";
    const off_t result = ::lseek(fd(words.at(1)), 0, SEEK_SET);
    found->second = {.begun_at = at_, .before = names_of(fd(words.at(1))), .seen = {}, .is_checked = true};
    if (!found->second.before.empty() && found->second.before[0] == "/") found->second.is_checked = false;
    return answer_of(result);
}

}  // namespace lamina::test::differential
