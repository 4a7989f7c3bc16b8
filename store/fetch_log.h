#pragma once

#include "store/digest.h"
#include "store/file.h"

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::store {

/// For whom a request was made: somebody waited for it; ahead of who reads on; what programs wanted first before; the
/// rest of a layer, in the background.
enum class FetchKind : std::uint8_t { waited, ahead, trace, rest };
std::string_view fetch_kind_name(FetchKind kind);

// What happened. Times are Unix microseconds, and within one daemon never go back.

struct MountBegun {
    std::string mount;  ///< ID.
    BlobDigest config;  ///< Of its image.
    std::int64_t at_us = 0;
};

/// A part of a layer's blob, asked of a registry.
struct RangeRequest {
    DiffId layer;        ///< Of a start bundle the digest of its directory.
    std::string source;  ///< "host/repository"
    FetchKind kind = FetchKind::waited;
    std::uint64_t blob_first = 0;  ///< Bytes blob_first to blob_end - 1.
    std::uint64_t blob_end = 0;
    std::uint64_t tar_first = 0;  ///< It brought the chunks that begin from here on, and before tar_end.
    std::uint64_t tar_end = 0;
    std::int64_t sent_us = 0;  ///< Also its name: no other one has it.
    std::int64_t first_byte_us = 0;
    std::int64_t end_us = 0;
    std::uint64_t bytes = 0;     ///< That came.
    std::uint64_t failures = 0;  ///< Tries that broke off or were refused; the next one went on.
    std::string error;           ///< What ended it; empty: nothing did.
};

/// Somebody who reads a mount waited for a chunk.
struct ChunkWait {
    std::string mount;
    DiffId layer;
    ChunkId chunk;
    std::int64_t begin_us = 0;
    std::int64_t end_us = 0;
    std::int64_t request_us = 0;         ///< RangeRequest::sent_us of what brought it; 0: nothing did.
    FetchKind kind = FetchKind::waited;  ///< Of that.
    std::string error;
};

/// What a part of a start bundle brought, whose layer no request tells.
struct ChunksCame {
    static constexpr std::size_t kDigits = 16;
    static constexpr std::size_t kMostChunks = 2'000;
    std::int64_t request_us = 0;  ///< RangeRequest::sent_us of what brought it, and its kind.
    FetchKind kind = FetchKind::trace;
    std::vector<std::string> chunks;  ///< At most kMostChunks, by digits_of().
    static std::string digits_of(const ChunkId& chunk) { return chunk.digest.hex().substr(0, kDigits); }
};

/// Layers that a pull brought whole.
struct WholePull {
    std::int64_t at_us = 0;
    std::string source;        ///< "host/repository"
    bool lacks_index = false;  ///< It was to be lazy where it can be, and no index is published.
    std::vector<DiffId> layers;
};

/// What was fetched and who waited for it, for people who ask why (FORMAT.md, "Fetch log"): <root>/fetches/log, and
/// log.1 before it. Nothing depends on it: what cannot be written is lost, old lines go. Thread-safe.
class FetchLog {
public:
    static constexpr std::uint64_t kMaxFileBytes = 1 << 20;

    explicit FetchLog(std::string folder, std::uint64_t max_file_bytes = kMaxFileBytes);
    std::int64_t now_us() const;
    std::int64_t new_stamp();  ///< Now; never the same twice.

    void add(const MountBegun& event) noexcept;
    void add(const RangeRequest& event) noexcept;
    void add(const ChunkWait& event) noexcept;
    void add(const ChunksCame& event) noexcept;
    void add(const WholePull& event) noexcept;

    /// What is known, each list in the order in which it happened.
    struct Events {
        std::vector<MountBegun> mounts;
        std::vector<RangeRequest> requests;
        std::vector<ChunkWait> waits;
        std::vector<ChunksCame> came;
        std::vector<WholePull> pulls;
        std::uint64_t unreadable_lines = 0;  ///< Cut, damaged, or of another version.
    };
    Events read() const;  ///< No log: nothing is known.

private:
    template <class Event>
    void write(const Event& event) noexcept;
    void append(const std::string& line);
    void open();

    const std::string folder_;
    const std::uint64_t max_file_bytes_;
    const std::int64_t clock_offset_us_;
    mutable std::mutex mutex_;  // Guards what follows, and the files; held across their I/O, a leaf.
    std::int64_t last_stamp_us_ = 0;
    UniqueFd file_;
    std::uint64_t file_bytes_ = 0;
    bool ends_in_line_ = true;  ///< false: the last line was cut.
};

}  // namespace lamina::store
