#include "support/union_manifest.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>

namespace lamina::test {
namespace {

using unionfs::Attributes;

struct Shown {
    std::string path;
    Attributes attributes;
    std::string content;  ///< Of a file; the target of a symlink.
    std::map<std::string, std::string> xattrs;
};

/// Hidden below, or of the file system: not the union's.
bool is_shown(const std::string& xattr) {
    return xattr != "security.selinux" && !xattr.starts_with("trusted.overlay.");
}

std::string line_of(const Shown& shown, std::map<std::uint64_t, std::string>& first,
                    const UnionManifestOptions& options) {
    const Attributes& is = shown.attributes;
    std::ostringstream line;
    line << (shown.path.empty() ? "/" : shown.path) << ' ' << std::oct << is.mode << std::dec << ' ' << is.uid << ':'
         << is.gid;
    if (!S_ISDIR(is.mode)) {
        line << " links " << is.nlink << " size " << is.size_bytes;
        const auto [name, is_first] = first.try_emplace(is.shown_number(), shown.path);
        if (!is_first) line << " is " << name->second;
    }
    if (S_ISCHR(is.mode) || S_ISBLK(is.mode)) line << " device " << is.device;
    if (options.has_times) line << " mtime " << is.mtime.seconds << '.' << is.mtime.nanoseconds;
    if (options.has_numbers) line << " ino " << is.shown_number();
    if (!shown.content.empty())
        line << " content " << shown.content.substr(0, 64) << '#' << std::hash<std::string>()(shown.content);
    for (const auto& [name, value] : shown.xattrs) line << ' ' << name << '=' << value;
    return line.str();
}

class UnionWalk {
public:
    UnionWalk(UnionPaths& at, const UnionManifestOptions& options) : at_(at), options_(options) {}
    std::vector<std::string> lines() {
        walk("");
        return std::move(lines_);
    }

private:
    void walk(const std::string& path) {
        const auto node = at_.find(path);
        const Attributes attributes = at_.stat(path);
        Shown shown{path, attributes, "", {}};
        if (S_ISREG(attributes.mode)) shown.content = at_.read_node(node, 0, attributes.size_bytes + 1);
        if (S_ISLNK(attributes.mode)) shown.content = at_.fs->link_target(node).value_or("error");
        const std::string names = at_.fs->xattr_names(node).value_or("");
        for (std::size_t begin = 0; begin < names.size(); begin = names.find('\0', begin) + 1) {
            const std::string name = names.c_str() + begin;
            if (is_shown(name)) shown.xattrs[name] = at_.fs->xattr(node, name).value_or("error");
        }
        lines_.push_back(line_of(shown, first_, options_));
        if (!S_ISDIR(attributes.mode)) return;
        for (const std::string& name : at_.names(path)) walk(path + "/" + name);
    }

    UnionPaths& at_;
    const UnionManifestOptions options_;
    std::vector<std::string> lines_;
    std::map<std::uint64_t, std::string> first_;
};

class FolderWalk {
public:
    FolderWalk(std::string root, const UnionManifestOptions& options) : root_(std::move(root)), options_(options) {}
    std::vector<std::string> lines() {
        walk("");
        return std::move(lines_);
    }

private:
    static Attributes attributes_of(const struct stat& status) {
        return {.node = status.st_ino,
                .mode = status.st_mode,
                .uid = status.st_uid,
                .gid = status.st_gid,
                .nlink = static_cast<std::uint32_t>(status.st_nlink),
                .size_bytes = static_cast<std::uint64_t>(status.st_size),
                .device = status.st_rdev,
                .mtime = {.seconds = status.st_mtim.tv_sec,
                          .nanoseconds = static_cast<std::uint32_t>(status.st_mtim.tv_nsec)}};
    }
    void walk(const std::string& path) {
        const std::string full = root_ + path;
        struct stat status {};
        if (::lstat(full.c_str(), &status) != 0) {
            lines_.push_back(path + " error " + std::to_string(errno));
            return;
        }
        Shown shown{path, attributes_of(status), "", {}};
        if (S_ISREG(status.st_mode)) {
            std::ifstream file(full, std::ios::binary);
            shown.content.assign(std::istreambuf_iterator<char>(file), {});
        }
        if (S_ISLNK(status.st_mode)) {
            char target[4096];
            const auto size = ::readlink(full.c_str(), target, sizeof target);
            shown.content.assign(target, static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
        }
        add_xattrs(full, shown);
        lines_.push_back(line_of(shown, first_, options_));
        if (S_ISDIR(status.st_mode))
            for (const std::string& name : names_in(full)) walk(path + "/" + name);
    }
    static void add_xattrs(const std::string& full, Shown& shown) {
        char names[65536];
        char value[65536];
        const auto size = std::max<ssize_t>(::llistxattr(full.c_str(), names, sizeof names), 0);
        const std::string all(names, static_cast<std::size_t>(size));
        for (std::size_t begin = 0; begin < all.size(); begin = all.find('\0', begin) + 1) {
            const std::string name = all.c_str() + begin;
            const auto bytes = ::lgetxattr(full.c_str(), name.c_str(), value, sizeof value);
            if (is_shown(name) && bytes >= 0) shown.xattrs[name] = std::string(value, static_cast<std::size_t>(bytes));
        }
    }
    static std::set<std::string> names_in(const std::string& folder) {
        std::set<std::string> names;
        DIR* const listing = ::opendir(folder.c_str());
        if (!listing) return {"cannot be listed"};
        while (const dirent* const entry = ::readdir(listing)) names.insert(entry->d_name);
        ::closedir(listing);
        names.erase(".");
        names.erase("..");
        return names;
    }

    const std::string root_;
    const UnionManifestOptions options_;
    std::vector<std::string> lines_;
    std::map<std::uint64_t, std::string> first_;
};

}  // namespace

std::vector<std::string> union_manifest(UnionPaths& at, UnionManifestOptions options) {
    return UnionWalk(at, options).lines();
}

std::vector<std::string> folder_manifest(const std::string& folder, UnionManifestOptions options) {
    return FolderWalk(folder, options).lines();
}

std::string difference(const std::vector<std::string>& left, const std::vector<std::string>& right) {
    const std::multiset<std::string> in_left(left.begin(), left.end());
    const std::multiset<std::string> in_right(right.begin(), right.end());
    std::string text;
    for (const std::string& line : left)
        if (!in_right.contains(line)) text += "- " + line + "\n";
    for (const std::string& line : right)
        if (!in_left.contains(line)) text += "+ " + line + "\n";
    return text;
}

}  // namespace lamina::test
