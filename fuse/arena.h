#pragma once

#include "fuse/arena_format.h"
#include "fuse/result.h"
#include "store/file.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace lamina::unionfs {

/// Where a record lies in an arena. 0: none.
template <class T>
struct Ref {
    std::uint32_t index = 0;
    explicit operator bool() const noexcept { return index != 0; }
    bool operator==(const Ref&) const = default;
};

/// Called at each step of a transaction that a kill could fall between. For tests; none costs one load.
inline std::atomic<void (*)()> g_arena_step{nullptr};

/// One shared mapping with all that must outlive a mount's server: plain records in blocks of fixed sizes, linked by
/// Ref, never by pointer (fuse/FORMAT.md, "Arena"). It grows in place; references to records stay valid.
///
/// All changes belong to a Transaction. A process that attaches after another was killed, at any instruction, sees
/// each transaction whole or not at all. One thread at a time. Memory is taken (fallocate) before it is used, so that
/// a lack of it is an error of reserve() or allocate(), never a signal later.
class Arena {
public:
    static Result<std::unique_ptr<Arena>> create();                       ///< On a new memfd. ENOMEM, ENOSPC.
    static Result<std::unique_ptr<Arena>> create(store::UniqueFd file);   ///< On an empty file.
    static Result<std::unique_ptr<Arena>> attach(store::UniqueFd arena);  ///< Undoes what is unfinished. EINVAL.
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    int fd() const noexcept { return file_.get(); }

    /// Room for this many bytes of blocks and of undo log, so that a transaction within that cannot fail. ENOSPC.
    Result<void> reserve(std::uint64_t block_bytes, std::uint64_t log_bytes);
    std::uint64_t size_bytes() const noexcept;  ///< Memory that it takes.

    /// Undoes its changes when it is destroyed without commit(). May lie inside another: then commit() hands its
    /// changes to the outer one.
    class Transaction {
    public:
        explicit Transaction(Arena& arena);
        ~Transaction();
        Transaction(const Transaction&) = delete;
        Transaction& operator=(const Transaction&) = delete;
        void commit();  ///< Throws no_space, and then undoes.

    private:
        Arena& arena_;
        std::uint64_t log_start_bytes_;
        std::size_t freed_start_;
        bool is_open_ = true;
    };

    template <class T>
    const T& get(Ref<T> ref) const noexcept {
        return *static_cast<const T*>(static_cast<const void*>(base_ + ref.index * arena_format::kUnitBytes));
    }
    /// The record, to change: as it is now it comes back when the transaction is undone.
    template <class T>
    T& edit(Ref<T> ref) {
        static_assert(std::is_trivially_copyable_v<T>);
        T& record = fresh(ref);
        save(&record, sizeof(T));
        return record;
    }
    /// Changes one field of the arena.
    template <class T>
    void set(const T& field, std::type_identity_t<T> value) {
        static_assert(std::is_trivially_copyable_v<T>);
        save(&field, sizeof(T));
        const_cast<T&>(field) = value;
        step();
    }
    /// Bytes of the arena, to change.
    void save(const void* at, std::size_t size_bytes);

    /// Zeroed memory for a T and `extra_bytes` behind it; at most kMaxBlockBytes, or it can never be given back.
    /// Throws no_space.
    template <class T>
    Ref<T> allocate(std::uint64_t extra_bytes = 0) {
        return Ref<T>{allocate_block(sizeof(T) + extra_bytes)};
    }
    /// A record that was allocated in this transaction: to fill without being saved.
    template <class T>
    T& fresh(Ref<T> ref) noexcept {
        return *static_cast<T*>(static_cast<void*>(base_ + ref.index * arena_format::kUnitBytes));
    }
    /// Gives a block back when the transaction is committed. `extra_bytes` as it was allocated.
    template <class T>
    void release(Ref<T> ref, std::uint64_t extra_bytes = 0) {
        freed_.push_back({ref.index, arena_format::size_class(sizeof(T) + extra_bytes)});
    }

    /// Whose first record it is.
    enum class Root { changes, keeper, view };
    std::uint32_t root(Root which = Root::changes) const noexcept;
    void set_root(std::uint32_t index, Root which = Root::changes);

    /// Says, as a part of the transaction, that the request `unique` (not 0) is carried out by it, and what is needed
    /// to answer it: a next server finds that exactly if the change was made. Kept until answered(); there is room for
    /// kAnswerSlots, more than threads can have requests in hand. Throws internal when there is none. Returns the slot.
    std::size_t seal(std::uint64_t unique, std::uint64_t value);
    struct Sealed {
        std::size_t slot = 0;
        std::uint64_t value = 0;
    };
    std::optional<Sealed> sealed(std::uint64_t unique) const noexcept;
    /// The kernel has the answer. Needs no transaction. Nothing happens where the slot is another request's.
    void answered(std::size_t slot, std::uint64_t unique) noexcept;
    /// No request that a former process had is open any more. Before a second thread seals or answers.
    void forget_former_answers() noexcept;

    /// A page for what servers and holder tell each other (session_page.h); zeros at first.
    std::byte* session_bytes() noexcept { return base_ + arena_format::kSessionOffset; }

    static void step() {
        std::atomic_signal_fence(std::memory_order_seq_cst);
        if (const auto hook = g_arena_step.load(std::memory_order_relaxed)) hook();
    }

private:
    struct FreedBlock {
        std::uint32_t index = 0;
        std::size_t size_class = 0;
    };

    Arena(store::UniqueFd file, std::byte* base) : file_(std::move(file)), base_(base) {}
    static Result<std::unique_ptr<Arena>> reserve_addresses(store::UniqueFd file);
    Result<void> map(std::uint64_t begin, std::uint64_t end);
    Result<void> check_and_map();
    bool log_is_sound() const noexcept;
    Result<void> grow(std::uint64_t& end_field, std::uint64_t needed_end, std::uint64_t limit);
    std::uint32_t allocate_block(std::uint64_t size_bytes);
    void put_on_free_lists();
    void set_log_used(std::uint64_t bytes) noexcept;
    void undo_to(std::uint64_t log_bytes) noexcept;
    arena_format::Header& header() const noexcept {
        return *static_cast<arena_format::Header*>(static_cast<void*>(base_));
    }
    std::span<arena_format::Answer, arena_format::kAnswerSlots> answers() const noexcept;

    store::UniqueFd file_;
    std::byte* base_ = nullptr;         // kMaxBytes of addresses.
    std::vector<FreedBlock> freed_;     // Of the open transaction; reused only after it.
    unsigned depth_ = 0;                // Open transactions.
    std::uint64_t former_answers_ = 0;  // Slots that a former process has sealed, a bit each.
};

}  // namespace lamina::unionfs
