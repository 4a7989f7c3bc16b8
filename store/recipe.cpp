#include "store/recipe.h"

#include "store/chunker.h"
#include "store/error.h"
#include "store/recipe_file.h"
#include "store/tar_reader.h"

#include <algorithm>
#include <limits>
#include <unordered_set>
#include <utility>

// write_tar() follows the steps: so many literal bytes, then chunks, and so on. entries() reads the literals with the
// LayerReader that read the tar at import, only without bodies, and takes each body's chunks from the steps; that both
// agree, byte for byte, is checked at each body and at the end.

namespace lamina::store {

using recipe_format::BlockKind;

namespace {

/// What was imported is read whatever limits there were; names and paths have Linux' own.
LayerLimits reading_limits(const RecipeFile& file) {
    LayerLimits limits;
    limits.entries = file.footer().entry_count;
    limits.xattr_bytes = std::numeric_limits<std::uint32_t>::max();
    limits.pax_bytes = 64 * 1024 * 1024;
    limits.sparse_parts = 64'000'000;
    limits.file_bytes = std::numeric_limits<std::int64_t>::max();
    limits.logical_bytes = std::numeric_limits<std::uint64_t>::max();
    return limits;
}

class RecipeEntries : public Recipe::Entries {
public:
    explicit RecipeEntries(const RecipeFile& file)
        : file_(file),
          literals_(file, BlockKind::literals),
          reader_(literals_, reading_limits(file), nullptr, LayerReader::Bodies::absent),
          steps_(file) {}

    std::optional<LayerEntry> next() override {
        if (is_at_end_) return std::nullopt;
        std::optional<TarEntry> entry = read();
        if (!entry) {
            check_end();
            return std::nullopt;
        }
        if (entry->stored_bytes > 0) {
            take_literals();
        }
        if (entry->is_sparse) {
            add_sparse_content(*entry);
        } else if (entry->stored_bytes > 0) {
            add_chunks(entry->stored_bytes, entry->entry.content);
        }
        return std::move(entry->entry);
    }

private:
    std::optional<TarEntry> read() {
        try {
            return reader_.next();
        } catch (const Error& error) {  // The tar was accepted once: now it is the recipe that is wrong.
            if (error.code() == Errc::malformed) file_.fail(error.what());
            throw;
        }
    }

    /// The literals since the last body are exactly those of one step.
    void take_literals() {
        const std::uint64_t bytes =
            literals_.consumed_bytes() - std::exchange(taken_bytes_, literals_.consumed_bytes());
        const auto step = steps_.next();
        if (!step || step->chunk || step->literal_bytes != bytes) file_.fail("steps and literals disagree");
    }

    void add_chunks(std::uint64_t bytes, Content& content) {
        while (bytes > 0) {
            const auto step = steps_.next();
            if (!step || !step->chunk || step->chunk->size_bytes > bytes)
                file_.fail("chunks and a file's size disagree");
            bytes -= step->chunk->size_bytes;
            content.push_back(*step->chunk);
        }
    }

    void add_sparse_content(TarEntry& entry) {
        std::uint64_t end = 0;
        const auto add_hole_until = [&](std::uint64_t offset) {
            if (offset > end) entry.entry.content.push_back(ContentPart::hole(offset - end));
            end = offset;
        };
        for (const TarRange& range : entry.data_map) {
            if (range.size_bytes == 0) continue;
            add_hole_until(range.offset_bytes);
            add_chunks(range.size_bytes, entry.entry.content);
            end += range.size_bytes;
        }
        add_hole_until(entry.entry.size_bytes);
    }

    void check_end() {
        if (literals_.consumed_bytes() > taken_bytes_) take_literals();
        if (steps_.next()) file_.fail("steps after the end of the tar");
        if (reader_.entry_count() != file_.footer().entry_count) file_.fail("entries do not add up");
        if (reader_.offset_bytes() != file_.footer().tar_bytes) file_.fail("bytes do not add up");
        is_at_end_ = true;
    }

    const RecipeFile& file_;
    BlockStream literals_;
    LayerReader reader_;
    RecipeSteps steps_;
    std::uint64_t taken_bytes_ = 0;
    bool is_at_end_ = false;
};

class OpenRecipe : public Recipe {
public:
    explicit OpenRecipe(const std::string& path) : file_(path) {}

    DiffId diff_id() const override { return DiffId{Digest::from_bytes(file_.footer().diff_id)}; }
    std::uint64_t tar_bytes() const override { return file_.footer().tar_bytes; }
    std::uint64_t entry_count() const override { return file_.footer().entry_count; }
    std::unique_ptr<Entries> entries() const override { return std::make_unique<RecipeEntries>(file_); }
    std::vector<ChunkId> chunks() const override;
    void write_tar(ChunkSource& chunks, ByteSink& out) const override;

private:
    void copy_literals(std::uint64_t bytes, BlockStream& literals, ByteSink& out) const;
    RecipeFile file_;
};

std::vector<ChunkId> OpenRecipe::chunks() const {
    std::vector<ChunkId> out;
    std::unordered_set<ChunkId> seen;  // In very large layers a chunk may have two records.
    for (const auto& block : file_.blocks(BlockKind::chunks)) {
        const std::vector<std::byte> page = file_.read(block);
        for (std::size_t offset = 0; offset < page.size(); offset += sizeof(recipe_format::ChunkRecord)) {
            const auto digest = std::span(page).subspan(offset).first<Digest::kSizeBytes>();
            const ChunkId chunk{Digest::from_bytes(digest)};
            if (seen.insert(chunk).second) out.push_back(chunk);
        }
    }
    return out;
}

void OpenRecipe::copy_literals(std::uint64_t bytes, BlockStream& literals, ByteSink& out) const {
    while (bytes > 0) {
        auto data = literals.peek(1);
        if (data.empty()) file_.fail("steps and literals disagree");
        data = data.first(static_cast<std::size_t>(std::min<std::uint64_t>(data.size(), bytes)));
        out.write(data);
        literals.consume(data.size());
        bytes -= data.size();
    }
}

void OpenRecipe::write_tar(ChunkSource& chunks, ByteSink& out) const {
    RecipeSteps steps(file_);
    BlockStream literals(file_, BlockKind::literals);
    std::vector<std::byte> buffer(kMaxChunkBytes);
    std::uint64_t written = 0;
    while (const auto step = steps.next()) {
        if (step->chunk) {
            const auto data = std::span(buffer).first(static_cast<std::size_t>(step->chunk->size_bytes));
            chunks.read(step->chunk->chunk, 0, data);
            out.write(data);
            written += data.size();
        } else {
            copy_literals(step->literal_bytes, literals, out);
            written += step->literal_bytes;
        }
    }
    if (literals.consumed_bytes() != file_.footer().literal_bytes || written != tar_bytes()) {
        file_.fail("bytes do not add up");
    }
}

}  // namespace

std::unique_ptr<Recipe> Recipe::open(const std::string& path) {
    return std::make_unique<OpenRecipe>(path);
}

}  // namespace lamina::store
