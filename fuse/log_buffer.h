#pragma once

#include "fuse/arena.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace lamina::unionfs {

/// Where a log ends, with the records that only the buffer has.
struct LogPosition {
    std::uint64_t end_bytes;
    std::uint64_t chain;          ///< Checksum of the last record.
    std::uint64_t last_sequence;  ///< Of all records.
    std::uint64_t last_change;    ///< Sequence of the last one that is a change.
};
static_assert(sizeof(LogPosition) == 32);

/// In the arena (fuse/FORMAT.md, "Arena"). Fields that change outside of transactions are single words.
struct LogStateRecord {
    static constexpr std::uint64_t kVersion = 1;
    std::uint64_t version;
    std::uint64_t generation;
    std::uint64_t checkpoint_bytes;
    std::uint64_t durable;        ///< Sequence up to which a sync made the log durable.
    std::uint64_t flushed_bytes;  ///< Of the log: so much of it is in its file.
    std::uint64_t start_bytes;    ///< Of the log: where the buffer's first byte belongs.
    std::uint64_t error;          ///< An errno: the disk failed after it was promised that it would not.
    std::uint64_t is_named;       ///< The names of log and extents are durable.
    std::uint64_t current;        ///< Which of the two positions counts.
    std::array<LogPosition, 2> positions;
    Ref<std::byte> buffer;
    std::uint32_t reserved;
    std::uint64_t buffer_bytes;
};
static_assert(sizeof(LogStateRecord) == 152);

/// Where a mount's log stands, and the records that its file may not have yet. Both lie in the arena, so that a next
/// server goes on where a killed one was: a change and its record are made by one transaction, and a record that was
/// written to the file already is written to the same place once more.
///
/// One thread at a time, but bytes() may be read while put() adds behind them.
class LogBuffer {
public:
    explicit LogBuffer(Arena& arena) : arena_(arena) {}

    bool is_begun() const noexcept { return arena_.root(Arena::Root::keeper) != 0; }
    /// A log, or the next one after a checkpoint; a transaction of its own. Throws no_space.
    void begin(std::uint64_t generation, std::uint64_t checkpoint_bytes, const LogPosition& position);
    /// Throws unsupported: made by another version.
    void check_version() const;

    const LogStateRecord& state() const noexcept { return arena_.get(ref()); }
    const LogPosition& position() const noexcept { return state().positions[state().current & 1U]; }
    bool is_empty(const LogPosition& at) const noexcept { return at.end_bytes == state().flushed_bytes; }

    /// True when a record fits behind `at` without a flush before.
    bool has_room(const LogPosition& at, std::uint64_t size_bytes) const noexcept;
    /// Puts a record behind `at`, and `next` in its place as a part of the open transaction. Throws no_space where it
    /// is larger than any before.
    void put(const LogPosition& at, std::span<const std::byte> record, const LogPosition& next);
    /// The same without a transaction. The record fits.
    void put_now(const LogPosition& at, std::span<const std::byte> record, const LogPosition& next) noexcept;
    /// What the file does not have yet.
    std::span<const std::byte> bytes(const LogPosition& until) const noexcept;

    void set_flushed(std::uint64_t end_bytes) noexcept { store(state().flushed_bytes, end_bytes); }
    void set_durable(std::uint64_t sequence) noexcept { store(state().durable, sequence); }
    void set_named() noexcept { store(state().is_named, 1); }
    void set_error(int error_number) noexcept;

private:
    Ref<LogStateRecord> ref() const noexcept { return {arena_.root(Arena::Root::keeper)}; }
    static void store(const std::uint64_t& word, std::uint64_t value) noexcept;
    void place(const LogPosition& at, std::span<const std::byte> record, const LogPosition& next) noexcept;
    std::byte* buffer() const noexcept { return &arena_.fresh(state().buffer); }

    Arena& arena_;
};

}  // namespace lamina::unionfs
