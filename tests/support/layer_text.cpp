#include "support/layer_text.h"

#include "store/tree_builder.h"

#include <map>
#include <sstream>

namespace lamina::test {

namespace {

using store::FileType;

constexpr std::uint32_t kDescribedMode = 0750;
const store::Timestamp kDescribedTime{1'700'000'000, 5};

store::LayerEntry entry_of(const std::string& word) {
    const auto split = word.find_first_of("=@~");
    if (split != std::string::npos) {
        const std::string path = word.substr(0, split);
        const std::string rest = word.substr(split + 1);
        if (word[split] == '=') return file(path, rest);
        return word[split] == '@' ? symlink(path, rest) : hardlink(path, rest);
    }
    if (const auto slash = word.rfind('/'); slash != std::string::npos) {
        const std::string rest = word.substr(slash + 1);
        if (rest.empty()) return folder(word.substr(0, slash), kDescribedMode);
        if (rest.front() == ':') {
            return folder(word.substr(0, slash), static_cast<std::uint32_t>(std::stoul(rest.substr(1), nullptr, 8)));
        }
    }
    if (word.ends_with('|')) return node(word.substr(0, word.size() - 1), FileType::fifo);
    return file(word);
}

// Contents are short words: their text is found again by hashing those that a table uses.
std::string content_text(const store::ImageTree& tree, store::TreeIno ino) {
    static const std::vector<std::string> words = {"new", "old", "one", "two", "three", "x", "y", "z", "a", "b", "c"};
    const auto parts = tree.parts(ino, 0, tree.attributes(ino).size_bytes);
    if (parts.empty()) return "";
    for (const std::string& word : words) {
        if (parts.size() == 1 && parts.front().part.chunk == chunk_of(word)) return word;
    }
    return "?";
}

class Lister {
public:
    explicit Lister(const store::ImageTree& tree) : tree_(tree) {}

    std::string run() {
        const auto root = tree_.attributes(store::kTreeRoot);
        if (root.mode != 0755) out_ << "/:" << std::oct << root.mode << std::dec << ' ';
        list(store::kTreeRoot, "");
        std::string text = out_.str();
        if (!text.empty()) text.pop_back();
        return text;
    }

private:
    void list(store::TreeIno directory, const std::string& prefix) {
        for (std::uint32_t i = 0; i < tree_.entry_count(directory); ++i) {
            const store::TreeName found = tree_.entry(directory, i);
            const std::string path = prefix + std::string(found.name);
            const auto data = tree_.attributes(found.ino);
            if (found.type != FileType::directory) {
                show(path, found.ino, data);
                continue;
            }
            const bool is_undescribed = data.mode == 0755 && data.mtime == store::Timestamp{};
            out_ << path << '/';
            if (is_undescribed) out_ << '!';
            if (!is_undescribed && data.mode != kDescribedMode) out_ << ':' << std::oct << data.mode << std::dec;
            out_ << ' ';
            list(found.ino, path + "/");
        }
    }
    void show(const std::string& path, store::TreeIno ino, const store::TreeAttributes& data) {
        const auto [first, is_first] = first_names_.try_emplace(ino, path);
        if (!is_first) {
            out_ << path << '~' << first->second << ' ';
            return;
        }
        out_ << path;
        if (data.type == FileType::regular) out_ << '=' << content_text(tree_, ino);
        if (data.type == FileType::symlink) out_ << '@' << tree_.link_target(ino);
        if (data.type == FileType::fifo) out_ << '|';
        if (data.nlink > 1) out_ << '*' << data.nlink;
        out_ << ' ';
    }

    const store::ImageTree& tree_;
    std::ostringstream out_;
    std::map<store::TreeIno, std::string> first_names_;
};

}  // namespace

Layer layer_of(std::string_view text) {
    std::istringstream words{std::string(text)};
    Layer layer;
    for (std::string word; words >> word;) {
        layer.push_back(entry_of(word));
        layer.back().metadata.mtime = kDescribedTime;
    }
    return layer;
}

std::string text_of(const store::ImageTree& tree) {
    return Lister(tree).run();
}

std::shared_ptr<const store::ImageTree> built_tree(const std::vector<Layer>& layers, const std::string& folder) {
    const store::BuiltTree built = store::build_tree(recipes(layers), folder, {});
    return store::ImageTree::open(folder + "/" + built.digest.digest.hex(), built.digest);
}

}  // namespace lamina::test
