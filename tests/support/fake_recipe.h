#pragma once

#include "store/error.h"
#include "store/recipe.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace lamina::test {

/// A layer from a list of entries, without a tar; for tests of what is built from layers.
class FakeRecipe : public store::Recipe {
public:
    explicit FakeRecipe(std::vector<store::LayerEntry> entries) : entries_(std::move(entries)) {}

    store::DiffId diff_id() const override { return {store::Digest::of(store::as_bytes("fake"))}; }
    std::uint64_t tar_bytes() const override { return 0; }
    std::uint64_t entry_count() const override { return entries_.size(); }
    std::unique_ptr<Entries> entries() const override { return std::make_unique<List>(entries_); }
    std::vector<store::ChunkId> chunks() const override {
        std::vector<store::ChunkId> out;
        for (const auto& entry : entries_) {
            for (const auto& part : entry.content) {
                if (!part.is_hole) out.push_back(part.chunk);
            }
        }
        std::sort(out.begin(), out.end());
        out.erase(std::unique(out.begin(), out.end()), out.end());
        return out;
    }
    void write_tar(store::ChunkSource&, store::ByteSink&) const override {
        throw store::Error(store::Errc::unsupported, "a fake layer has no tar");
    }

private:
    class List : public Entries {
    public:
        explicit List(const std::vector<store::LayerEntry>& entries) : entries_(entries) {}
        std::optional<store::LayerEntry> next() override {
            if (at_ == entries_.size()) return std::nullopt;
            return entries_[at_++];
        }

    private:
        const std::vector<store::LayerEntry>& entries_;
        std::size_t at_ = 0;
    };
    std::vector<store::LayerEntry> entries_;
};

using Layer = std::vector<store::LayerEntry>;

inline std::vector<std::unique_ptr<store::Recipe>> recipes(const std::vector<Layer>& layers) {
    std::vector<std::unique_ptr<store::Recipe>> out;
    for (const Layer& layer : layers) out.push_back(std::make_unique<FakeRecipe>(layer));
    return out;
}

inline store::ChunkId chunk_of(std::string_view bytes) {
    return {store::Digest::of(store::as_bytes(bytes))};
}

/// An entry of a type, with the mode that the type commonly has.
inline store::LayerEntry node(std::string path, store::FileType type) {
    store::LayerEntry entry;
    entry.path = std::move(path);
    entry.metadata.type = type;
    entry.metadata.mode = type == store::FileType::directory ? 0755 : 0644;
    return entry;
}
inline store::LayerEntry folder(std::string path, std::uint32_t mode = 0755) {
    store::LayerEntry entry = node(std::move(path), store::FileType::directory);
    entry.metadata.mode = mode;
    return entry;
}
/// A file of one chunk that holds `content`; without content when that is empty.
inline store::LayerEntry file(std::string path, std::string_view content = "") {
    store::LayerEntry entry = node(std::move(path), store::FileType::regular);
    entry.size_bytes = content.size();
    if (!content.empty()) entry.content = {{.chunk = chunk_of(content), .size_bytes = content.size()}};
    return entry;
}
inline store::LayerEntry symlink(std::string path, std::string target) {
    store::LayerEntry entry = node(std::move(path), store::FileType::symlink);
    entry.metadata.mode = 0777;
    entry.metadata.link_target = std::move(target);
    return entry;
}
inline store::LayerEntry hardlink(std::string path, std::string target) {
    store::LayerEntry entry = node(std::move(path), store::FileType::regular);
    entry.is_hardlink = true;
    entry.hardlink_target = std::move(target);
    return entry;
}

}  // namespace lamina::test
