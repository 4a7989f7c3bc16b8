// Random programs. The generator keeps a list of paths that are probably there, so that most calls find something, and
// makes up the others from a few names, so that calls meet on them. What ext4 and we rightly do differently is left
// out: sizes of folders, xattrs beyond a block, reads that move the access time.
#include "e2e/differential/program.h"

#include <algorithm>
#include <array>
#include <functional>
#include <random>

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
        if (chance(150)) return std::string(255, 'n');
        return chance(14) ? one_of(kOdd) : one_of(kNames);
    }
    std::string some_folder() {
        return folders_.empty() || chance(3) ? "" : folders_[pick(unsigned(folders_.size()))] + "/";
    }
    /// A path that is probably there.
    std::string old_path() {
        if (paths_.empty() || chance(8)) return new_path();
        return paths_[pick(unsigned(paths_.size()))];
    }
    std::string new_path() {
        std::string path = some_folder() + name();
        if (chance(80)) path += "/";
        if (chance(80)) path = "./" + path;
        if (chance(100)) path = "../" + path;
        return path.size() < 3000 ? path : name();
    }
    std::string any_path() { return chance(3) ? new_path() : old_path(); }
    std::string file_path() { return files_.empty() || chance(6) ? any_path() : files_[pick(unsigned(files_.size()))]; }
    std::string folder_path() {
        if (chance(6)) return ".";
        return folders_.empty() || chance(6) ? any_path() : folders_[pick(unsigned(folders_.size()))];
    }
    void remember(const std::string& path, char type) {
        paths_.push_back(path);
        if (type == 'd') folders_.push_back(path);
        if (type == 'f') files_.push_back(path);
    }
    void moved(const std::string& from, const std::string& to) {
        for (auto* const list : {&paths_, &files_, &folders_})
            for (auto& path : *list)
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

    std::mt19937 random_;
    Program program_;
    unsigned actor_ = 0;
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
        if (entry.type == 'l') entry.target = chance(4) ? "/" + old_path() : chance(3) ? "../" + name() : old_path();
        if (entry.type == 'h') entry.target = files_[pick(unsigned(files_.size()))];
        remember(entry.path, entry.type == 'h' ? 'f' : entry.type);
        program_.lower.push_back(std::move(entry));
    }
}

void Generator::say_open() {
    std::string flags = one_of(std::array{"rd", "rdwr", "rdwr", "rdwr", "wr"});
    static const std::array<const char*, 9> kMore = {"creat", "excl",      "trunc", "append", "nofollow",
                                                     "creat", "directory", "path",  "sync"};
    for (unsigned more = pick(3); more > 0; --more) flags += "," + one_of(kMore);
    if (chance(12)) return say({"tmpfile", slot(), folder_path(), chance(4) ? "rdwr,excl" : "rdwr", mode()});
    const std::string path = file_path();
    say({"open", slot(), path, flags, mode()});
    if (flags.find("creat") != std::string::npos) remember(path, 'f');
}

void Generator::say_bytes() {
    switch (pick(10)) {
        case 0:
            return say({"read", slot(), size()});
        case 1:
        case 2:
            return say({"pread", slot(), text(offset()), size()});
        case 3:
        case 4:
            return say({"write", slot(), seed(), size()});
        case 5:
        case 6:
            return say({"pwrite", slot(), text(offset()), seed(), size()});
        case 7:
            return say({"lseek", slot(), text(offset()), one_of(std::array{"set", "cur", "end"})});
        case 8:
            return say({"copyrange", slot(), text(offset()), slot(), text(offset()), size()});
        default:
            return say({"sendfile", slot(), slot(), text(offset()), size()});
    }
}

void Generator::say_space() {
    static const std::array<const char*, 6> kModes = {"-", "keep", "punch,keep", "zero", "zero,keep", "punch"};
    switch (pick(6)) {
        case 0:
            return say({"ftruncate", slot(), text(offset())});
        case 1:
            return say({"truncate", file_path(), text(offset())});
        case 2:
            return say({"seek", slot(), text(offset()), chance(2) ? "data" : "hole"});
        case 3:
            return say({chance(2) ? "fsync" : "fdatasync", slot()});
        default:
            return say({"fallocate", slot(), one_of(kModes), text(offset()), size()});
    }
}

void Generator::say_mapping() {
    const std::string mapping = "m" + text(pick(2));
    switch (pick(6)) {
        case 0:
        case 1:
            return say({"map", mapping, slot()});
        case 2:
            return say({"mload", mapping, text(offset()), size()});
        case 3:
            return say({"unmap", mapping});
        default:
            return say({"mstore", mapping, text(offset()), seed(), size()});
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
            return say({"linkfd", slot(), path});
        default:
            remember(path, 'f');
            return say({"link", old_path(), path, chance(4) ? "follow" : "-"});
    }
}

void Generator::say_name() {
    switch (pick(5)) {
        case 0:
        case 1:
            return say({"unlink", old_path()});
        case 2:
            return say({"rmdir", folder_path()});
        case 3:
            return say({"readlink", old_path()});
        default:
            return say({"access", old_path(), text(pick(8))});
    }
}

void Generator::say_rename() {
    const std::string from = chance(3) ? folder_path() : old_path();
    const std::string to = chance(2) ? new_path() : any_path();
    const std::string flags = chance(5) ? "exchange" : chance(8) ? "noreplace" : "-";
    say({"rename", from, to, flags});
    if (flags != "exchange") moved(from, to);
}

void Generator::say_attributes() {
    switch (pick(9)) {
        case 0:
        case 1:
            return say({"chmod", old_path(), mode()});
        case 2:
            return say({"fchmod", slot(), mode()});
        case 3:
            return say({chance(2) ? "chown" : "lchown", old_path(), owner(), owner()});
        case 4:
            return say({"fchown", slot(), owner(), owner()});
        case 5:
        case 6:
            return say({"utimens", old_path(), time(), time(), chance(3) ? "self" : "-"});
        case 7:
            return say({"futimens", slot(), time(), time()});
        default:
            return say({"umask", one_of(std::array{"22", "0", "77", "27"})});
    }
}

void Generator::say_xattr() {
    const std::string prefix = one_of(std::array{"", "", "l", "f"});
    const std::string target = prefix == "f" ? slot() : old_path();
    const std::string name = xattr_name();
    switch (pick(6)) {
        case 0:
        case 1:
        case 2:
            return say({prefix + "setxattr", target, name, xattr_value(name),
                        one_of(std::array{"-", "-", "-", "create", "replace"})});
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
            return say({"fstat", slot()});
        case 3:
            return say({"list", folder_path()});
        default:
            return say({"cat", file_path()});
    }
}

void Generator::say_listing() {
    switch (pick(5)) {
        case 0:
        case 1:
            return say({"diropen", slot(), folder_path()});
        case 2:
            return say({"dirend", slot()});
        default:
            return say({"dirread", slot()});
    }
}

void Generator::say_other() {
    switch (pick(6)) {
        case 0:
            return say({"chdir", chance(2) ? "/" : folder_path()});
        case 1:
            return say({"getcwd"});
        case 2:
            return say({"flock", slot(), one_of(std::array{"sh", "ex", "un"})});
        case 3:
            return say({"setlk", slot(), one_of(std::array{"rd", "wr", "un"}), text(pick(100)), text(pick(50))});
        case 4:
            return say({"dup", slot(), slot()});
        default:
            return say({"close", slot()});
    }
}

void Generator::call() {
    using Step = void (Generator::*)();
    static constexpr std::array<std::pair<unsigned, Step>, 12> kSteps = {{{12, &Generator::say_open},
                                                                          {18, &Generator::say_bytes},
                                                                          {10, &Generator::say_space},
                                                                          {5, &Generator::say_mapping},
                                                                          {13, &Generator::say_make},
                                                                          {8, &Generator::say_name},
                                                                          {11, &Generator::say_rename},
                                                                          {8, &Generator::say_attributes},
                                                                          {7, &Generator::say_xattr},
                                                                          {7, &Generator::say_look},
                                                                          {5, &Generator::say_listing},
                                                                          {4, &Generator::say_other}}};
    static const unsigned total = [] {
        unsigned sum = 0;
        for (const auto& [weight, step] : kSteps) sum += weight;
        return sum;
    }();
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
