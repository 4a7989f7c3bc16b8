#pragma once

#include "fuse/arena.h"

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

namespace lamina::unionfs {

/// Where the buckets of a hash table lie, as a part of a record. Zeros are an empty table.
struct HashRoot {
    static constexpr std::uint32_t kFirstSegment = 256;
    std::uint64_t item_count;
    std::uint32_t bucket_count;
    std::uint32_t reserved;
    /// Segment 0 has the first 256 buckets, segment n the next 256 * 2^(n-1).
    std::array<std::uint32_t, 24> segments;
};
static_assert(sizeof(HashRoot) == 112);

/// A linear hash table of records in an arena: it grows by one bucket at a time, so that no insertion is slow.
///
/// Record has `Ref<Record> hash_next` and `std::uint64_t hash() const`. `root` lies in the arena.
template <class Record>
class ArenaHash {
public:
    ArenaHash(Arena& arena, const HashRoot& root) : arena_(arena), root_(root) {}

    std::uint64_t size() const noexcept { return root_.item_count; }

    /// Memory that the next insertion takes for buckets; usually none.
    std::uint64_t growth_bytes() const noexcept {
        if (root_.item_count < root_.bucket_count) return 0;
        const std::uint32_t segment = segment_of(root_.bucket_count);
        return segment >= root_.segments.size() || root_.segments[segment] != 0 ? 0 : segment_buckets(segment) * 4;
    }

    template <class IsIt>
    Ref<Record> find(std::uint64_t hash, IsIt&& is_it) const {
        if (root_.bucket_count == 0) return {};
        for (Ref<Record> at = bucket(bucket_of(hash)); at; at = arena_.get(at).hash_next)
            if (is_it(arena_.get(at))) return at;
        return {};
    }
    /// `record` was allocated in this transaction.
    void insert(Ref<Record> record) {
        if (root_.item_count >= root_.bucket_count) grow();
        const Ref<Record>& head = bucket(bucket_of(arena_.get(record).hash()));
        arena_.fresh(record).hash_next = head;
        arena_.set(head, record);
        arena_.set(root_.item_count, root_.item_count + 1);
    }
    void erase(Ref<Record> record) {
        const Ref<Record>* link = &bucket(bucket_of(arena_.get(record).hash()));
        while (*link && *link != record) link = &arena_.get(*link).hash_next;
        if (!*link) return;
        arena_.set(*link, arena_.get(record).hash_next);
        arena_.set(root_.item_count, root_.item_count - 1);
    }
    /// `visit` may not change the table.
    template <class Visit>
    void for_each(Visit&& visit) const {
        for (std::uint32_t number = 0; number < root_.bucket_count; ++number)
            for (Ref<Record> at = bucket(number); at; at = arena_.get(at).hash_next) visit(at);
    }

private:
    /// The bucket's first word; segments are arrays of Ref<Record>.
    const Ref<Record>& bucket(std::uint32_t number) const {
        const std::uint32_t segment = segment_of(number);
        const std::uint32_t first = segment == 0 ? 0 : HashRoot::kFirstSegment << (segment - 1);
        return (&arena_.get(Ref<Ref<Record>>{root_.segments[segment]}))[number - first];
    }
    static std::uint32_t segment_of(std::uint32_t number) {
        return static_cast<std::uint32_t>(std::bit_width(number / HashRoot::kFirstSegment));
    }
    std::uint32_t bucket_of(std::uint64_t hash) const {
        const std::uint32_t mask = std::bit_ceil(root_.bucket_count) - 1;
        const std::uint32_t number = static_cast<std::uint32_t>(hash) & mask;
        return number < root_.bucket_count ? number : number & (mask >> 1);
    }
    static std::uint64_t segment_buckets(std::uint32_t segment) {
        return std::uint64_t{HashRoot::kFirstSegment} << (segment == 0 ? 0 : segment - 1);
    }
    void add_segment(std::uint32_t segment) {
        const std::uint64_t buckets = segment_buckets(segment);
        // Never given back, so it may be larger than any block.
        arena_.set(root_.segments[segment], arena_.allocate<Ref<Record>>((buckets - 1) * sizeof(Ref<Record>)).index);
    }
    void grow() {
        if (root_.bucket_count == 0) {
            add_segment(0);
            arena_.set(root_.bucket_count, HashRoot::kFirstSegment);
            return;
        }
        const std::uint32_t added = root_.bucket_count;
        if (segment_of(added) >= root_.segments.size()) return;  // 2^31 buckets; chains get longer.
        if (root_.segments[segment_of(added)] == 0) add_segment(segment_of(added));
        const std::uint32_t buddy = added - std::bit_floor(added);
        Ref<Record> at = bucket(buddy);
        arena_.set(bucket(buddy), Ref<Record>{});
        arena_.set(root_.bucket_count, added + 1);
        while (at) {
            const Ref<Record> next = arena_.get(at).hash_next;
            const Ref<Record>& head = bucket(bucket_of(arena_.get(at).hash()));
            arena_.set(arena_.get(at).hash_next, head);
            arena_.set(head, at);
            at = next;
        }
    }

    Arena& arena_;
    const HashRoot& root_;
};

/// Spreads a number over 64 bits (the finalizer of MurmurHash3).
constexpr std::uint64_t mix(std::uint64_t value) {
    value = (value ^ (value >> 33)) * 0xff51afd7ed558ccdU;
    value = (value ^ (value >> 33)) * 0xc4ceb9fe1a85ec53U;
    return value ^ (value >> 33);
}

}  // namespace lamina::unionfs
