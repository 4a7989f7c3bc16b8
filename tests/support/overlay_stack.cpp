#include "support/overlay_stack.h"

#include "store/digest.h"
#include "store/file.h"
#include "support/catch.h"
#include "support/temp_dir.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <sstream>

namespace lamina::test {

namespace {

constexpr const char* kOpaque = "trusted.overlay.opaque";

bool lstat_of(const std::string& path, struct stat& st) {
    return ::lstat(path.c_str(), &st) == 0;
}
bool is_folder(const std::string& path) {
    struct stat st {};
    return lstat_of(path, st) && S_ISDIR(st.st_mode);
}
std::string parent_of(const std::string& path) {
    const auto slash = path.find_last_of('/');
    return slash == std::string::npos ? "" : path.substr(0, slash);
}
std::string leaf_of(const std::string& path) {
    return path.substr(path.find_last_of('/') + 1);
}
std::string joined(const std::string& parent, const std::string& name) {
    return parent.empty() ? name : parent + "/" + name;
}
bool is_below(const std::string& path, const std::string& folder) {
    return path.starts_with(folder + "/");
}
void make(const std::string& path, mode_t mode) {
    REQUIRE(::mkdir(path.c_str(), 0755) == 0);
    REQUIRE(::chmod(path.c_str(), mode) == 0);
}

class FolderLister {
public:
    explicit FolderLister(const std::string& root) { count(root), list(root, ""); }
    std::string text() const {
        std::string out = out_.str();
        if (!out.empty()) out.pop_back();
        return out;
    }

private:
    void count(const std::string& folder) {
        for (const std::string& name : store::list_folder(folder)) {
            struct stat st {};
            if (!lstat_of(folder + "/" + name, st)) continue;  // See list().
            if (S_ISDIR(st.st_mode)) {
                count(folder + "/" + name);
            } else {
                ++names_[st.st_ino];
            }
        }
    }
    void list(const std::string& folder, const std::string& prefix) {
        for (const std::string& name : store::list_folder(folder)) {
            const std::string full = folder + "/" + name;
            struct stat st {};
            // In a directory that only one layer has, overlayfs lists whiteouts, but there is nothing behind them.
            if (!lstat_of(full, st)) continue;
            if (!S_ISDIR(st.st_mode)) {
                show(full, prefix + name, st);
                continue;
            }
            const unsigned mode = st.st_mode & 07777;
            out_ << prefix << name << '/';
            if (mode == 0755) out_ << '!';
            if (mode != 0755 && mode != 0750) out_ << ':' << std::oct << mode << std::dec;
            out_ << ' ';
            list(full, prefix + name + "/");
        }
    }
    void show(const std::string& full, const std::string& path, const struct stat& st) {
        const auto [first, is_first] = first_.try_emplace(st.st_ino, path);
        if (!is_first) {
            out_ << path << '~' << first->second << ' ';
            return;
        }
        out_ << path;
        if (S_ISREG(st.st_mode)) {
            const auto data = store::read_file(full, 4096);
            out_ << '=' << std::string_view(reinterpret_cast<const char*>(data.data()), data.size());
        } else {
            char target[256] = {};
            REQUIRE(::readlink(full.c_str(), target, sizeof target - 1) > 0);
            out_ << '@' << target;
        }
        if (names_[st.st_ino] > 1) out_ << '*' << names_[st.st_ino];
        out_ << ' ';
    }

    std::ostringstream out_;
    std::map<ino_t, int> names_;
    std::map<ino_t, std::string> first_;
};

}  // namespace

bool OverlayStack::is_possible() {
    const TempDir folder;
    OverlayStack probe(folder.path());
    const std::string options = "lowerdir=" + (folder / "empty") + ":" + (folder / "empty2");
    if (::mount("overlay", (folder / "merged").c_str(), "overlay", MS_RDONLY, options.c_str()) != 0) return false;
    return ::umount2((folder / "merged").c_str(), MNT_DETACH) == 0;
}

OverlayStack::OverlayStack(const std::string& folder) : folder_(folder) {
    for (const char* name : {"/empty", "/empty2", "/merged"}) store::make_folder(folder_ + name);
}

OverlayStack::~OverlayStack() {
    if (is_mounted_) ::umount2((folder_ + "/merged").c_str(), MNT_DETACH);
}

void OverlayStack::begin_layer() {
    layer_ = folder_ + "/layer" + std::to_string(layer_count_++);
    make(layer_, 0755);
    marks_.clear();
    made_.clear();
}

// Makes the directory in this layer's folder, and those above it. False: something else is there.
bool OverlayStack::is_made(const std::string& path) {
    if (path.empty() || is_folder(own(path))) return true;
    struct stat st {};
    if (!is_made(parent_of(path)) || lstat_of(own(path), st)) return false;
    make(own(path), 0755);
    made_.push_back(path);
    return true;
}

bool OverlayStack::add(const std::string& word) {
    const auto split = word.find_first_of("=@~:");
    std::string path = word.substr(0, split);
    const std::string rest = split == std::string::npos ? "" : word.substr(split + 1);
    const char kind = split == std::string::npos ? (path.ends_with('/') ? '/' : '.') : word[split];
    if (path.ends_with('/')) path.pop_back();
    for (std::string above = parent_of(path); !above.empty(); above = parent_of(above)) {
        struct stat st {};
        if (lstat_of(own(above), st) && !S_ISDIR(st.st_mode)) return false;
    }
    if (kind == '.') {
        marks_.push_back(path);
        return true;
    }
    struct stat target {};
    if (kind == '~' && (rest == path || !lstat_of(own(rest), target) || S_ISDIR(target.st_mode))) return false;
    REQUIRE(is_made(parent_of(path)));
    std::erase(made_, path);
    if (kind == '/' || kind == ':') {
        const auto mode = static_cast<mode_t>(kind == '/' ? 0750 : std::stoul(rest, nullptr, 8));
        if (!is_folder(own(path))) store::remove_file(own(path));
        if (!is_folder(own(path))) make(own(path), mode);
        REQUIRE(::chmod(own(path).c_str(), mode) == 0);
        return true;
    }
    std::erase_if(made_, [&](const std::string& made) { return is_below(made, path); });
    std::erase_if(marks_, [&](const std::string& mark) { return is_below(mark, path); });
    const std::string linked = own(".link");  // The target may lie in the directory that the link replaces.
    if (kind == '~') REQUIRE(::link(own(rest).c_str(), linked.c_str()) == 0);
    store::remove_tree(own(path));
    if (kind == '~') REQUIRE(::rename(linked.c_str(), own(path).c_str()) == 0);
    if (kind == '=') store::File::create(own(path)).append(store::as_bytes(rest));
    if (kind == '@') REQUIRE(::symlink(rest.c_str(), own(path).c_str()) == 0);
    return true;
}

bool OverlayStack::apply_whiteout(const std::string& parent, const std::string& name) {
    const std::string path = joined(parent, name);
    struct stat st {};
    if (lstat_of(own(path), st)) {
        if (S_ISDIR(st.st_mode)) return ::setxattr(own(path).c_str(), kOpaque, "y", 1, 0) == 0;
        return true;
    }
    return ::mknod(own(path).c_str(), S_IFCHR, makedev(0, 0)) == 0;
}

bool OverlayStack::finish_layer() {
    mount_stack();
    std::sort(marks_.begin(), marks_.end(), [](const std::string& a, const std::string& b) {
        return std::count(a.begin(), a.end(), '/') < std::count(b.begin(), b.end(), '/');
    });
    bool is_good = true;
    for (const std::string& mark : marks_) is_good = apply_mark(parent_of(mark), leaf_of(mark)) && is_good;
    std::sort(made_.begin(), made_.end());
    for (const std::string& path : made_) is_good = describe_made(path) && is_good;
    layers_.push_back(layer_);
    mount_stack();
    return is_good;
}

bool OverlayStack::has_mark(const std::string& parent, const std::string& name) const {
    return std::find(marks_.begin(), marks_.end(), joined(parent, name)) != marks_.end();
}

// Whether a mark of this layer removes what lies at the path below.
bool OverlayStack::is_removed(const std::string& path) const {
    for (std::string at = path; !at.empty(); at = parent_of(at)) {
        if (has_mark(parent_of(at), ".wh." + leaf_of(at)) || has_mark(parent_of(at), ".wh..wh..opq")) return true;
    }
    return false;
}

bool OverlayStack::apply_mark(const std::string& parent, const std::string& name) {
    if (!parent.empty() && !is_folder(own(parent))) {
        if (is_removed(parent)) return true;
        for (std::string above = parent; !above.empty(); above = parent_of(above)) {
            struct stat st {};
            const bool is_below_something = lstat_of(folder_ + "/merged/" + above, st) && !S_ISDIR(st.st_mode);
            if (!is_folder(own(above)) && is_below_something) return false;
        }
        if (!is_folder(folder_ + "/merged/" + parent)) return true;
        REQUIRE(is_made(parent));
    }
    if (name == ".wh..wh..opq") return apply_opaque(parent);
    return apply_whiteout(parent, name.substr(4));
}

bool OverlayStack::apply_opaque(const std::string& path) {
    if (path.empty()) {  // An opaque root has no form in overlayfs: what is below is not stacked at all.
        layers_.clear();
        return true;
    }
    return ::setxattr(own(path).c_str(), kOpaque, "y", 1, 0) == 0;
}

// A directory that no entry describes has the attributes of the one below, unless that one is removed.
bool OverlayStack::describe_made(const std::string& path) {
    struct stat below {};
    if (!is_folder(own(path)) || is_removed(path)) return true;
    if (!lstat_of(folder_ + "/merged/" + path, below)) return true;
    if (!S_ISDIR(below.st_mode)) return false;
    return ::chmod(own(path).c_str(), below.st_mode & 07777) == 0;
}

void OverlayStack::mount_stack() {
    const std::string merged = folder_ + "/merged";
    if (is_mounted_) REQUIRE(::umount2(merged.c_str(), 0) == 0);
    is_mounted_ = false;
    std::string options = "lowerdir=";
    for (auto layer = layers_.rbegin(); layer != layers_.rend(); ++layer) options += *layer + ":";
    options += folder_ + "/empty:" + folder_ + "/empty2";
    REQUIRE(::mount("overlay", merged.c_str(), "overlay", MS_RDONLY, options.c_str()) == 0);
    is_mounted_ = true;
}

std::string OverlayStack::text() const {
    return FolderLister(folder_ + "/merged").text();
}

}  // namespace lamina::test
