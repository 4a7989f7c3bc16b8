#include "store/image_paths.h"

#include "store/error.h"
#include "store/printable.h"

#include <string>
#include <vector>

namespace lamina::store {

namespace {

constexpr std::size_t kMaxPathBytes = 4096;
constexpr int kMaxLinks = 40;

class Walk {
public:
    Walk(const ImageTree& tree, std::string_view path) : tree_(tree), path_(path) { push(path); }

    TreeIno run(bool follows_last) {
        while (!left_.empty()) {
            const std::string name = std::move(left_.back());
            left_.pop_back();
            step(name, follows_last || !left_.empty());
        }
        return at_;
    }

private:
    [[noreturn]] void fail(Errc code, std::string_view why) const {
        throw Error(code, quote(path_) + ": " + std::string(why));
    }

    /// Puts the components of `path` before what is left.
    void push(std::string_view path) {
        if (path.size() > kMaxPathBytes) fail(Errc::malformed, "longer than 4096 bytes");
        std::vector<std::string> components;
        while (!path.empty()) {
            const auto slash = path.find('/');
            const std::string_view component = path.substr(0, slash);
            path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
            const bool must_be_directory = slash != std::string_view::npos && path.empty();
            if (!component.empty()) components.emplace_back(component);
            if (must_be_directory) components.emplace_back(".");
        }
        left_.insert(left_.end(), components.rbegin(), components.rend());
    }

    void step(const std::string& name, bool follows) {
        if (tree_.attributes(at_).type != FileType::directory) fail(Errc::malformed, "not a directory on the way");
        if (name == ".") return;
        if (name == "..") {
            at_ = tree_.parent(at_);
            return;
        }
        const auto found = tree_.lookup(at_, name);
        if (!found) fail(Errc::not_found, "no such file in the image");
        if (found->type != FileType::symlink || !follows) {
            at_ = found->ino;
            return;
        }
        if (++links_ > kMaxLinks) fail(Errc::malformed, "too many symbolic links");
        const std::string_view target = tree_.link_target(found->ino);
        if (target.starts_with('/')) at_ = kTreeRoot;
        push(target);
    }

    const ImageTree& tree_;
    const std::string_view path_;
    TreeIno at_ = kTreeRoot;
    std::vector<std::string> left_;  // Last first.
    int links_ = 0;
};

}  // namespace

TreeIno resolve_path(const ImageTree& tree, std::string_view path) {
    return Walk(tree, path).run(true);
}

TreeIno resolve_path_no_follow(const ImageTree& tree, std::string_view path) {
    return Walk(tree, path).run(false);
}

}  // namespace lamina::store
