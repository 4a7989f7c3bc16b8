#include "store/tree_read_view.h"

#include "store/error.h"

#include <algorithm>
#include <cstring>

namespace lamina::store {

namespace {

class TreeReadView final : public ReadView {
public:
    TreeReadView(std::shared_ptr<const ImageTree> tree, std::unique_ptr<ChunkSource> chunks)
        : tree_(std::move(tree)), chunks_(std::move(chunks)) {}

    const ImageTree& tree() const override { return *tree_; }

    std::size_t read(TreeIno file, std::uint64_t offset_bytes, std::span<std::byte> out) override {
        std::size_t done = 0;
        for (const auto& placed : tree_->parts(file, offset_bytes, out.size())) {
            const std::uint64_t skipped = offset_bytes + done - placed.offset_bytes;
            const std::uint64_t size = std::min(placed.part.size_bytes - skipped, std::uint64_t{out.size() - done});
            const auto piece = out.subspan(done, size);
            if (placed.part.is_hole) {
                std::memset(piece.data(), 0, piece.size());
            } else {
                read_chunk(file, placed, static_cast<std::uint32_t>(skipped), piece);
            }
            done += size;
        }
        return done;
    }

    bool is_warm(TreeIno file, std::uint64_t offset_bytes, std::uint64_t size_bytes) override {
        const auto parts = tree_->parts(file, offset_bytes, size_bytes);
        return std::all_of(parts.begin(), parts.end(), [this](const ImageTree::PlacedPart& placed) {
            return placed.part.is_hole || chunks_->is_warm(placed.part.chunk);
        });
    }

private:
    void read_chunk(TreeIno file, const ImageTree::PlacedPart& placed, std::uint32_t skipped_bytes,
                    std::span<std::byte> out) {
        try {
            chunks_->read(placed.part.chunk, skipped_bytes, out);
        } catch (const Error& error) {  // Says whose bytes; and a lost chunk must not look like a lost file.
            const Errc code = error.code() == Errc::not_found ? Errc::corrupt : error.code();
            throw with_context(Error(code, error.what()), "inode " + std::to_string(file) + ", offset " +
                                                              std::to_string(placed.offset_bytes + skipped_bytes));
        }
    }

    std::shared_ptr<const ImageTree> tree_;
    std::unique_ptr<ChunkSource> chunks_;
};

}  // namespace

std::unique_ptr<ReadView> make_read_view(std::shared_ptr<const ImageTree> tree, std::unique_ptr<ChunkSource> chunks) {
    return std::make_unique<TreeReadView>(std::move(tree), std::move(chunks));
}

}  // namespace lamina::store
