#pragma once

#include "store/checksum.h"
#include "store/chunk_store.h"
#include "store/file.h"
#include "store/index_format.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lamina::store {

/// One mapped segment of the chunk index. Immutable; any thread. A file that was damaged after it was written gives
/// wrong places or none, which the frames' own tables show: never wrong bytes. A part that cannot be read any more (bad
/// sector, shortened file) throws corrupt; it was tried before the mapping is touched there.
class IndexSegment {
public:
    /// Checks header, sizes and fan-out; not the entries. Throws not_found, corrupt.
    static std::shared_ptr<const IndexSegment> open(const std::string& path, std::uint64_t number);
    /// The same over bytes in memory, which must outlive the segment.
    static std::shared_ptr<const IndexSegment> over(std::span<const std::byte> bytes, std::uint64_t number);

    std::optional<ChunkPlace> find(const ChunkId& chunk) const;
    std::optional<std::uint64_t> position_of(const ChunkId& chunk) const;  ///< Of its entry.
    void prefetch(const ChunkId& chunk) const;  ///< Before many find() of one chunk: lets their memory come at once.
    std::uint64_t number() const noexcept { return header_.number; }
    std::uint64_t entry_count() const noexcept { return header_.entry_count; }
    std::uint64_t head_checksum() const noexcept { return header_.checksum; }
    std::uint64_t file_bytes() const noexcept { return bytes_.size(); }
    /// `position` < entry_count(). Does not try whether it can be read: check_entries() has, or else find() does.
    const index_format::Entry& entry(std::uint64_t position) const;
    /// Reads all of it: the entries' checksum, their order and that each lies in its bucket. Throws corrupt.
    void check_entries() const;

private:
    IndexSegment() = default;
    std::uint32_t fan_out(std::uint64_t bucket) const;
    std::uint64_t entry_offset(std::uint64_t position) const;  ///< In the file.
    void check_head(std::uint64_t number);
    void ensure_readable(std::uint64_t offset_bytes, std::uint64_t size_bytes) const;

    std::string path_;
    UniqueFd fd_;  ///< None when over memory.
    MappedFile mapped_;
    mutable std::unique_ptr<std::atomic<std::uint64_t>[]> readable_pages_;  ///< A bit for each page that was read once.
    std::span<const std::byte> bytes_;
    index_format::SegmentHeader header_{};
    const std::byte* fan_out_ = nullptr;
    const std::byte* entries_ = nullptr;
};

/// Writes a segment; its entries must come sorted by digest, each once. The file is not there until finish(), and a
/// writer that is destroyed before leaves nothing behind.
class IndexSegmentWriter {
public:
    /// `most_entries`: as many as can come at most.
    IndexSegmentWriter(const std::string& path, std::uint64_t number, std::uint64_t most_entries);
    ~IndexSegmentWriter();
    IndexSegmentWriter(const IndexSegmentWriter&) = delete;
    IndexSegmentWriter& operator=(const IndexSegmentWriter&) = delete;
    void add(const index_format::Entry& entry);
    std::uint64_t finish();  ///< Synced and in place, folder too. Returns the head checksum.

private:
    void flush();

    const std::string path_;
    const std::string temporary_path_;
    const std::uint32_t bits_;
    index_format::SegmentHeader header_{};
    File file_;
    bool is_finished_ = false;
    std::vector<std::uint32_t> fan_out_;
    std::vector<index_format::Entry> pending_;
    Checksum checksum_;
};

std::string segment_path(const std::string& packs_folder, std::uint64_t number);
/// The number of a segment's file name, or nullopt for other files.
std::optional<std::uint64_t> segment_number(const std::string& file_name);

}  // namespace lamina::store
