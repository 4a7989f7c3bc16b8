#pragma once

#include "store/byte_stream.h"
#include "store/content.h"
#include "store/file.h"
#include "store/recipe_format.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

struct ZSTD_CCtx_s;

namespace lamina::store {

/// Writes a recipe (FORMAT.md, "Recipe") while its layer is read: literal bytes and chunks in the order of the tar.
/// Memory is a few MiB whatever the layer's size. A writer that is destroyed before finish() removes its file.
class RecipeWriter : public ByteSink {
public:
    explicit RecipeWriter(const std::string& path);  ///< A new file.

    void write(std::span<const std::byte> literals) override;
    void add_chunk(const ChunkId& chunk, std::uint32_t size_bytes);

    struct Totals {
        DiffId diff_id;
        std::uint64_t tar_bytes = 0;
        std::uint64_t entry_count = 0;
    };
    void finish(const Totals& totals);  ///< The file is then complete and synced.

private:
    struct FreeContext {
        void operator()(ZSTD_CCtx_s* context) const noexcept;
    };
    void end_literals();
    void add_step(std::uint64_t number);
    void flush(recipe_format::BlockKind kind, std::vector<std::byte>& data);
    void append_block(recipe_format::BlockRecord record, std::span<const std::byte> stored);

    /// Removes the file at `path` when it goes, unless it is to be kept.
    struct Unfinished {
        explicit Unfinished(std::string path_to_remove) : path(std::move(path_to_remove)) {}
        ~Unfinished();
        Unfinished(const Unfinished&) = delete;
        Unfinished& operator=(const Unfinished&) = delete;
        std::string path;
        bool is_kept = false;
    };

    File file_;
    Unfinished unfinished_;  ///< After file_: a file that was there before is not ours to remove.
    std::unique_ptr<ZSTD_CCtx_s, FreeContext> context_;
    std::vector<std::byte> compressed_;
    std::vector<std::byte> literals_;
    std::vector<std::byte> steps_;
    std::vector<std::byte> chunks_;
    std::vector<recipe_format::BlockRecord> blocks_;
    std::uint64_t literal_bytes_ = 0;
    std::uint64_t open_literal_bytes_ = 0;  ///< Since the last step.
    std::uint64_t chunk_count_ = 0;
    /// Where recent chunks stand in the table. Forgets all when full: a chunk may then get a second record.
    std::unordered_map<ChunkId, std::uint64_t> recent_;
};

}  // namespace lamina::store
