#include "store/tree_text.h"

#include "store/printable.h"

#include <fmt/format.h>

#include <unordered_map>
#include <vector>

namespace lamina::store {

namespace {

constexpr std::size_t kWhole = 1 << 20;  // No text of a tree is as long.

class Describer {
public:
    Describer(const ImageTree& tree, const TreeTextOptions& options,
              const std::function<void(const std::string&)>& line)
        : tree_(tree), options_(options), line_(line) {}

    void run() {
        describe(kTreeRoot, "");
        push(kTreeRoot, "");
        while (!open_.empty()) {
            Folder& at = open_.back();
            if (at.next == at.count) {
                open_.pop_back();
                continue;
            }
            const TreeName found = tree_.entry(at.ino, at.next++);
            std::string path = at.path + std::string(found.name);
            if (describe(found.ino, path)) push(found.ino, std::move(path) + "/");
        }
    }

private:
    struct Folder {
        TreeIno ino;
        std::string path;  // With a slash at its end, but for the root.
        std::uint32_t next;
        std::uint32_t count;
    };

    void push(TreeIno ino, std::string path) { open_.push_back({ino, std::move(path), 0, tree_.entry_count(ino)}); }

    // True when it is a directory that was not described before.
    bool describe(TreeIno ino, const std::string& path) {
        const auto [first, is_first] = first_paths_.try_emplace(ino, path);
        if (!is_first) {
            line_(fmt::format("h {} = {}", quote(path, kWhole), quote(first->second, kWhole)));
            return false;
        }
        const TreeAttributes data = tree_.attributes(ino);
        constexpr std::string_view kLetters = "fdlcbps";
        std::string text = fmt::format(
            "{} {:04o} {}:{} {} {} {}.{:09} {}", kLetters[static_cast<std::size_t>(data.type)], data.mode, data.uid,
            data.gid, data.nlink, data.size_bytes, data.mtime.seconds, data.mtime.nanoseconds, quote(path, kWhole));
        if (data.type == FileType::symlink) text += " -> " + quote(tree_.link_target(ino), kWhole);
        if (data.type == FileType::char_device || data.type == FileType::block_device) {
            text += fmt::format(" device {}:{}", data.device_major, data.device_minor);
        }
        if (data.data_bytes != data.size_bytes && data.type == FileType::regular) {
            text += fmt::format(" data {}", data.data_bytes);
        }
        for (const auto& [name, value] : tree_.xattrs(ino)) {
            text += fmt::format(" xattr {}={}", quote(name, kWhole), quote(value, kWhole));
        }
        line_(text);
        if (options_.with_chunks && data.type == FileType::regular) describe_parts(ino, data.size_bytes);
        return data.type == FileType::directory;
    }

    void describe_parts(TreeIno ino, std::uint64_t size_bytes) {
        for (const auto& placed : tree_.parts(ino, 0, size_bytes)) {
            line_(fmt::format("  {} {} {}", placed.offset_bytes, placed.part.size_bytes,
                              placed.part.is_hole ? "hole" : placed.part.chunk.digest.text()));
        }
    }

    const ImageTree& tree_;
    const TreeTextOptions& options_;
    const std::function<void(const std::string&)>& line_;
    std::vector<Folder> open_;
    std::unordered_map<TreeIno, std::string> first_paths_;
};

}  // namespace

void describe_tree(const ImageTree& tree, const TreeTextOptions& options,
                   const std::function<void(const std::string&)>& line) {
    Describer(tree, options, line).run();
}

}  // namespace lamina::store
