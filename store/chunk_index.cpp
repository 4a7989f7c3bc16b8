#include "store/chunk_index.h"

#include "store/error.h"
#include "store/index_format.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <span>

// The list file names the segments and the packs that each covers. It is replaced by rename, and segments are never
// changed, so a reader needs no lock: it reads the list, then opens what it names. A segment that is gone by then
// means that there is a newer list. What was open already is taken over from the snapshot before.
//
// Segments are tiered by size: a new one that is not less than an eighth of the one before it is merged with it, and so
// on towards the older ones, so that there are few, each much smaller than the one before, and an entry is rewritten a
// few times in its life. Only neighbours in age are merged, so "the newest wins" stays true. Damaged segments are not
// merged: their packs drop out of the list, which makes the next start rebuild it.

namespace lamina::store {

namespace format = index_format;

namespace {

constexpr std::size_t kMostSegments = 8;
constexpr std::uint64_t kTierFactor = 8;
constexpr int kLoadTries = 20;

IndexSnapshot::Identity identity_of(const struct stat& st) {
    return {st.st_dev, st.st_ino, static_cast<std::uint64_t>(st.st_size), st.st_ctim.tv_sec, st.st_ctim.tv_nsec};
}

/// All zeros when there is no list.
IndexSnapshot::Identity identity_at(const std::string& list_path) {
    struct stat st {};
    if (::stat(list_path.c_str(), &st) == 0) return identity_of(st);
    if (errno != ENOENT) throw_errno(errno, "stat " + list_path);
    return {};
}

struct List {
    std::uint64_t generation = 0;
    std::vector<format::SegmentRow> segments;
    std::vector<format::PackRow> packs;
};

List parse_list(std::span<const std::byte> bytes) {
    const auto corrupt = [](const char* why) { return Error(Errc::corrupt, std::string("chunk index list: ") + why); };
    if (bytes.size() < sizeof(format::ListHeader) + sizeof(std::uint64_t)) throw corrupt("too short");
    const auto body = bytes.first(bytes.size() - sizeof(std::uint64_t));
    const auto header = format::load<format::ListHeader>(bytes, 0);
    if (header.magic != format::kListMagic) throw corrupt("not a list");
    if (header.version != format::kVersion) throw corrupt("unknown version");
    if (XXH3_64bits(body.data(), body.size()) != format::load<std::uint64_t>(bytes, body.size())) {
        throw corrupt("bad checksum");
    }
    if (header.segment_count > format::kMaxSegments || header.pack_count > format::kMaxPacks || header.zero != 0) {
        throw corrupt("bad header");
    }
    const std::size_t packs_from = sizeof header + header.segment_count * sizeof(format::SegmentRow);
    if (body.size() != packs_from + header.pack_count * sizeof(format::PackRow)) throw corrupt("bad size");
    List list{.generation = header.generation, .segments = {}, .packs = {}};
    for (std::uint32_t i = 0; i < header.segment_count; ++i) {
        list.segments.push_back(
            format::load<format::SegmentRow>(bytes, sizeof header + i * sizeof(format::SegmentRow)));
    }
    for (std::uint32_t i = 0; i < header.pack_count; ++i) {
        const auto row = format::load<format::PackRow>(bytes, packs_from + i * sizeof(format::PackRow));
        if (row.segment >= header.segment_count) throw corrupt("bad pack row");
        if (i > 0 && row.pack <= list.packs.back().pack) throw corrupt("packs out of order");
        list.packs.push_back(row);
    }
    return list;
}

std::vector<std::byte> encode_list(const List& list) {
    std::vector<std::byte> bytes;
    const auto put = [&](std::span<const std::byte> part) { bytes.insert(bytes.end(), part.begin(), part.end()); };
    put(format::bytes_of(format::ListHeader{format::kListMagic, format::kVersion,
                                            static_cast<std::uint32_t>(list.segments.size()), list.generation,
                                            static_cast<std::uint32_t>(list.packs.size()), 0}));
    put(std::as_bytes(std::span(list.segments)));
    put(std::as_bytes(std::span(list.packs)));
    put(format::bytes_of(XXH3_64bits(bytes.data(), bytes.size())));
    return bytes;
}

bool is_before(const format::Entry& a, const format::Entry& b) {
    return std::memcmp(a.digest.data(), b.digest.data(), a.digest.size()) < 0;
}

bool is_same_chunk(const format::Entry& a, const format::Entry& b) {
    return a.digest == b.digest;
}

/// Sorted, each chunk once: that of the highest pack.
std::vector<format::Entry> sorted_entries(std::span<const NewChunk> chunks) {
    std::vector<format::Entry> entries;
    entries.reserve(chunks.size());
    for (const NewChunk& chunk : chunks) entries.push_back(format::encode(chunk));
    std::sort(entries.begin(), entries.end(), [](const format::Entry& a, const format::Entry& b) {
        const int order = std::memcmp(a.digest.data(), b.digest.data(), a.digest.size());
        return order != 0 ? order < 0 : format::decode(a).pack > format::decode(b).pack;
    });
    entries.erase(std::unique(entries.begin(), entries.end(), is_same_chunk), entries.end());
    return entries;
}

}  // namespace

bool IndexSnapshot::covers(std::uint32_t pack) const {
    return std::binary_search(covered.begin(), covered.end(), pack);
}

std::optional<ChunkPlace> IndexSnapshot::find(const ChunkId& chunk) const {
    for (const auto& segment : segments) segment->prefetch(chunk);
    for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
        const auto place = (*segment)->find(chunk);
        if (place && covers(place->pack)) return place;
    }
    return std::nullopt;
}

std::vector<ChunkPlace> IndexSnapshot::find_all(const ChunkId& chunk) const {
    std::vector<ChunkPlace> places;
    for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
        const auto place = (*segment)->find(chunk);
        if (place && covers(place->pack)) places.push_back(*place);
    }
    return places;
}

/// What is to be published: the segments that stay and one new one, if any.
struct ChunkIndex::NextList {
    List list;
    std::vector<std::shared_ptr<const IndexSegment>> kept;
};

/// Reads several sorted runs as one, the oldest first. Of equal chunks that of the last run comes out, the others
/// never; what lies in a pack that does not count is left out.
class ChunkIndex::Merge {
public:
    explicit Merge(std::vector<std::uint32_t> covered) : covered_(std::move(covered)) {}
    void add_segment(const IndexSegment& segment) {
        if (segment.entry_count() > 0)
            add_entries({&segment.entry(0), static_cast<std::size_t>(segment.entry_count())});
    }
    void add_entries(std::span<const format::Entry> entries) {
        if (!entries.empty()) runs_.push_back(entries);
    }
    std::uint64_t count() const {
        Merge counted = *this;
        std::uint64_t count = 0;
        while (counted.next()) ++count;
        return count;
    }

    const format::Entry* next() {
        while (true) {
            const format::Entry* least = nullptr;
            for (const auto& run : runs_) {
                if (!run.empty() && (!least || is_before(run.front(), *least))) least = &run.front();
            }
            if (!least) return nullptr;
            const format::Entry* newest = nullptr;
            for (auto& run : runs_) {
                if (run.empty() || !is_same_chunk(run.front(), *least)) continue;
                if (std::binary_search(covered_.begin(), covered_.end(), format::decode(run.front()).pack)) {
                    newest = &run.front();
                }
                run = run.subspan(1);
            }
            if (newest) return newest;
        }
    }

private:
    std::vector<std::uint32_t> covered_;
    std::vector<std::span<const format::Entry>> runs_;
};

std::uint64_t ChunkIndex::compact_bytes(std::uint64_t pack_count, std::uint64_t entry_count) {
    const std::uint64_t list_bytes =
        sizeof(format::ListHeader) + pack_count * sizeof(format::PackRow) + sizeof(std::uint64_t);
    if (pack_count == 0) return list_bytes;
    return list_bytes + sizeof(format::SegmentRow) + format::entries_offset(format::fan_out_bits_for(entry_count)) +
           entry_count * sizeof(format::Entry);
}

ChunkIndex::ChunkIndex(std::string packs_folder)
    : packs_folder_(std::move(packs_folder)), list_path_(packs_folder_ + "/chunks.list"), snapshot_(load(nullptr)) {}

std::shared_ptr<const IndexSnapshot> ChunkIndex::snapshot() const {
    const std::lock_guard lock(snapshot_mutex_);
    return snapshot_;
}

std::shared_ptr<const IndexSnapshot> ChunkIndex::refresh(const std::shared_ptr<const IndexSnapshot>& seen) {
    if (identity_at(list_path_) == seen->identity) return seen;
    const std::lock_guard loading(load_mutex_);
    const auto now = snapshot();
    if (now != seen && identity_at(list_path_) == now->identity) return now;  // Another thread has loaded it.
    auto loaded = load(now);
    const std::lock_guard lock(snapshot_mutex_);
    snapshot_ = loaded;
    return loaded;
}

/// Takes over from `before` (may be null) what is still named.
std::shared_ptr<const IndexSnapshot> ChunkIndex::load(const std::shared_ptr<const IndexSnapshot>& before) const {
    std::map<std::uint64_t, std::shared_ptr<const IndexSegment>> open;
    if (before) {
        for (const auto& segment : before->segments) open.emplace(segment->number(), segment);
    }
    for (int left = kLoadTries;; --left) {
        const auto snapshot = std::make_shared<IndexSnapshot>();
        List list;
        try {
            snapshot->list_file = open_read(list_path_);
            const int fd = snapshot->list_file.get();
            struct stat st {};
            if (::fstat(fd, &st) != 0) throw_errno(errno, "stat " + list_path_);
            snapshot->identity = identity_of(st);
            if (snapshot->identity.size_bytes > format::kMaxListBytes) {
                throw Error(Errc::corrupt, "chunk index list: too large");
            }
            std::vector<std::byte> bytes(static_cast<std::size_t>(st.st_size));
            read_exact(fd, 0, bytes, list_path_);
            list = parse_list(bytes);
        } catch (const Error& error) {  // A new store has no list; a damaged one is made anew from the packs.
            if (error.code() != Errc::not_found && error.code() != Errc::corrupt) throw;
            if (error.code() == Errc::corrupt) snapshot->problems.push_back(error.what());
            if (before) {  // Who has the index open serves on from it, and the next list that it publishes is whole.
                snapshot->generation = before->generation;
                snapshot->segments = before->segments;
                snapshot->packs = before->packs;
                snapshot->covered = before->covered;
            }
            return snapshot;
        }
        snapshot->generation = list.generation;
        std::vector<std::optional<std::size_t>> positions;
        for (const format::SegmentRow& row : list.segments) {
            try {
                auto& segment = open[row.number];
                if (!segment) segment = IndexSegment::open(segment_path(packs_folder_, row.number), row.number);
                if (segment->head_checksum() != row.head_checksum) throw Error(Errc::corrupt, "not the listed one");
                positions.push_back(snapshot->segments.size());
                snapshot->segments.push_back(segment);
            } catch (const Error& error) {  // The rest of the index must go on serving.
                if (error.code() != Errc::not_found && error.code() != Errc::corrupt) throw;
                snapshot->problems.push_back("chunk index segment " + std::to_string(row.number) + ": " + error.what());
                positions.push_back(std::nullopt);
            }
        }
        // Something missing or odd: if the list was replaced meanwhile, that is why.
        if (!snapshot->problems.empty() && left > 1 && identity_at(list_path_) != snapshot->identity) continue;
        for (const format::PackRow& row : list.packs) {
            if (!positions[row.segment]) continue;
            snapshot->packs.emplace(row.pack, *positions[row.segment]);
            snapshot->covered.push_back(row.pack);
        }
        return snapshot;
    }
}

std::uint64_t ChunkIndex::next_generation(const IndexSnapshot& now) const {
    std::uint64_t last = now.generation;
    for (const std::string& name : list_folder(packs_folder_)) {
        if (const auto number = segment_number(name)) last = std::max(last, *number);
    }
    return last + 1;
}

/// Writes what `merge` gives as the newest segment.
void ChunkIndex::append_segment(NextList& next, Merge& merge) const {
    IndexSegmentWriter writer(segment_path(packs_folder_, next.list.generation), next.list.generation, merge.count());
    while (const format::Entry* const entry = merge.next()) writer.add(*entry);
    next.list.segments.push_back({next.list.generation, writer.finish()});
}

void ChunkIndex::update(const std::optional<AddedPack>& added, std::span<const std::uint32_t> removed) {
    const std::lock_guard writing(write_mutex_);
    const auto now = refresh(snapshot());
    std::map<std::uint32_t, std::shared_ptr<const IndexSegment>> covered;  // null: the new segment.
    std::vector<std::uint32_t> covered_numbers;
    for (const auto& [pack, segment] : now->packs) covered.emplace(pack, now->segments[segment]);
    for (const std::uint32_t pack : removed) covered.erase(pack);
    const bool is_new = added && !now->packs.contains(added->pack);
    if (!is_new && covered.size() == now->packs.size()) return;
    if (is_new) covered.emplace(added->pack, nullptr);
    for (const auto& [pack, segment] : covered) covered_numbers.push_back(pack);

    NextList next;
    next.list.generation = next_generation(*now);
    for (const auto& segment : now->segments) {  // One of which nothing counts any more goes.
        const auto is_used = [&](const auto& pair) { return pair.second == segment; };
        if (std::any_of(covered.begin(), covered.end(), is_used)) next.kept.push_back(segment);
    }
    const std::vector<format::Entry> entries = sorted_entries(is_new ? added->chunks : std::span<const NewChunk>());
    std::vector<std::shared_ptr<const IndexSegment>> merged;
    std::uint64_t merged_count = entries.size();
    while (is_new && !next.kept.empty() &&
           (next.kept.size() >= kMostSegments || merged_count * kTierFactor >= next.kept.back()->entry_count())) {
        try {
            next.kept.back()->check_entries();
        } catch (const Error& error) {  // Not to be copied into a new one; it serves on as far as it can.
            if (error.code() != Errc::corrupt || next.kept.size() + 1 >= format::kMaxSegments) throw;
            break;
        }
        merged_count += next.kept.back()->entry_count();
        merged.push_back(next.kept.back());
        next.kept.pop_back();
    }
    const auto position_of = [&](const std::shared_ptr<const IndexSegment>& segment) {
        const auto found = std::find(next.kept.begin(), next.kept.end(), segment);  // Not kept: it is in the new one.
        return static_cast<std::uint32_t>(found - next.kept.begin());
    };
    for (const auto& [pack, segment] : covered) next.list.packs.push_back({pack, position_of(segment)});
    for (const auto& segment : next.kept) next.list.segments.push_back({segment->number(), segment->head_checksum()});
    if (is_new) {
        Merge merge(covered_numbers);
        for (auto segment = merged.rbegin(); segment != merged.rend(); ++segment) merge.add_segment(**segment);
        merge.add_entries(entries);
        append_segment(next, merge);
    }
    publish(next);
}

void ChunkIndex::compact() {
    const std::lock_guard writing(write_mutex_);
    const auto now = refresh(snapshot());
    NextList next;
    next.list.generation = next_generation(*now);
    Merge merge(now->covered);
    for (const auto& segment : now->segments) {
        segment->check_entries();
        merge.add_segment(*segment);
    }
    for (const std::uint32_t pack : now->covered) next.list.packs.push_back({pack, 0});
    if (!now->covered.empty()) append_segment(next, merge);
    publish(next);
}

void ChunkIndex::replace(std::vector<std::uint32_t> packs, std::span<const NewChunk> chunks) {
    const std::lock_guard writing(write_mutex_);
    const auto now = refresh(snapshot());
    std::sort(packs.begin(), packs.end());
    packs.erase(std::unique(packs.begin(), packs.end()), packs.end());
    NextList next;
    next.list.generation = next_generation(*now);
    for (const std::uint32_t pack : packs) next.list.packs.push_back({pack, 0});
    if (!packs.empty()) {
        const std::vector<format::Entry> entries = sorted_entries(chunks);
        IndexSegmentWriter writer(segment_path(packs_folder_, next.list.generation), next.list.generation,
                                  entries.size());
        for (const format::Entry& entry : entries) writer.add(entry);
        next.list.segments.push_back({next.list.generation, writer.finish()});
    }
    publish(next);
}

void ChunkIndex::publish(const NextList& next) {
    write_file_atomically(list_path_, encode_list(next.list));
    refresh(snapshot());
    remove_strays(next);
}

/// Segments that no list names, and what a crash left. Others may have them mapped: they keep what they have.
void ChunkIndex::remove_strays(const NextList& next) const {
    for (const std::string& name : list_folder(packs_folder_)) {
        const auto number = segment_number(name);
        const auto is_listed = [&](const format::SegmentRow& row) { return row.number == number; };
        if (number && std::any_of(next.list.segments.begin(), next.list.segments.end(), is_listed)) continue;
        const bool is_temporary =
            (name.starts_with("chunks-") && name.ends_with(".new")) || name.starts_with("chunks.list.tmp");
        if (!number && !is_temporary) continue;
        try {
            remove_file(packs_folder_ + "/" + name);
        } catch (const Error&) {
            // The list is published; what cannot go now goes with the next one.
        }
    }
}

}  // namespace lamina::store
