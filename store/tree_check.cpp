#include "store/error.h"
#include "store/mapped_tree.h"

#include <algorithm>

// Checks a whole tree. All blocks are hashed; then the tree is walked in the order in which the builder
// numbers it, so that each table must be used exactly once from its start to its end: what is out of that order,
// shared, or unused is a problem. A directory is visited only when the walk gives it its number, so the walk ends
// whatever the file says.

namespace lamina::store {

using namespace tree_format;

namespace {
constexpr std::size_t kMaxProblems = 100;
}  // namespace

class TreeCheck {
public:
    explicit TreeCheck(const MappedTree& tree) : tree_(tree) {}
    std::vector<std::string> run();

private:
    struct Visit {
        std::uint32_t ino;
        std::uint32_t parent;
    };

    void report(std::uint64_t ino, const std::string& what);
    void check_blocks();
    void walk();
    void visit(Visit at, std::vector<Visit>& more);
    void check_name(std::uint64_t directory, std::string_view name, std::string_view before);
    void check_new_inode(std::uint32_t ino);
    void check_by_type(std::uint32_t ino, const Inode& node);
    void check_regular(std::uint32_t ino, const Inode& node);
    void check_xattrs(std::uint32_t ino, const Inode& node);
    void check_string(std::uint64_t ino, std::uint64_t offset_bytes, std::uint64_t size_bytes);
    void check_totals();

    const MappedTree& tree_;
    std::vector<std::string> problems_;
    std::vector<std::uint32_t> names_seen_;  // Of each inode that is no directory.
    std::uint64_t inodes_ = 0;               // How much of each table was met so far.
    std::uint64_t dirents_ = 0;
    std::uint64_t parts_ = 0;
    std::uint64_t part_ends_ = 0;
    std::uint64_t xattr_sets_ = 0;
    std::uint64_t xattrs_ = 0;
    std::uint64_t string_bytes_ = 0;
    std::uint64_t logical_bytes_ = 0;
};

std::vector<std::string> MappedTree::check() const {
    return TreeCheck(*this).run();
}

std::vector<std::string> TreeCheck::run() {
    check_blocks();
    if (!problems_.empty()) return std::move(problems_);
    try {
        walk();
        check_totals();
    } catch (const Error& error) {  // The walk cannot go on from there; what it found is the answer.
        problems_.emplace_back(error.what());
    }
    return std::move(problems_);
}

void TreeCheck::report(std::uint64_t ino, const std::string& what) {
    const std::string line = "image tree " + tree_.path_ + ": inode " + std::to_string(ino) + ": " + what;
    if (problems_.size() >= kMaxProblems) throw Error(Errc::corrupt, line + "; and more");
    problems_.push_back(line);
}

void TreeCheck::check_blocks() {
    for (std::uint64_t block = 0; block < tree_.header_.block_count; ++block) {
        try {
            tree_.check_block(block);
        } catch (const Error& error) {  // One line for each bad block.
            problems_.emplace_back(error.what());
            if (problems_.size() >= kMaxProblems) return;
        }
    }
}

void TreeCheck::walk() {
    names_seen_.resize(tree_.inode_count() + 1);
    std::vector<Visit> pending{{1, 1}};
    check_new_inode(1);
    if (tree_.inode(1).mode >> 12 != static_cast<int>(FileType::directory)) {
        throw Error(Errc::corrupt, "image tree " + tree_.path_ + ": the root is not a directory");
    }
    while (!pending.empty()) {
        const Visit next = pending.back();
        pending.pop_back();
        visit(next, pending);
    }
}

void TreeCheck::visit(Visit at, std::vector<Visit>& more) {
    const Inode node = tree_.inode(at.ino);
    if (node.extra != at.parent) report(at.ino, "wrong parent");
    if (node.first != (node.count == 0 ? 0 : dirents_)) {
        return report(at.ino, "its names are not where they belong");
    }
    dirents_ += node.count;
    std::string_view before;
    std::uint32_t subdirectories = 0;
    const std::size_t first_new = more.size();
    for (std::uint64_t i = 0; i < node.count; ++i) {
        const auto raw = tree_.record<Dirent>(Table::dirents, node.first + i);
        const TreeName found = tree_.name_at(node, i);
        const auto ino = static_cast<std::uint32_t>(found.ino);
        const bool is_new = ino == inodes_ + 1;
        if (is_new) check_new_inode(ino);
        check_string(at.ino, raw.name, raw.name_bytes);
        check_name(at.ino, found.name, before);
        before = found.name;
        const Inode child = tree_.inode(ino);
        if (found.type != static_cast<FileType>(child.mode >> 12)) report(ino, "its name has another type");
        if (raw.reserved != 0) report(ino, "reserved bytes of its name are in use");
        ++names_seen_[ino];
        const bool is_directory = child.mode >> 12 == static_cast<int>(FileType::directory);
        if (!is_new && (ino > inodes_ || is_directory)) report(ino, "its number is out of order");
        if (!is_directory) continue;
        ++subdirectories;
        if (is_new) more.push_back({ino, at.ino});
    }
    std::reverse(more.begin() + static_cast<std::ptrdiff_t>(first_new), more.end());
    if (node.nlink != 2 + subdirectories) report(at.ino, "wrong link count");
}

void TreeCheck::check_name(std::uint64_t directory, std::string_view name, std::string_view before) {
    const bool is_possible = !name.empty() && name != "." && name != ".." && name.find('/') == std::string_view::npos &&
                             name.find('\0') == std::string_view::npos;
    if (!is_possible) report(directory, "holds an impossible name");
    if (name <= before) report(directory, "its names are not sorted");
}

void TreeCheck::check_string(std::uint64_t ino, std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    if (offset_bytes > string_bytes_) report(ino, "a string is not where it belongs");
    string_bytes_ = std::max(string_bytes_, offset_bytes + size_bytes);
}

void TreeCheck::check_new_inode(std::uint32_t ino) {
    inodes_ = ino;
    const Inode node = tree_.inode(ino);
    tree_.attributes(ino);  // Throws on what nobody could be shown.
    if (node.reserved != 0 || node.reserved_2 != 0) report(ino, "reserved bytes are in use");
    check_xattrs(ino, node);
    check_by_type(ino, node);
}

void TreeCheck::check_by_type(std::uint32_t ino, const Inode& node) {
    const auto type = static_cast<FileType>(node.mode >> 12);
    const bool has_size = type == FileType::regular || type == FileType::symlink;
    const bool has_data = type == FileType::regular || type == FileType::char_device || type == FileType::block_device;
    const bool has_count = type == FileType::regular || type == FileType::directory;
    const bool has_first = has_count || type == FileType::symlink;
    const bool is_clean = (has_size || node.size_bytes == 0) && (has_data || node.data == 0) &&
                          (has_count || (node.count == 0 && node.extra == 0)) && (has_first || node.first == 0);
    if (!is_clean) report(ino, "fields that its type does not have are in use");
    if (type == FileType::regular) check_regular(ino, node);
    if (type == FileType::symlink) {
        const std::string_view target = tree_.link_target(ino);
        if (target.find('\0') != std::string_view::npos) report(ino, "its link target has a zero byte");
        check_string(ino, node.first, node.size_bytes);
    }
}

void TreeCheck::check_regular(std::uint32_t ino, const Inode& node) {
    logical_bytes_ = node.size_bytes > ~logical_bytes_ ? ~std::uint64_t{0} : logical_bytes_ + node.size_bytes;
    const std::uint64_t ends = node.count > 1 ? node.count : 0;
    if (node.first != (node.count == 0 ? 0 : parts_) || node.extra != (ends == 0 ? 0 : part_ends_)) {
        return report(ino, "its parts are not where they belong");
    }
    parts_ += node.count;
    part_ends_ += ends;
    const auto parts = tree_.parts(ino, 0, node.size_bytes);
    std::uint64_t data_bytes = 0;
    for (const auto& placed : parts) data_bytes += placed.part.is_hole ? 0 : placed.part.size_bytes;
    if (parts.size() != node.count) report(ino, "parts that add nothing to its content");
    if (data_bytes != node.data) report(ino, "wrong number of data bytes");
    if (ends == 0) return;
    const auto last = tree_.record<PartEnd>(Table::part_ends, node.extra + std::uint64_t{node.count} - 1);
    if (last.offset_bytes != node.size_bytes) report(ino, "its last part does not end where it does");
}

void TreeCheck::check_xattrs(std::uint32_t ino, const Inode& node) {
    if (node.xattr_set <= xattr_sets_) return;  // None, or one that another inode showed.
    if (node.xattr_set > xattr_sets_ + 1) return report(ino, "its xattr set is out of order");
    ++xattr_sets_;
    const auto set = tree_.record<XattrSet>(Table::xattr_sets, node.xattr_set - 1);
    if (set.first != xattrs_ || set.count == 0) return report(ino, "its xattrs are not where they belong");
    xattrs_ += set.count;
    const auto pairs = tree_.xattrs(ino);
    for (std::uint64_t i = 0; i < pairs.size(); ++i) {
        const auto raw = tree_.record<Xattr>(Table::xattrs, set.first + i);
        check_string(ino, raw.name, raw.name_bytes);
        check_string(ino, raw.value, raw.value_bytes);
        if (i > 0 && pairs[i].first <= pairs[i - 1].first) report(ino, "its xattrs are not sorted");
        if (pairs[i].first.find('\0') != std::string_view::npos) report(ino, "an xattr name has a zero byte");
    }
}

void TreeCheck::check_totals() {
    for (std::uint32_t ino = 1; ino <= inodes_; ++ino) {
        const Inode node = tree_.inode(ino);
        const bool is_directory = node.mode >> 12 == static_cast<int>(FileType::directory);
        if (!is_directory && node.nlink != names_seen_[ino]) report(ino, "wrong link count");
    }
    const bool is_all = inodes_ == tree_.inode_count() && dirents_ == tree_.count(Table::dirents) &&
                        parts_ == tree_.count(Table::parts) && part_ends_ == tree_.count(Table::part_ends) &&
                        xattr_sets_ == tree_.count(Table::xattr_sets) && xattrs_ == tree_.count(Table::xattrs) &&
                        string_bytes_ == tree_.count(Table::strings);
    if (!is_all) report(kTreeRoot, "the image does not reach every record of the file");
    if (logical_bytes_ != tree_.header_.logical_bytes) report(kTreeRoot, "wrong sum of file sizes");
}

}  // namespace lamina::store
