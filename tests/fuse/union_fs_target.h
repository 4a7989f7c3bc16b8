#pragma once

#include "fuse/union_table.h"
#include "support/union_fixture.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace lamina::test {

/// The table's commands on a union without a mount. Path resolution is the fixture's, without symlinks.
class UnionFsTarget final : public UnionTarget {
public:
    explicit UnionFsTarget(UnionPaths& fixture) : at_(fixture) {}

    std::string run(const Words& words) override {
        if (words[0] == "open") return open(words);
        if (words[0][0] == 'h' && words[0] != "hole") return handle(words);
        if (words[0] == "look" || words[0] == "moved") return times(words);
        if (words[0] == "close") return handle(words);
        if (const int error = missing_parent(words[1])) return errno_name(error);
        const std::vector<std::function<std::string(const Words&)>> tries = {
            [this](const Words& all) { return change_names(all); },
            [this](const Words& all) { return change_data(all); }, [this](const Words& all) { return show(all); },
            [this](const Words& all) { return xattr(all); }};
        for (const auto& one : tries)
            if (const std::string answer = one(words); answer != kNotMine) return answer;
        return "no such command";
    }

private:
    static constexpr const char* kNotMine = "not mine";

    template <class T>
    static std::string answer(const unionfs::Result<T>& result) {
        return errno_name(UnionPaths::code(result));
    }
    static std::string count(const unionfs::Result<std::size_t>& result) {
        return result ? std::to_string(*result) : answer(result);
    }
    static std::string shown(std::string content) {
        std::ranges::replace(content, '\0', '.');
        return content;
    }
    static std::string joined(const std::set<std::string>& names) {
        std::string text;
        for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
        return text;
    }
    /// What path resolution says before the last name is looked at.
    int missing_parent(const std::string& path) {
        const std::string parent = path.substr(0, path.rfind('/'));
        const unionfs::NodeId node = at_.find(parent);
        if (node == 0) return ENOENT;
        return S_ISDIR(at_.stat(parent).mode) ? 0 : ENOTDIR;
    }

    std::string change_names(const Words& words) {
        const std::string& path = words[1];
        if (words[0] == "create") {
            const auto made = at_.create(path, words.size() > 2 ? words[2] : "");
            return answer(made);
        }
        if (words[0] == "mkdir") return answer(at_.mkdir(path));
        if (words[0] == "symlink") return answer(at_.make(path, S_IFLNK | 0777, words[2]));
        if (words[0] == "mkfifo") return answer(at_.make(path, S_IFIFO | 0644));
        if (words[0] == "link") return at_.find(path) ? errno_name(at_.link(path, words[2])) : "ENOENT";
        if (words[0] == "unlink") return errno_name(at_.unlink(path));
        if (words[0] == "rmdir") return errno_name(at_.rmdir(path));
        if (words[0] != "rename") return kNotMine;
        const bool has_flag = words.size() > 3;
        return errno_name(at_.rename(
            path, words[2],
            {.no_replace = has_flag && words[3] == "noreplace", .exchange = has_flag && words[3] == "exchange"}));
    }
    std::string change_data(const Words& words) {
        const unionfs::NodeId node = at_.find(words[1]);
        const auto number = [&](std::size_t word) { return std::stoull(words[word]); };
        if (words[0] == "write") return count(at_.write(words[1], number(2), words[3]));
        if (words[0] == "append") return count(at_.write(words[1], at_.stat(words[1]).size_bytes, words[2]));
        if (words[0] == "truncate") return errno_name(at_.truncate(words[1], number(2)));
        if (words[0] == "chmod")
            return errno_name(at_.chmod(words[1], static_cast<std::uint32_t>(std::stoul(words[2], nullptr, 8))));
        if (words[0] == "chown") {
            if (words.size() > 2) return answer(at_.fs->set_attributes(node, owner_of_nobody()));
            const unionfs::Attributes found = at_.stat(words[1]);
            return answer(at_.fs->set_attributes(node, {.uid = found.uid, .gid = found.gid}));
        }
        if (words[0] == "grow") return answer(at_.fs->allocate(node, 0, 0, number(2)));
        if (words[0] == "punch")
            return answer(at_.fs->allocate(node, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, number(2), number(3)));
        if (words[0] == "zero") return answer(at_.fs->allocate(node, FALLOC_FL_ZERO_RANGE, number(2), number(3)));
        return kNotMine;
    }
    /// What the server makes of a chown of neither owner.
    static unionfs::AttributeChange owner_of_nobody() {
        timespec now{};
        ::clock_gettime(CLOCK_REALTIME, &now);
        return {
            .ctime = unionfs::Timestamp{.seconds = now.tv_sec, .nanoseconds = static_cast<std::uint32_t>(now.tv_nsec)},
            .clears_privileges = true};
    }
    std::string times(const Words& words) {
        const unionfs::Attributes found = at_.stat(words[1]);
        const ShownTimes shown{.mtime = found.mtime, .ctime = found.ctime};
        if (words[0] == "moved") return shown.moved_since(looks_.at(words[2]));
        looks_[words[2]] = shown;
        wait_for_tick();
        return "ok";
    }
    std::string absent(const std::string& path) {
        const auto place = at_.place(path);
        const auto entry = at_.fs->lookup(place.parent, place.name);
        return entry ? "ENOENT" : answer(entry);
    }
    std::string seek(unionfs::NodeId node, const Words& words) {
        const auto found = at_.fs->seek(node, std::stoull(words[2]), words[0] == "data");
        return found ? std::to_string(*found) : answer(found);
    }
    std::string show(const Words& words) {
        const unionfs::NodeId node = at_.find(words[1]);
        if (words[0] == "list") return joined(at_.names(words[1]));
        if (node == 0) return absent(words[1]);
        if (words[0] == "hole" || words[0] == "data") return seek(node, words);
        const unionfs::Attributes found = at_.stat(words[1]);
        char octal[16];
        std::snprintf(octal, sizeof octal, "%o", found.mode & 07777);
        if (words[0] == "read") {
            const auto possible = at_.fs->read(node, 0, {});
            return possible ? shown(at_.read(words[1])) : answer(possible);
        }
        if (words[0] == "readlink") return *at_.fs->link_target(node);
        if (words[0] == "mode") return octal;
        if (words[0] == "nlink") return std::to_string(found.nlink);
        if (words[0] == "size") return std::to_string(found.size_bytes);
        if (words[0] == "same") return node == at_.find(words[2]) ? "yes" : "no";
        if (words[0] != "type") return kNotMine;
        return S_ISDIR(found.mode) ? "dir" : S_ISREG(found.mode) ? "file" : S_ISLNK(found.mode) ? "link" : "fifo";
    }
    std::string xattr(const Words& words) {
        const unionfs::NodeId node = at_.find(words[1]);
        if (words[0] == "setxattr") {
            const int flags = words.size() < 5 ? 0 : words[4] == "create" ? XATTR_CREATE : XATTR_REPLACE;
            return answer(at_.fs->set_xattr(node, words[2], words[3], flags));
        }
        if (words[0] == "removexattr") return answer(at_.fs->remove_xattr(node, words[2]));
        if (words[0] == "getxattr") {
            const auto value = at_.fs->xattr(node, words[2]);
            return value ? *value : answer(value);
        }
        if (words[0] != "xattrs") return kNotMine;
        const std::string text = *at_.fs->xattr_names(node);
        std::set<std::string> names;
        for (std::size_t begin = 0; begin < text.size(); begin = text.find('\0', begin) + 1)
            names.insert(text.c_str() + begin);
        return joined(names);
    }
    std::string open(const Words& words) {
        const auto place = at_.place(words[1]);
        const auto entry = at_.fs->lookup(place.parent, place.name);
        if (!entry || !*entry) return "ENOENT";
        open_[words[2]] = (*entry)->attributes.node;
        return "ok";
    }
    std::string handle(const Words& words) {
        const unionfs::NodeId node = open_.at(words[1]);
        if (words[0] == "hread") return shown(at_.read_node(node));
        if (words[0] == "hwrite")
            return count(at_.fs->write(node, std::stoull(words[2]), std::as_bytes(std::span(words[3])),
                                       unionfs::UnionFs::WriteBy::privileged));
        if (words[0] == "hnlink") return std::to_string(at_.fs->attributes(node)->nlink);
        at_.fs->forget(node, 1);
        return "ok";
    }

    UnionPaths& at_;
    std::map<std::string, unionfs::NodeId> open_;
    std::map<std::string, ShownTimes> looks_;
};

}  // namespace lamina::test
