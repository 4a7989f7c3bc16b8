#include "e2e/differential/snapshot.h"

#include "e2e/differential/calls.h"
#include "store/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <memory>

namespace lamina::test::differential {
namespace {

constexpr std::uint64_t kBlockBytes = 4096;
constexpr std::uint64_t kWholeBytes = 4 << 20;  // Larger files are read where they say that they have data.

bool is_same(const statx_timestamp& one, const statx_timestamp& other) {
    return one.tv_sec == other.tv_sec && one.tv_nsec == other.tv_nsec;
}

std::string text_of(const statx_timestamp& time) {
    return std::to_string(time.tv_sec) + "." + std::to_string(time.tv_nsec);
}

class Walk {
public:
    Walk(Snapshot& snapshot, bool has_content) : snapshot_(snapshot), has_content_(has_content) {}

    void directory(int fd, const std::string& path) {
        const std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(::fcntl(fd, F_DUPFD_CLOEXEC, 0)), ::closedir);
        if (!stream) return complain(path, "cannot be listed");
        ::rewinddir(stream.get());
        while (const dirent* const entry = ::readdir(stream.get())) {
            const std::string name = entry->d_name;
            if (name == "." || name == "..") continue;
            const std::string below = path.empty() ? name : path + "/" + name;
            if (snapshot_.contains(below)) complain(below, "is listed twice");
            node(fd, name, below);
            const auto& seen = snapshot_[below];
            if (seen.attributes.stx_ino != entry->d_ino) complain(below, "d_ino is another than st_ino");
            if (entry->d_type != IFTODT(seen.attributes.stx_mode))
                complain(below, "d_type is " + std::to_string(entry->d_type));
        }
    }
    void node(int parent, const std::string& name, const std::string& path) {
        SeenNode& seen = snapshot_[path];
        if (::statx(parent, name.c_str(), AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &seen.attributes) != 0)
            return complain(path, std::string("stat: ") + std::strerror(errno));
        const std::uint32_t type = seen.attributes.stx_mode & S_IFMT;
        const std::string by_fd = parent == AT_FDCWD ? name : "/proc/self/fd/" + std::to_string(parent) + "/" + name;
        if (has_content_) read_xattrs(by_fd, seen);
        if (type == S_IFLNK) read_target(parent, name, seen);
        if (type == S_IFREG && has_content_) read_content(parent, name, path);
        if (type != S_IFDIR) return;
        const store::UniqueFd fd(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
        if (!fd) return complain(path, "cannot be opened");
        directory(fd.get(), path);
    }

private:
    void complain(const std::string& path, const std::string& what) { snapshot_[path].problem = what; }

    static void read_target(int parent, const std::string& name, SeenNode& seen) {
        std::array<char, 4096> room{};
        const ssize_t got = ::readlinkat(parent, name.c_str(), room.data(), room.size());
        if (got >= 0) seen.target.assign(room.data(), static_cast<std::size_t>(got));
    }
    static void read_xattrs(const std::string& path, SeenNode& seen) {
        std::array<char, 4096> names{};
        const ssize_t got = ::llistxattr(path.c_str(), names.data(), names.size());
        for (ssize_t at = 0; at < got;) {
            const std::string name = names.data() + at;
            at += static_cast<ssize_t>(name.size()) + 1;
            std::array<char, 4096> value{};
            const ssize_t size = ::lgetxattr(path.c_str(), name.c_str(), value.data(), value.size());
            seen.xattrs[name] = size < 0 ? answer_of(size) : std::string(value.data(), static_cast<std::size_t>(size));
        }
    }
    void read_content(int parent, const std::string& name, const std::string& path) {
        SeenNode& seen = snapshot_[path];
        const store::UniqueFd fd(::openat(parent, name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
        if (!fd) return complain(path, "cannot be opened");
        const std::uint64_t size = seen.attributes.stx_size;
        std::uint64_t at = 0;
        while (at < size) {
            const off_t data = ::lseek(fd.get(), static_cast<off_t>(at), SEEK_DATA);
            const std::uint64_t data_at = data < 0 ? size : static_cast<std::uint64_t>(data);
            if (data_at > at) seen.holes.emplace_back(at, data_at);
            if (data < 0) break;
            const off_t hole = ::lseek(fd.get(), data, SEEK_HOLE);
            if (hole <= data) return complain(path, "SEEK_HOLE does not move on");
            at = static_cast<std::uint64_t>(hole);
        }
        std::uint64_t digest = 1;
        std::uint64_t from = 0;
        for (const auto& [begin, end] : seen.holes) {
            add_digest(fd.get(), from, begin, digest);
            if (size <= kWholeBytes && add_digest(fd.get(), begin, end, digest)) complain(path, "a hole has bytes");
            from = end;
        }
        add_digest(fd.get(), from, size, digest);
        seen.content = std::to_string(digest);
    }
    /// Adds what is not zero in a range, with its place; returns whether there was anything.
    static bool add_digest(int fd, std::uint64_t begin, std::uint64_t end, std::uint64_t& digest) {
        bool has_any = false;
        std::array<char, kBlockBytes> room{};
        for (std::uint64_t at = begin; at < end;) {
            const std::uint64_t next = std::min(end, (at / kBlockBytes + 1) * kBlockBytes);
            const ssize_t got = ::pread(fd, room.data(), next - at, static_cast<off_t>(at));
            if (got != static_cast<ssize_t>(next - at)) digest = digest * 31 + at + 7;
            for (std::uint64_t i = 0; i < next - at; ++i) {
                if (room[i] == '\0') continue;
                has_any = true;
                digest = (digest ^ ((at + i) * 256 + static_cast<unsigned char>(room[i]))) * 0x9E3779B97F4A7C15;
                digest ^= digest >> 29;
            }
            at = next;
        }
        return has_any;
    }

    Snapshot& snapshot_;
    const bool has_content_;
};

/// Compares one inode under one name; fields as texts, so that a difference can be shown.
class Comparing {
public:
    Comparing(const std::string& path, const SeenNode& reference, const SeenNode& ours)
        : path_(path), reference_(reference), ours_(ours) {}
    std::string found;

    template <class Value>
    void same(const char* what, const Value& reference, const Value& ours) {
        if (!found.empty() || reference == ours) return;
        found = path_ + ": " + what + " is ";
        if constexpr (std::is_arithmetic_v<Value>)
            found += std::to_string(reference) + " there, " + std::to_string(ours) + " here";
        else
            found += reference + " there, " + ours + " here";
    }
    bool is_other_view = false;
    void attributes() {
        const struct statx& there = reference_.attributes;
        const struct statx& here = ours_.attributes;
        const bool is_folder = (there.stx_mode & S_IFMT) == S_IFDIR;
        if (!is_other_view) same("contradiction", reference_.problem, ours_.problem);
        same("mode", there.stx_mode, here.stx_mode);
        same("uid", there.stx_uid, here.stx_uid);
        same("gid", there.stx_gid, here.stx_gid);
        if (!is_other_view || !is_folder) same("nlink", there.stx_nlink, here.stx_nlink);
        if (!is_folder) same("size", there.stx_size, here.stx_size);
        same("rdev", there.stx_rdev_major * 1'000'000 + there.stx_rdev_minor,
             here.stx_rdev_major * 1'000'000 + here.stx_rdev_minor);
        same("target", reference_.target, ours_.target);
        same("content", reference_.content, ours_.content);
        same("xattrs", xattr_text(reference_), xattr_text(ours_));
    }
    /// A whole block that is a hole there is one here.
    void holes() {
        for (const auto& [begin, end] : reference_.holes) {
            const std::uint64_t from = (begin + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
            const std::uint64_t to = end / kBlockBytes * kBlockBytes;
            if (from >= to) continue;
            const bool is_hole = std::ranges::any_of(
                ours_.holes, [&](const auto& hole) { return hole.first <= from && hole.second >= to; });
            if (!is_hole) same("hole", std::to_string(from) + "-" + std::to_string(to), std::string("none"));
        }
    }
    void times(const Beginning& beginning, std::int64_t now) {
        const auto shown = [&](const statx_timestamp& time) {
            const bool is_now = time.tv_sec >= beginning.second - 1 && time.tv_sec <= now + 1;
            return is_now ? std::string("now") : text_of(time);
        };
        same("mtime", shown(reference_.attributes.stx_mtime), shown(ours_.attributes.stx_mtime));
        if (is_other_view) return;
        same("atime", shown(reference_.attributes.stx_atime), shown(ours_.attributes.stx_atime));
        const auto is_changed = [](const SeenNode& node, const std::map<std::uint64_t, statx_timestamp>& ctimes) {
            const auto old = ctimes.find(node.attributes.stx_ino);
            return std::string(old == ctimes.end() || !is_same(old->second, node.attributes.stx_ctime) ? "new" : "old");
        };
        const std::string there = is_changed(reference_, beginning.reference_ctimes);
        if (beginning.has_change_times || there == "new") same("ctime", there, is_changed(ours_, beginning.our_ctimes));
    }

private:
    static std::string xattr_text(const SeenNode& node) {
        std::string text;
        for (const auto& [name, value] : node.xattrs) text += name + "=" + digest_of(value) + " ";
        return text.empty() ? "none" : text;
    }

    const std::string& path_;
    const SeenNode& reference_;
    const SeenNode& ours_;
};

std::string name_difference(const Snapshot& reference, const Snapshot& ours) {
    for (const auto& [path, node] : reference)
        if (!ours.contains(path)) return path + ": is missing here";
    for (const auto& [path, node] : ours)
        if (!reference.contains(path)) return path + ": is not there";
    return {};
}

/// Names of one inode are names of one inode on both sides.
std::string group_difference(const Snapshot& reference, const Snapshot& ours, bool is_other_view) {
    std::map<std::uint64_t, std::uint64_t> numbers;
    std::map<std::uint64_t, std::uint64_t> back;
    for (const auto& [path, node] : reference) {
        const std::uint64_t there = node.attributes.stx_ino;
        const std::uint64_t here = ours.at(path).attributes.stx_ino;
        if (numbers.try_emplace(there, here).first->second != here ||
            back.try_emplace(here, there).first->second != there)
            return path + ": is linked to others than there";
        const struct statx& root = ours.at("").attributes;
        const struct statx& own = ours.at(path).attributes;
        if (is_other_view) continue;
        if (own.stx_dev_major != root.stx_dev_major || own.stx_dev_minor != root.stx_dev_minor)
            return path + ": lies on a device of its own";
    }
    return {};
}

struct Pair {
    const SeenNode* reference = nullptr;
    const SeenNode* ours = nullptr;
};

std::map<std::uint64_t, Pair> by_reference_number(const Moment& moment) {
    std::map<std::uint64_t, Pair> pairs;
    for (const auto& [path, node] : moment.reference)
        if (const auto ours = moment.ours.find(path); ours != moment.ours.end())
            pairs[node.attributes.stx_ino] = {&node, &ours->second};
    return pairs;
}

constexpr const char* kNoTime = " no time";

std::string moved_times(const struct statx& before, const struct statx& after) {
    std::string moved;
    if (!is_same(before.stx_mtime, after.stx_mtime)) moved += " mtime";
    if (!is_same(before.stx_ctime, after.stx_ctime)) moved += " ctime";
    if (!is_same(before.stx_atime, after.stx_atime)) moved += " atime";
    return moved.empty() ? kNoTime : moved;
}

}  // namespace

Snapshot take_snapshot(const std::string& folder, bool has_content) {
    Snapshot snapshot;
    Walk(snapshot, has_content).node(AT_FDCWD, folder, "");
    return snapshot;
}

Beginning beginning_of(const Snapshot& reference, const Snapshot& ours) {
    Beginning beginning;
    for (const auto& [path, node] : reference)
        beginning.reference_ctimes[node.attributes.stx_ino] = node.attributes.stx_ctime;
    for (const auto& [path, node] : ours) beginning.our_ctimes[node.attributes.stx_ino] = node.attributes.stx_ctime;
    beginning.second = std::time(nullptr);
    return beginning;
}

namespace {

std::string compare(const Snapshot& reference, const Snapshot& ours, const Beginning& beginning, bool is_other_view) {
    if (const auto names = name_difference(reference, ours); !names.empty()) return names;
    const std::int64_t now = std::time(nullptr);
    for (const auto& [path, node] : reference) {
        Comparing comparing(path, node, ours.at(path));
        comparing.is_other_view = is_other_view;
        comparing.attributes();
        if (beginning.has_holes) comparing.holes();
        comparing.times(beginning, now);
        if (!comparing.found.empty()) return comparing.found;
    }
    return group_difference(reference, ours, is_other_view);
}

}  // namespace

std::string difference(const Snapshot& reference, const Snapshot& ours, const Beginning& beginning) {
    return compare(reference, ours, beginning, false);
}

std::string other_difference(const Snapshot& reference, const Snapshot& other, const Beginning& beginning) {
    return compare(reference, other, beginning, true);
}

std::string remount_difference(const Snapshot& before, const Snapshot& after, const Beginning& beginning) {
    if (const auto names = name_difference(before, after); !names.empty()) return names;
    for (const auto& [path, node] : before) {
        const SeenNode& then = after.at(path);
        Comparing comparing(path, node, then);
        comparing.attributes();
        comparing.same("st_ino", node.attributes.stx_ino, then.attributes.stx_ino);
        comparing.same("mtime", text_of(node.attributes.stx_mtime), text_of(then.attributes.stx_mtime));
        comparing.same("atime", text_of(node.attributes.stx_atime), text_of(then.attributes.stx_atime));
        if (beginning.has_change_times) {
            comparing.same("ctime", text_of(node.attributes.stx_ctime), text_of(then.attributes.stx_ctime));
            comparing.same("birth time", text_of(node.attributes.stx_btime), text_of(then.attributes.stx_btime));
        }
        if (beginning.has_holes) comparing.holes();
        if (!comparing.found.empty()) return comparing.found;
    }
    return {};
}

std::string change_difference(const Moment& before, const Moment& after, const Beginning& beginning) {
    if (const auto names = name_difference(after.reference, after.ours); !names.empty()) return names;
    const auto old_pairs = by_reference_number(before);
    for (const auto& [number, pair] : by_reference_number(after)) {
        const auto old = old_pairs.find(number);
        if (old == old_pairs.end()) continue;
        const auto path = std::ranges::find_if(after.reference, [&](const auto& entry) {
                              return &entry.second == pair.reference;
                          })->first;
        if (old->second.ours->attributes.stx_ino != pair.ours->attributes.stx_ino)
            return path + ": another st_ino here";
        Comparing comparing(path, *pair.reference, *pair.ours);
        comparing.attributes();
        std::string there = moved_times(old->second.reference->attributes, pair.reference->attributes);
        const std::string here = moved_times(old->second.ours->attributes, pair.ours->attributes);
        if (!beginning.has_change_times && there == kNoTime && here == " ctime") there = here;
        comparing.same("moved", there, here);
        if (!comparing.found.empty()) return comparing.found;
    }
    return {};
}

}  // namespace lamina::test::differential
