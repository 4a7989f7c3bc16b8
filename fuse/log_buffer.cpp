#include "fuse/log_buffer.h"

#include "store/error.h"

#include <algorithm>
#include <atomic>

namespace lamina::unionfs {
namespace {

constexpr std::uint64_t kUsualBytes = std::uint64_t{64} << 10;

}  // namespace

void LogBuffer::store(const std::uint64_t& word, std::uint64_t value) noexcept {
    std::atomic_ref(const_cast<std::uint64_t&>(word)).store(value, std::memory_order_release);
    Arena::step();
}

void LogBuffer::begin(std::uint64_t generation, std::uint64_t checkpoint_bytes, const LogPosition& position) {
    Arena::Transaction transaction(arena_);
    if (!is_begun()) {
        const auto made = arena_.allocate<LogStateRecord>();
        const auto buffer = arena_.allocate<std::byte>(kUsualBytes - 1);
        LogStateRecord& fresh = arena_.fresh(made);
        fresh.version = LogStateRecord::kVersion;
        fresh.buffer = buffer;
        fresh.buffer_bytes = kUsualBytes;
        arena_.set_root(made.index, Arena::Root::keeper);
    }
    LogStateRecord& record = arena_.edit(ref());
    record.generation = generation;
    record.checkpoint_bytes = checkpoint_bytes;
    record.durable = 0;
    record.flushed_bytes = record.start_bytes = position.end_bytes;
    record.current = 0;
    record.positions[0] = position;
    transaction.commit();
}

void LogBuffer::check_version() const {
    if (is_begun() && state().version != LogStateRecord::kVersion)
        throw store::Error(store::Errc::unsupported, "the arena of the mount is of another version");
}

void LogBuffer::set_error(int error_number) noexcept {
    if (is_begun()) store(state().error, static_cast<std::uint64_t>(error_number));
}

bool LogBuffer::has_room(const LogPosition& at, std::uint64_t size_bytes) const noexcept {
    return is_empty(at) || at.end_bytes - state().start_bytes + size_bytes <= state().buffer_bytes;
}

void LogBuffer::put(const LogPosition& at, std::span<const std::byte> record, const LogPosition& next) {
    if (record.size() > state().buffer_bytes) {  // Rare: the larger buffer is kept.
        const auto larger = arena_.allocate<std::byte>(record.size() - 1);
        if (state().buffer_bytes <= arena_format::kMaxBlockBytes)
            arena_.release(state().buffer, state().buffer_bytes - 1);
        arena_.set(state().buffer, larger);
        arena_.set(state().buffer_bytes, record.size());
    }
    place(at, record, next);
    arena_.set(state().current, (state().current & 1U) ^ 1U);
}

void LogBuffer::put_now(const LogPosition& at, std::span<const std::byte> record, const LogPosition& next) noexcept {
    place(at, record, next);
    store(state().current, (state().current & 1U) ^ 1U);
}

/// Bytes behind the end, and the position that does not count: nothing that a kill could tear.
void LogBuffer::place(const LogPosition& at, std::span<const std::byte> record, const LogPosition& next) noexcept {
    if (is_empty(at)) store(state().start_bytes, at.end_bytes);
    std::ranges::copy(record, buffer() + (at.end_bytes - state().start_bytes));
    arena_.fresh(ref()).positions[(state().current & 1U) ^ 1U] = next;
    Arena::step();
}

std::span<const std::byte> LogBuffer::bytes(const LogPosition& until) const noexcept {
    const LogStateRecord& now = state();
    return {buffer() + (now.flushed_bytes - now.start_bytes),
            static_cast<std::size_t>(until.end_bytes - now.flushed_bytes)};
}

}  // namespace lamina::unionfs
