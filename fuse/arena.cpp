// The arena: addresses for all it can ever be are reserved at once, and the file is mapped into them piece by piece as
// it grows. A transaction is an undo log: before bytes are changed, they are copied to the log's end, then
// log_used_bytes is raised, then they are changed. The commit is the one store that sets log_used_bytes to 0. A killed
// process' stores are visible in its program's order, so that signal fences (which hold the compiler back) suffice.
// Undoing copies the log back from its end to its start, and may itself be killed and begun again.
//
// Freshly allocated blocks are not saved: when undone, no one refers to them. For the same reason freed blocks go to
// the free lists only as the commit's last step: until then they still hold what undoing would bring back.
#include "fuse/arena.h"

#include "fuse/kill_points.h"
#include "store/error.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace lamina::unionfs {
namespace {

namespace format = arena_format;

constexpr std::uint64_t kMaxGrowBytes = std::uint64_t{4} << 20;  // Zeroing this much takes about a millisecond.

constexpr std::uint64_t round_up(std::uint64_t bytes, std::uint64_t unit) {
    return (bytes + unit - 1) / unit * unit;
}

[[noreturn]] void throw_full() {
    throw store::Error(store::Errc::no_space, "the arena of the mount cannot grow");
}

}  // namespace

Result<std::unique_ptr<Arena>> Arena::create() {
    store::UniqueFd file(::memfd_create("lamina-arena", MFD_CLOEXEC));
    if (!file) return fail(errno);
    return create(std::move(file));
}

Result<std::unique_ptr<Arena>> Arena::create(store::UniqueFd file) {
    auto arena = reserve_addresses(std::move(file));
    if (!arena) return arena;
    if (::fallocate((*arena)->fd(), 0, 0, static_cast<off_t>(format::kLogOffset)) != 0) return fail(errno);
    if (const auto mapped = (*arena)->map(0, format::kLogOffset); !mapped) return std::unexpected(mapped.error());
    format::Header& header = (*arena)->header();
    if (header.magic != 0) return fail(EINVAL);
    header.log_end = format::kLogOffset;
    header.data_end = format::kDataOffset;
    header.data_used_end = format::kDataOffset;
    header.version = format::kVersion;
    if (const auto reserved = (*arena)->reserve(format::kGrowUnitBytes, format::kGrowUnitBytes); !reserved)
        return std::unexpected(reserved.error());
    step();
    header.magic = format::kMagic;
    return arena;
}

Result<std::unique_ptr<Arena>> Arena::attach(store::UniqueFd arena_file) {
    auto arena = reserve_addresses(std::move(arena_file));
    if (!arena) return arena;
    if (const auto mapped = (*arena)->check_and_map(); !mapped) return std::unexpected(mapped.error());
    if (g_left_out.undo)
        (*arena)->set_log_used(0);
    else
        (*arena)->undo_to(0);
    static_assert(format::kAnswerSlots == 64);
    for (std::size_t slot = 0; slot < format::kAnswerSlots; ++slot)
        if ((*arena)->answers()[slot].unique != 0) (*arena)->former_answers_ |= std::uint64_t{1} << slot;
    return arena;
}

Arena::~Arena() {
    ::munmap(base_, format::kMaxBytes);
}

Result<std::unique_ptr<Arena>> Arena::reserve_addresses(store::UniqueFd file) {
    void* const base =
        ::mmap(nullptr, format::kMaxBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return fail(errno);
    return std::unique_ptr<Arena>(new Arena(std::move(file), static_cast<std::byte*>(base)));
}

Result<void> Arena::map(std::uint64_t begin, std::uint64_t end) {
    if (begin == end) return {};
    void* const at = ::mmap(base_ + begin, end - begin, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE,
                            file_.get(), static_cast<off_t>(begin));
    if (at == MAP_FAILED) return fail(errno);
    return {};
}

Result<void> Arena::check_and_map() {
    struct stat status {};
    if (::fstat(file_.get(), &status) != 0) return fail(errno);
    const auto file_bytes = static_cast<std::uint64_t>(status.st_size);
    if (file_bytes < format::kDataOffset) return fail(EINVAL);
    if (const auto mapped = map(0, format::kLogOffset); !mapped) return mapped;
    const format::Header& head = header();
    const bool is_sound =
        head.magic == format::kMagic && head.version == format::kVersion && head.log_end >= format::kLogOffset &&
        head.log_end <= format::kDataOffset && head.log_used_bytes <= head.log_end - format::kLogOffset &&
        head.data_used_end >= format::kDataOffset && head.data_used_end <= head.data_end &&
        head.data_end <= std::min(file_bytes, format::kMaxBytes) &&
        head.log_end % format::kGrowUnitBytes == format::kLogOffset && head.data_end % format::kGrowUnitBytes == 0;
    if (!is_sound) return fail(EINVAL);
    if (const auto mapped = map(format::kLogOffset, head.log_end); !mapped) return mapped;
    if (const auto mapped = map(format::kDataOffset, head.data_end); !mapped) return mapped;
    if (!log_is_sound()) return fail(EINVAL);
    return {};
}

bool Arena::log_is_sound() const noexcept {
    std::uint64_t end = header().log_used_bytes;
    while (end > 0) {
        format::LogTrailer trailer{};
        if (end < sizeof trailer) return false;
        end -= sizeof trailer;
        std::memcpy(&trailer, base_ + format::kLogOffset + end, sizeof trailer);
        if (trailer.size_bytes > end || round_up(trailer.size_bytes, 8) > end) return false;
        const bool is_in_head =
            trailer.offset <= format::kLogOffset && trailer.size_bytes <= format::kLogOffset - trailer.offset;
        const bool is_in_blocks = trailer.offset >= format::kDataOffset && trailer.offset <= header().data_end &&
                                  trailer.size_bytes <= header().data_end - trailer.offset;
        if (!is_in_head && !is_in_blocks) return false;
        end -= round_up(trailer.size_bytes, 8);
    }
    return true;
}

/// `end_field` says how far the log or the blocks have memory; it is raised only when they do.
Result<void> Arena::grow(std::uint64_t& end_field, std::uint64_t needed_end, std::uint64_t limit) {
    if (needed_end <= end_field) return {};
    if (needed_end > limit) return fail(ENOSPC);
    const std::uint64_t have = end_field < format::kDataOffset ? end_field : end_field - format::kDataOffset;
    const std::uint64_t extra = std::max(needed_end - end_field, std::min(have / 4, kMaxGrowBytes));
    const std::uint64_t size = std::min(round_up(extra, format::kGrowUnitBytes), limit - end_field);
    if (::fallocate(file_.get(), 0, static_cast<off_t>(end_field), static_cast<off_t>(size)) != 0) return fail(ENOSPC);
    if (const auto mapped = map(end_field, end_field + size); !mapped) return mapped;
    step();
    end_field += size;
    return {};
}

Result<void> Arena::reserve(std::uint64_t block_bytes, std::uint64_t log_bytes) {
    format::Header& head = header();
    if (block_bytes > format::kMaxBytes || log_bytes > format::kDataOffset) return fail(ENOSPC);
    constexpr std::uint64_t log_limit = format::kDataOffset - format::kGrowUnitBytes + format::kLogOffset;
    if (const auto grown = grow(head.log_end, format::kLogOffset + head.log_used_bytes + log_bytes, log_limit); !grown)
        return grown;
    return grow(head.data_end, head.data_used_end + block_bytes, format::kMaxBytes);
}

std::uint64_t Arena::size_bytes() const noexcept {
    return header().log_end + (header().data_end - format::kDataOffset);
}

Arena::Transaction::Transaction(Arena& arena)
    : arena_(arena), log_start_bytes_(arena.header().log_used_bytes), freed_start_(arena.freed_.size()) {
    ++arena_.depth_;
}

void Arena::Transaction::commit() {
    if (arena_.depth_ == 1) {
        arena_.put_on_free_lists();
        step();
        arena_.set_log_used(0);
        step();
    }
    --arena_.depth_;
    is_open_ = false;
}

Arena::Transaction::~Transaction() {
    if (!is_open_) return;
    arena_.undo_to(log_start_bytes_);
    arena_.freed_.resize(freed_start_);
    --arena_.depth_;
}

void Arena::save(const void* at, std::size_t size_bytes) {
    if (depth_ == 0) throw store::Error(store::Errc::internal, "a change of the arena without a transaction");
    format::Header& head = header();
    const std::uint64_t padded = round_up(size_bytes, 8);
    const std::uint64_t entry_bytes = padded + sizeof(format::LogTrailer);
    if (format::kLogOffset + head.log_used_bytes + entry_bytes > head.log_end && !reserve(0, entry_bytes)) throw_full();
    std::byte* const entry = base_ + format::kLogOffset + head.log_used_bytes;
    const auto offset = static_cast<std::uint64_t>(static_cast<const std::byte*>(at) - base_);
    const format::LogTrailer trailer{.offset = offset, .size_bytes = size_bytes};
    std::memcpy(entry, at, size_bytes);
    std::memcpy(entry + padded, &trailer, sizeof trailer);
    step();
    set_log_used(head.log_used_bytes + entry_bytes);
    step();
}

void Arena::set_log_used(std::uint64_t bytes) noexcept {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    std::atomic_ref(header().log_used_bytes).store(bytes, std::memory_order_release);
    std::atomic_signal_fence(std::memory_order_seq_cst);
}

void Arena::undo_to(std::uint64_t log_bytes) noexcept {
    std::byte* const log = base_ + format::kLogOffset;
    std::uint64_t end = header().log_used_bytes;
    while (end > log_bytes) {
        format::LogTrailer trailer{};
        std::memcpy(&trailer, log + end - sizeof trailer, sizeof trailer);
        end -= sizeof trailer + round_up(trailer.size_bytes, 8);
        std::memcpy(base_ + trailer.offset, log + end, trailer.size_bytes);
        step();
    }
    set_log_used(log_bytes);
}

std::uint32_t Arena::allocate_block(std::uint64_t size_bytes) {
    format::Header& head = header();
    const bool has_class = size_bytes <= format::kMaxBlockBytes;
    const std::size_t size_class = has_class ? format::size_class(size_bytes) : 0;
    const std::uint64_t block_bytes = has_class ? format::class_bytes(size_class) : round_up(size_bytes, 16);
    std::byte* block = nullptr;
    if (has_class && head.free_heads[size_class] != 0) {
        block = base_ + head.free_heads[size_class] * format::kUnitBytes;
        save(block, sizeof(std::uint32_t));
        std::uint32_t next = 0;
        std::memcpy(&next, block, sizeof next);
        set(head.free_heads[size_class], next);
    } else {
        if (head.data_used_end + block_bytes > head.data_end && !reserve(block_bytes, 0)) throw_full();
        block = base_ + head.data_used_end;
        set(head.data_used_end, head.data_used_end + block_bytes);
    }
    std::memset(block, 0, block_bytes);
    return static_cast<std::uint32_t>(static_cast<std::uint64_t>(block - base_) / format::kUnitBytes);
}

void Arena::put_on_free_lists() {
    for (const FreedBlock& freed : freed_) {
        std::byte* const block = base_ + freed.index * format::kUnitBytes;
        const std::uint32_t next = header().free_heads[freed.size_class];
        save(block, sizeof next);
        std::memcpy(block, &next, sizeof next);
        set(header().free_heads[freed.size_class], freed.index);
    }
    freed_.clear();
}

std::uint32_t Arena::root(Root which) const noexcept {
    return header().roots[static_cast<std::size_t>(which)];
}

void Arena::set_root(std::uint32_t index, Root which) {
    set(header().roots[static_cast<std::size_t>(which)], index);
}

std::span<format::Answer, format::kAnswerSlots> Arena::answers() const noexcept {
    auto* const first = static_cast<format::Answer*>(static_cast<void*>(base_ + format::kAnswersOffset));
    return std::span<format::Answer, format::kAnswerSlots>(first, format::kAnswerSlots);
}

std::size_t Arena::seal(std::uint64_t unique, std::uint64_t value) {
    const auto slots = answers();
    for (std::size_t slot = 0; slot < slots.size(); ++slot) {
        if (std::atomic_ref(slots[slot].unique).load(std::memory_order_relaxed) != 0) continue;
        slots[slot].value = value;  // Of a free slot: nobody looks at it.
        set(slots[slot].unique, unique);
        return slot;
    }
    throw store::Error(store::Errc::internal, "no room for an answer");
}

std::optional<Arena::Sealed> Arena::sealed(std::uint64_t unique) const noexcept {
    const auto slots = answers();
    for (std::size_t slot = 0; slot < slots.size(); ++slot)
        if (slots[slot].unique == unique) return Sealed{.slot = slot, .value = slots[slot].value};
    return std::nullopt;
}

void Arena::answered(std::size_t slot, std::uint64_t unique) noexcept {
    std::atomic_ref(answers()[slot].unique).compare_exchange_strong(unique, 0);
    if (former_answers_ != 0) former_answers_ &= ~(std::uint64_t{1} << slot);
}

void Arena::forget_former_answers() noexcept {
    for (std::size_t slot = 0; former_answers_ != 0; ++slot, former_answers_ >>= 1)
        if ((former_answers_ & 1) != 0) std::atomic_ref(answers()[slot].unique).store(0);
}

}  // namespace lamina::unionfs
