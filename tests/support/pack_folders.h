#pragma once

#include "store/chunk_store.h"
#include "store/error.h"
#include "store/file.h"
#include "store/file_ops.h"
#include "store/pack_writer.h"
#include "support/temp_dir.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::test {

using Bytes = std::vector<std::byte>;

/// The folders that packs live in, and short ways to write and read them.
struct PackFolders {
    PackFolders() {
        store::make_folder(packs);
        store::make_folder(staging);
    }
    store::PackWriter::Options options(std::uint32_t number) const {
        return {.packs_folder = packs, .staging_folder = staging, .pack_number = number};
    }
    std::unique_ptr<store::ChunkStore> open() const { return store::ChunkStore::open(packs, 8 * 1024 * 1024); }
    /// Writes the chunks that are not known into pack `number` and leaves the index as it is.
    std::optional<store::FinishedPack> write(std::uint32_t number, const std::vector<Bytes>& chunks) const {
        const auto known = open();
        store::PackWriter writer(options(number), *known);
        for (const Bytes& chunk : chunks) writer.add(chunk);
        return writer.finish();
    }
    std::string path(std::uint32_t number) const { return store::pack_path(packs, number); }
    TempDir root;
    std::string packs = root / "packs";
    std::string staging = root / "staging";
};

inline store::ChunkId id_of(const Bytes& data) {
    return {store::Digest::of(data)};
}

inline Bytes read_chunk(store::ChunkSource& source, const store::ChunkId& id, std::size_t size_bytes) {
    Bytes out(size_bytes);
    source.read(id, 0, out);
    return out;
}

/// What reading `data` gave: its bytes, an error, or, what must never be, others.
enum class ReadResult { right, refused, wrong };
inline ReadResult try_read(store::ChunkSource& source, const store::ChunkId& id, const Bytes& data) {
    try {
        return read_chunk(source, id, data.size()) == data ? ReadResult::right : ReadResult::wrong;
    } catch (const store::Error&) {
        return ReadResult::refused;
    }
}
inline ReadResult try_read(store::ChunkSource& source, const Bytes& data) {
    return try_read(source, id_of(data), data);
}

/// While it lives, the nth step that changes the disk fails as on a full one.
class FailAtStep : public store::FaultHook {
public:
    explicit FailAtStep(int step) : left_(step) { store::g_fault_hook = this; }
    ~FailAtStep() override { store::g_fault_hook = nullptr; }
    FailAtStep(const FailAtStep&) = delete;
    FailAtStep& operator=(const FailAtStep&) = delete;
    void before(std::string_view step, std::string_view path) override {
        if (--left_ == 0) throw store::Error(store::Errc::no_space, std::string(step) + " " + std::string(path));
    }
    bool has_failed() const { return left_ <= 0; }

private:
    std::atomic<int> left_;
};

/// A file under `path` with other bytes, in one step as far as its readers see.
inline void replace_file(const std::string& path, std::span<const std::byte> data) {
    store::remove_file(path);
    store::File::create(path).append(data);
}

}  // namespace lamina::test
