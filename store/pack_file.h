#pragma once

#include "store/chunk_store.h"
#include "store/file.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lamina::store {

/// The file of one pack: frames one behind the other, then their footer. It lies in `staging_folder` from the first
/// frame on until finish() has synced it and moved it into `packs_folder`; when it is destroyed before, nothing stays
/// behind. One thread at a time.
class PackFile {
public:
    struct Options {
        std::string packs_folder;
        std::string staging_folder;
        std::uint32_t pack_number = 0;  ///< From Index::allocate_packs(): never used before.
        bool tells_levels = false;      ///< For frames of another level than the import's.
        bool is_measured = false;       ///< Only counts: no file is made.
    };
    explicit PackFile(const Options& options) : options_(options) {}
    ~PackFile();
    PackFile(const PackFile&) = delete;
    PackFile& operator=(const PackFile&) = delete;

    /// All of a frame's bytes, as FrameCompressor makes them, or as another pack has them.
    void append(std::span<const std::byte> frame);
    std::uint64_t raw_bytes() const noexcept { return pack_.raw_bytes; }
    /// nullopt when no frame came: then there is no file.
    std::optional<FinishedPack> finish();

private:
    void create();
    void put(std::span<const std::byte> bytes);
    void put_footer();
    void publish();
    std::string staging_path() const;

    const Options options_;
    File file_;
    FinishedPack pack_;  ///< file_bytes: of what was put so far.
    std::uint32_t frame_count_ = 0;
    bool is_created_ = false;
    bool is_publishing_ = false;
    bool is_finished_ = false;
};

}  // namespace lamina::store
