#pragma once

#include "store/content.h"
#include "store/file.h"
#include "store/recipe_format.h"
#include "store/tar_input.h"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

/// A recipe file's blocks, checked, and cursors over what they hold. All throw Errc::corrupt naming the file.
namespace lamina::store {

/// The file, opened: header, footer and block records are checked, blocks when they are read. Thread-safe.
class RecipeFile {
public:
    explicit RecipeFile(const std::string& path);  ///< unsupported when another version wrote it.
    const recipe_format::Footer& footer() const noexcept { return footer_; }
    std::span<const recipe_format::BlockRecord> blocks(recipe_format::BlockKind kind) const;
    /// Reads, checks and decompresses a block.
    std::vector<std::byte> read(const recipe_format::BlockRecord& block) const;
    [[noreturn]] void fail(const std::string& problem) const;

private:
    void read_footer(std::uint64_t file_bytes);
    void check_blocks(std::uint64_t end_bytes);

    std::string path_;
    UniqueFd fd_;
    recipe_format::Footer footer_{};
    std::vector<recipe_format::BlockRecord> blocks_;  ///< Sorted by kind.
};

/// The bytes of one kind of block, one after another.
class BlockStream : public TarInput {
public:
    BlockStream(const RecipeFile& file, recipe_format::BlockKind kind) : file_(file), blocks_(file.blocks(kind)) {}
    std::span<const std::byte> peek(std::size_t want_bytes) override;
    void consume(std::size_t bytes) override;
    std::uint64_t consumed_bytes() const noexcept { return consumed_bytes_; }

private:
    const RecipeFile& file_;
    std::span<const recipe_format::BlockRecord> blocks_;
    std::size_t next_block_ = 0;
    std::vector<std::byte> data_;
    std::size_t begin_ = 0;  ///< Of the unread part of data_.
    std::uint64_t consumed_bytes_ = 0;
};

/// What comes next in the tar.
struct RecipeStep {
    std::uint64_t literal_bytes = 0;  ///< 0: it is the chunk.
    std::optional<ContentPart> chunk;
};

/// How literals and chunks alternate.
class RecipeSteps {
public:
    explicit RecipeSteps(const RecipeFile& file) : file_(file), numbers_(file, recipe_format::BlockKind::steps) {}
    std::optional<RecipeStep> next();  ///< nullopt at the end; all chunks have then been used.

private:
    struct Page {
        std::uint64_t number;
        std::vector<std::byte> data;
    };
    std::uint64_t read_number();
    ContentPart chunk_at(std::uint64_t index);
    const Page& page(std::uint64_t number);

    const RecipeFile& file_;
    BlockStream numbers_;
    std::uint64_t used_chunks_ = 0;
    std::deque<Page> pages_;  ///< Last used first.
};

}  // namespace lamina::store
