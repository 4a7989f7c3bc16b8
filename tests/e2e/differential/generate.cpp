// Random programs. The generator keeps a list of paths that are probably there, so that most calls find something, and
// makes up the others from a few names, so that calls meet on them. What ext4 and we rightly do differently is left
// out: sizes of folders, xattrs beyond a block, reads that move the access time.
#include "e2e/differential/program.h"

#include <algorithm>
#include <array>
#include <functional>
#include <iterator>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <utility>

namespace lamina::test::differential {
namespace {

/// Values of ACL xattrs: owner, a user, group, mask, others.
std::string acl_value(unsigned owner, unsigned user, unsigned group, unsigned other) {
    std::string value = {2, 0, 0, 0};
    const auto add = [&](unsigned tag, unsigned permissions, std::uint32_t id) {
        for (const std::uint32_t part : {tag, permissions, id & 0xffff, id >> 16}) {
            value += static_cast<char>(part & 0xff);
            value += static_cast<char>(part >> 8 & 0xff);
        }
    };
    add(0x01, owner, 0xffffffff);
    if (user <= 7) add(0x02, user, 1000);
    add(0x04, group, 0xffffffff);
    if (user <= 7) add(0x10, user | group, 0xffffffff);
    add(0x20, other, 0xffffffff);
    return value;
}

std::string capability_value() {
    std::string value(20, '\0');
    value[3] = 2;  // Revision 2.
    value[4] = 1;  // CAP_CHOWN
    value[5] = 4;  // CAP_NET_BIND_SERVICE
    return value;
}

class Generator {
public:
    explicit Generator(unsigned seed) : random_(seed) {
        program_.seed = seed;
        program_.is_watched = chance(2);
        program_.other_uid = chance(2) ? 1000 : 0;
    }
    Program make() {
        lower();
        const unsigned calls = 20 + pick(60);
        for (unsigned i = 0; i < calls; ++i) {
            actor_ = pick(3) == 0 ? 1 : 0;
            call();
        }
        return std::move(program_);
    }

private:
    unsigned pick(unsigned count) { return static_cast<unsigned>(random_() % count); }
    bool chance(unsigned of) { return pick(of) == 0; }
    template <std::size_t Size>
    std::string one_of(const std::array<const char*, Size>& words) {
        return words[pick(Size)];
    }
    static std::string text(std::uint64_t number) { return std::to_string(number); }

    std::string name() {
        static const std::array<const char*, 8> kNames = {"a", "b", "c", "d", "e", "f", "g", "h"};
        static const std::array<const char*, 7> kOdd = {".wh.a",      ".wh..wh..opq", "new\nline", "\xff\xfe",
                                                        "with space", ".wh..wh.plnk", "#1"};
        if (chance(150)) return std::string(chance(4) ? 256 : 255, 'n');
        return chance(14) ? one_of(kOdd) : one_of(kNames);
    }
    std::string some_folder() {
        return folders_.empty() || chance(3) ? "" : folders_[pick(unsigned(folders_.size()))] + "/";
    }
    /// A path that is probably there.
    std::string old_path() {
        if (paths_.empty() || chance(12)) return new_path();
        return from_here(paths_[pick(unsigned(paths_.size()))]);
    }
    std::string new_path() {
        std::string path = some_folder() + name();
        if (chance(80)) path += "/";
        if (chance(80)) path = "./" + path;
        if (chance(100)) path = "../" + path;
        return from_here(path.size() < 3000 ? path : name());
    }
    /// The root is the program's folder: who has left it finds things from there.
    std::string from_here(const std::string& path) { return has_left_[actor_] && !chance(5) ? "/" + path : path; }
    static std::string from_root(const std::string& path) {
        return path.starts_with("/") ? path.substr(1) : path.starts_with("./") ? path.substr(2) : path;
    }
    std::string any_path() { return chance(3) ? new_path() : old_path(); }
    std::string file_path() {
        return files_.empty() || chance(8) ? any_path() : from_here(files_[pick(unsigned(files_.size()))]);
    }
    std::string folder_path() {
        if (chance(6)) return ".";
        return folders_.empty() || chance(8) ? any_path() : from_here(folders_[pick(unsigned(folders_.size()))]);
    }
    void remember(const std::string& word, char type) {
        const std::string path = from_root(word);
        paths_.push_back(path);
        if (type == 'd') folders_.push_back(path);
        if (type == 'f') files_.push_back(path);
    }
    void gone(const std::string& path) {
        for (auto* const list : {&paths_, &files_, &folders_}) std::erase(*list, from_root(path));
    }
    void moved(const std::string& old_word, const std::string& new_word) {
        const std::string from = from_root(old_word);
        const std::string to = from_root(new_word);
        for (auto* const list : {&paths_, &files_, &folders_})
            for (auto& path : *list)
                if (path == from || path.starts_with(from + "/")) path = to + path.substr(from.size());
        for (auto& [path, name] : path_xattrs_)
            if (path == from || path.starts_with(from + "/")) path = to + path.substr(from.size());
    }

    std::uint64_t offset() {
        static constexpr std::array<std::uint64_t, 8> kEdges = {0, 1, 4095, 4096, 4097, 8192, 65536, 131072};
        if (chance(3)) return kEdges[pick(kEdges.size())];
        return pick(chance(3) ? 200'000 : 9'000);
    }
    std::string size() { return text(chance(4) ? pick(100'000) : chance(2) ? 4096 * (1 + pick(4)) : 1 + pick(600)); }
    std::string seed() { return text(1 + pick(1000)); }
    std::string mode() {
        static const std::array<const char*, 12> kModes = {"644",  "755",  "600",  "777",  "700", "4755",
                                                           "2755", "6777", "1777", "2775", "0",   "444"};
        return one_of(kModes);
    }
    std::string owner() { return chance(5) ? "-1" : text(pick(3) * 1000); }
    std::string time() {
        static const std::array<const char*, 8> kTimes = {"now",
                                                          "omit",
                                                          "0.0",
                                                          "-5.500000000",
                                                          "2147483653.000000007",
                                                          "1000000000.123456789",
                                                          "4000000000.000000001",
                                                          "1.999999999"};
        return one_of(kTimes);
    }
    std::string slot() { return "h" + text(pick(4)); }
    /// A slot in which there is probably a file ('f'), a folder ('d') or what reads or writes whole blocks ('b').
    std::string slot_of(char type) {
        std::vector<std::string> fitting;
        for (const auto& [name, held] : slots_[actor_])
            if (held == type) fitting.push_back(name);
        return fitting.empty() || chance(12) ? slot() : fitting[pick(unsigned(fitting.size()))];
    }
    std::string file_slot() { return slot_of('f'); }
    /// Mostly one that holds nothing yet.
    std::string free_slot() {
        for (const char* const name : {"h0", "h1", "h2", "h3"})
            if (!slots_[actor_].contains(name) && !chance(3)) return name;
        return slot();
    }
    void held(const std::string& slot, char type) { slots_[actor_][slot] = type; }
    /// A folder comes into a free slot. Its name is kept, to find things in it.
    void say_open_folder(const char* call, const std::vector<std::string>& more) {
        const std::string into = free_slot();
        const std::string folder = folder_path();
        std::vector<std::string> words = {call, into, folder};
        words.insert(words.end(), more.begin(), more.end());
        say(words);
        held(into, 'd');
        folder_of_[actor_][into] = from_root(folder);
    }
    /// A name that is probably in a folder.
    std::string name_in(const std::string& slot) {
        const std::string inside = folder_of_[actor_][slot] == "." ? "" : folder_of_[actor_][slot] + "/";
        std::vector<std::string> names;
        for (const auto& path : paths_)
            if (path.starts_with(inside) && path.find('/', inside.size()) == std::string::npos)
                names.push_back(path.substr(inside.size()));
        return names.empty() || chance(4) ? name() : names[pick(unsigned(names.size()))];
    }
    std::string xattr_name() {
        static const std::array<const char*, 14> kNames = {"btrfs.x",
                                                           "system.x",
                                                           "user.a",
                                                           "user.a",
                                                           "user.b",
                                                           "user.a.very.long.name.that.goes.on",
                                                           "trusted.t",
                                                           "security.capability",
                                                           "system.posix_acl_access",
                                                           "system.posix_acl_default",
                                                           "system.posix_acl_access",
                                                           "system.posix_acl_default",
                                                           "user.",
                                                           "security.x"};
        return one_of(kNames);
    }
    std::string xattr_value(const std::string& name) {
        if (name == "security.capability") return chance(5) ? "x" : capability_value();
        if (name.starts_with("system.")) {
            if (chance(10)) return "not an ACL";
            if (chance(10)) return {};
            return acl_value(pick(8), chance(4) ? 99 : pick(8), pick(8), pick(8));
        }
        return chance(5) ? "" : std::string(1 + pick(60), static_cast<char>('a' + pick(26)));
    }

    void lower();
    void lower_data(LowerEntry& file);
    void lower_xattrs(LowerEntry& entry);
    void call();
    void say(std::vector<std::string> words) { program_.calls.push_back({actor_, std::move(words)}); }
    void say_open();
    void say_bytes();
    void say_space();
    void say_mapping();
    void say_make();
    void say_name();
    void say_rename();
    void say_attributes();
    void say_xattr();
    void say_look();
    void say_listing();
    void say_other();
    void say_below();

    std::mt19937 random_;
    Program program_;
    unsigned actor_ = 0;
    std::array<std::map<std::string, char>, 2> slots_;             ///< What each process has probably open.
    std::array<std::map<std::string, std::string>, 2> folder_of_;  ///< By slot.
    using Xattr = std::pair<std::string, std::string>;             ///< Where it was set, and its name.
    std::vector<Xattr> path_xattrs_;
    std::array<std::vector<Xattr>, 2> slot_xattrs_;
    std::array<std::set<std::string>, 2> mappings_;
    std::array<bool, 2> has_left_{};  ///< The folder that it began in.
    std::vector<std::string> paths_;
    std::vector<std::string> files_;
    std::vector<std::string> folders_;
};

void Generator::lower_data(LowerEntry& file) {
    switch (pick(5)) {
        case 0:
            return;  // Empty.
        case 1:      // Sparse, in whole blocks.
            file.size_bytes = 4096 * (2 + pick(30));
            for (std::uint64_t at = 4096 * pick(4); at < file.size_bytes; at += 4096 * (2 + pick(6)))
                file.data.push_back({at, 4096, 1 + pick(1000)});
            if (chance(2)) file.size_bytes += pick(4096);
            return;
        default:
            file.size_bytes = chance(6) ? 1 + pick(150'000) : 1 + pick(9'000);
            file.data.push_back({0, file.size_bytes, 1 + pick(1000)});
    }
}

void Generator::lower_xattrs(LowerEntry& entry) {
    if (!chance(4)) return;
    if (entry.type == 'f' && chance(3)) entry.xattrs["security.capability"] = capability_value();
    if (chance(2)) entry.xattrs["user.a"] = std::string(1 + pick(40), 'v');
    if (chance(4)) entry.xattrs["trusted.t"] = "t";
    if (entry.type == 'd' && chance(3)) entry.xattrs["system.posix_acl_default"] = acl_value(7, pick(8), 5, pick(8));
}

void Generator::lower() {
    program_.lower.push_back({.type = 'd',
                              .path = ".",
                              .mode = chance(4)   ? 0777U
                                      : chance(4) ? 01777U
                                                  : 0755U,
                              .seconds = 1'500'000'000,
                              .nanoseconds = 0,
                              .target = {},
                              .data = {},
                              .xattrs = {}});
    for (unsigned count = pick(18); count > 0; --count) {
        LowerEntry entry;
        entry.path = (folders_.empty() || chance(3) ? "" : folders_[pick(unsigned(folders_.size()))] + "/") + name();
        if (std::ranges::find(paths_, entry.path) != paths_.end() || entry.path.size() > 600) continue;
        if (entry.path.find(".wh.") != std::string::npos) continue;  // In a layer that is a whiteout.
        if (entry.path.ends_with(std::string(256, 'n'))) continue;
        static constexpr std::array<char, 12> kTypes = {'d', 'd', 'd', 'd', 'f', 'f', 'f', 'f', 'f', 'l', 'h', 'p'};
        entry.type = kTypes[pick(kTypes.size())];
        if (entry.type == 'p' && chance(3)) entry.type = 'c';
        if (entry.type == 'h' && files_.empty()) entry.type = 'f';
        entry.mode = static_cast<std::uint32_t>(std::stoul(mode(), nullptr, 8));
        entry.uid = chance(3) ? 1000 : 0;
        entry.gid = chance(3) ? 1000 : 0;
        entry.seconds = chance(6) ? -1 - static_cast<std::int64_t>(pick(100'000)) : 1 + pick(1'700'000'000);
        entry.nanoseconds = chance(2) ? 0 : pick(1'000'000'000);
        if (entry.type == 'f') lower_data(entry);
        if (entry.type == 'f' || entry.type == 'd') lower_xattrs(entry);
        for (const auto& [xattr, value] : entry.xattrs) path_xattrs_.emplace_back(entry.path, xattr);
        if (entry.type == 'l') entry.target = chance(4) ? "/" + old_path() : chance(3) ? "../" + name() : old_path();
        if (entry.type == 'h') entry.target = files_[pick(unsigned(files_.size()))];
        remember(entry.path, entry.type == 'h' ? 'f' : entry.type);
        program_.lower.push_back(std::move(entry));
    }
}

void Generator::say_open() {
    const std::string into = free_slot();
    if (chance(10)) {
        say({"tmpfile", into, folder_path(), chance(4) ? "rdwr,excl" : "rdwr", mode()});
        return held(into, 'f');
    }
    std::string flags = one_of(std::array{"rd", "rdwr", "rdwr", "rdwr", "rdwr", "wr"});
    static const std::array<const char*, 10> kMore = {"creat", "excl",      "trunc", "append", "nofollow",
                                                      "creat", "directory", "path",  "sync",   "direct"};
    for (unsigned more = chance(2) ? pick(3) : 0; more > 0; --more) flags += "," + one_of(kMore);
    // Where a file ends that is only written by blocks is the disk's business.
    if (flags.find("append") != std::string::npos && flags.find("direct") != std::string::npos) flags = "rdwr,direct";
    const std::string path = chance(6) ? any_path() : file_path();
    say({"open", into, path, flags, mode()});
    if (flags.find("creat") != std::string::npos) remember(path, 'f');
    const auto has = [&](const char* flag) { return flags.find(flag) != std::string::npos; };
    held(into, has("path") ? 'p' : has("directory") ? 'd' : has("direct") ? 'b' : 'f');
}

void Generator::say_bytes() {
    switch (pick(12)) {
        case 10:
            return say({"dread", slot_of('b'), text(pick(8)), text(pick(4))});
        case 11:
            return say({"dwrite", slot_of('b'), text(pick(8)), seed(), text(pick(4))});
        case 0:
            return say({"read", file_slot(), size()});
        case 1:
        case 2:
            return say({"pread", file_slot(), text(offset()), size()});
        case 3:
        case 4:
            return say({"write", file_slot(), seed(), size()});
        case 5:
        case 6:
            return say({"pwrite", file_slot(), text(offset()), seed(), size()});
        case 7:
            return say({"lseek", file_slot(), text(offset()), one_of(std::array{"set", "cur", "end"})});
        case 8:
            return say({"copyrange", file_slot(), text(offset()), file_slot(), text(offset()), size()});
        default:
            return say({"sendfile", file_slot(), file_slot(), text(offset()), size()});
    }
}

void Generator::say_space() {
    static const std::array<const char*, 6> kModes = {"-", "keep", "punch,keep", "zero", "zero,keep", "punch"};
    switch (pick(6)) {
        case 0:
            return say({"ftruncate", file_slot(), text(offset())});
        case 1:
            return say({"truncate", file_path(), text(offset())});
        case 2:
            return say({"seek", file_slot(), text(offset()), chance(2) ? "data" : "hole"});
        case 3:
            return say({chance(2) ? "fsync" : "fdatasync", file_slot()});
        default:
            return say({"fallocate", file_slot(), one_of(kModes), text(offset()), size()});
    }
}

void Generator::say_mapping() {
    auto& mappings = mappings_[actor_];
    const std::string mapping = "m" + text(pick(2));
    if (mappings.empty() || chance(4)) {
        mappings.insert(mapping);
        say({"map", mapping, file_slot()});
        if (chance(2)) say({"mstore", mapping, text(pick(4000)), seed(), size()});
        return;
    }
    const std::string known = *std::next(mappings.begin(), pick(unsigned(mappings.size())));
    switch (pick(5)) {
        case 0:
        case 1:
            return say({"mload", known, text(chance(3) ? offset() : pick(4000)), size()});
        case 2:
            if (chance(3)) mappings.erase(known);
            return say({"unmap", known});
        default:
            return say({"mstore", known, text(chance(3) ? offset() : pick(4000)), seed(), size()});
    }
}

void Generator::say_make() {
    const std::string path = chance(4) ? any_path() : new_path();
    switch (pick(8)) {
        case 0:
        case 1:
        case 2:
            remember(path, 'd');
            return say({"mkdir", path, mode()});
        case 3:
            remember(path, 'l');
            if (chance(12)) return say({"symlink", std::string(chance(2) ? 4095 : 4096, 't'), path});
            return say({"symlink", chance(5) ? "/" + old_path() : chance(4) ? "../" + old_path() : old_path(), path});
        case 4: {
            const std::string type = one_of(std::array{"p", "c", "b", "f"});
            remember(path, type[0]);
            return say({"mknod", path, type, mode()});
        }
        case 5:
            remember(path, 's');
            return say({"bind", path});
        case 6:
            remember(path, 'f');
            return say({"linkfd", file_slot(), path});
        default:
            remember(path, 'f');
            return say({"link", old_path(), path, chance(4) ? "follow" : "-"});
    }
}

void Generator::say_name() {
    switch (pick(5)) {
        case 0:
        case 1:
        case 2: {
            const bool is_folder = chance(3);
            const std::string path = is_folder ? folder_path() : old_path();
            if (chance(2)) gone(path);
            return say({is_folder ? "rmdir" : "unlink", path});
        }
        case 3:
            return say({"readlink", old_path()});
        default:
            return say({"access", old_path(), text(pick(8))});
    }
}

void Generator::say_rename() {
    const std::string from = chance(3) ? folder_path() : old_path();
    const std::string to = chance(2) ? new_path() : any_path();
    const std::string flags = chance(5)    ? "exchange"
                              : chance(8)  ? "noreplace"
                              : chance(40) ? "noreplace,exchange"
                                           : "-";
    say({"rename", from, to, flags});
    if (flags.find("exchange") == std::string::npos) moved(from, to);
}

void Generator::say_attributes() {
    switch (pick(9)) {
        case 0:
        case 1:
            return say({"chmod", old_path(), mode()});
        case 2:
            return say({"fchmod", file_slot(), mode()});
        case 3:
            return say({chance(2) ? "chown" : "lchown", old_path(), owner(), owner()});
        case 4:
            return say({"fchown", file_slot(), owner(), owner()});
        case 5:
        case 6:
            return say({"utimens", old_path(), time(), time(), chance(3) ? "self" : "-"});
        case 7:
            return say({"futimens", file_slot(), time(), time()});
        default:
            return say({"umask", one_of(std::array{"22", "0", "77", "27"})});
    }
}

void Generator::say_xattr() {
    const std::string prefix = one_of(std::array{"", "", "l", "f"});
    auto& known = prefix == "f" ? slot_xattrs_[actor_] : path_xattrs_;
    std::string target = prefix == "f" ? file_slot() : chance(2) ? file_path() : old_path();
    std::string name = xattr_name();
    const unsigned what = pick(6);
    if (what < 3) {
        known.emplace_back(from_root(target), name);
        say({prefix + "setxattr", target, name, xattr_value(name),
             one_of(std::array{"-", "-", "-", "create", "replace"})});
        if (chance(3)) say({prefix + (chance(2) ? "getxattr" : "removexattr"), target, name});
        return;
    }
    if (!known.empty() && !chance(4)) {
        std::tie(target, name) = known[pick(unsigned(known.size()))];
        if (prefix != "f") target = from_here(target);
    }
    switch (what) {
        case 3:
            return say({prefix + "getxattr", target, name});
        case 4:
            return say({prefix + "listxattr", target});
        default:
            return say({prefix + "removexattr", target, name});
    }
}

void Generator::say_look() {
    switch (pick(6)) {
        case 0:
            return say({"stat", any_path()});
        case 1:
            return say({"lstat", any_path()});
        case 2:
            return say({"fstat", file_slot()});
        case 3:
            return say({"list", folder_path()});
        default:
            return say({"cat", file_path()});
    }
}

void Generator::say_listing() {
    const bool has_listing = std::ranges::any_of(slots_[actor_], [](const auto& slot) { return slot.second == 'd'; });
    if (!has_listing || chance(4)) {
        say_open_folder("diropen", {});
        return say({"dirread", program_.calls.back().words[1]});
    }
    const std::string call = one_of(std::array{"dirread", "dirread", "dirread", "dirend", "dirrewind"});
    say({call, slot_of('d')});
}

void Generator::say_other() {
    switch (pick(6)) {
        case 0: {
            const bool leaves = !chance(2);
            has_left_[actor_] = has_left_[actor_] || leaves;
            return say({"chdir", leaves ? folder_path() : "/"});
        }
        case 1:
            return say({"getcwd"});
        case 2:
            return say({"flock", file_slot(), one_of(std::array{"sh", "ex", "un"})});
        case 3:
            return say({"setlk", file_slot(), one_of(std::array{"rd", "wr", "un"}), text(pick(100)), text(pick(50))});
        case 4: {
            const std::string from = file_slot();
            const std::string into = free_slot();
            say({"dup", from, into});
            return held(into, 'f');
        }
        default: {
            const std::string closed = slot();
            slots_[actor_].erase(closed);
            return say({"close", closed});
        }
    }
}

/// By the descriptors of folders, wherever those are by then.
void Generator::say_below() {
    const bool has_folder = std::ranges::any_of(slots_[actor_], [](const auto& slot) { return slot.second == 'd'; });
    if (!has_folder || chance(6)) say_open_folder("open", {chance(5) ? "path,directory" : "rd,directory", "0"});
    const std::string folder = slot_of('d');
    const std::string path = chance(8) ? name_in(folder) + "/" + name() : name_in(folder);
    switch (pick(9)) {
        case 0:
        case 1: {
            const std::string into = free_slot();
            say({"openat", into, folder, path, chance(2) ? "rdwr,creat" : "rdwr", mode()});
            return held(into, 'f');
        }
        case 2:
            return say({"mkdirat", folder, path, mode()});
        case 3:
            return say({"unlinkat", folder, path, chance(3) ? "dir" : "-"});
        case 4:
        case 5:
            return say({"renameat", folder, path, slot_of('d'), name(), chance(4) ? "exchange" : "-"});
        case 6:
            return say({"linkat", folder, path, slot_of('d'), name()});
        case 7:
            return say({"symlinkat", old_path(), folder, path});
        default:
            has_left_[actor_] = true;
            return say({"fchdir", folder});
    }
}

void Generator::call() {
    using Step = void (Generator::*)();
    static constexpr std::array<std::pair<unsigned, Step>, 13> kSteps = {{{6, &Generator::say_below},
                                                                          {12, &Generator::say_open},
                                                                          {18, &Generator::say_bytes},
                                                                          {10, &Generator::say_space},
                                                                          {8, &Generator::say_mapping},
                                                                          {13, &Generator::say_make},
                                                                          {8, &Generator::say_name},
                                                                          {11, &Generator::say_rename},
                                                                          {8, &Generator::say_attributes},
                                                                          {7, &Generator::say_xattr},
                                                                          {7, &Generator::say_look},
                                                                          {8, &Generator::say_listing},
                                                                          {4, &Generator::say_other}}};
    static const unsigned total = [] {
        unsigned sum = 0;
        for (const auto& [weight, step] : kSteps) sum += weight;
        return sum;
    }();
    if (slots_[actor_].size() < 2 && chance(2)) return say_open();
    unsigned at = pick(total);
    for (const auto& [weight, step] : kSteps) {
        if (at < weight) return (this->*step)();
        at -= weight;
    }
}

}  // namespace

Program random_program(unsigned seed) {
    return Generator(seed).make();
}

}  // namespace lamina::test::differential
