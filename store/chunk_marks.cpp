#include "store/chunk_marks.h"

#include "store/error.h"

#include <cstring>
#include <optional>
#include <utility>

namespace lamina::store {

namespace {

bool is_same(const ChunkPlace& one, const ChunkPlace& other) {
    return one.pack == other.pack && one.frame_offset_bytes == other.frame_offset_bytes &&
           one.offset_in_frame_bytes == other.offset_in_frame_bytes && one.size_bytes == other.size_bytes;
}

}  // namespace

ChunkMarks::ChunkMarks(const std::string& packs_folder) : index_(ChunkIndex(packs_folder).snapshot()) {
    if (!index_->problems.empty()) throw Error(Errc::corrupt, index_->problems.front());
    for (const auto& segment : index_->segments) {
        segment->check_entries();
        const auto count = static_cast<std::size_t>(segment->entry_count());
        segments_.push_back({segment, std::vector<bool>(count), std::vector<bool>(count)});
    }
}

std::optional<ChunkMarks::Entry> ChunkMarks::find(const ChunkId& chunk) const {
    for (auto segment = segments_.rbegin(); segment != segments_.rend(); ++segment) {
        const auto position = segment->file->position_of(chunk);
        if (!position || !covers(index_format::decode(segment->file->entry(*position)).pack)) continue;
        return Entry{&*segment, *position};
    }
    return std::nullopt;
}

void ChunkMarks::mark(const ChunkId& chunk) {
    if (const auto entry = find(chunk)) {
        entry->segment->marked[entry->position] = true;
    } else {
        unplaced_.insert(chunk);
    }
}

bool ChunkMarks::is_needed(const NewChunk& at) const {
    const auto entry = find(at.id);
    if (!entry) return unplaced_.contains(at.id);
    const ChunkPlace place = index_format::decode(entry->segment->file->entry(entry->position));
    return entry->segment->marked[entry->position] && (is_same(place, at.place) || distrusted_.contains(place.pack));
}

bool ChunkMarks::claim(const NewChunk& at) {
    if (!is_needed(at)) return false;
    const auto entry = find(at.id);
    if (entry && index_format::decode(entry->segment->file->entry(entry->position)).pack == at.place.pack) {
        entry->segment->claimed[entry->position] = true;
    }
    return true;
}

std::set<std::uint32_t> ChunkMarks::unclaimed_packs() const {
    std::set<std::uint32_t> packs;
    for (const Segment& segment : segments_) {
        for (std::uint64_t i = 0; i < segment.marked.size(); ++i) {
            if (segment.marked[i] && !segment.claimed[i])
                packs.insert(index_format::decode(segment.file->entry(i)).pack);
        }
    }
    return packs;
}

std::uint64_t ChunkMarks::count(const std::function<bool(std::uint32_t pack, bool is_marked)>& stays) const {
    std::vector<std::uint64_t> at(segments_.size());
    std::uint64_t count = 0;
    const auto digest_at = [&](std::size_t i) { return segments_[i].file->entry(at[i]).digest.data(); };
    while (true) {
        const std::byte* least = nullptr;
        for (std::size_t i = 0; i < segments_.size(); ++i) {
            if (at[i] == segments_[i].marked.size()) continue;
            if (!least || std::memcmp(digest_at(i), least, Digest::kSizeBytes) < 0) least = digest_at(i);
        }
        if (!least) return count;
        bool is_there = false;
        for (std::size_t i = 0; i < segments_.size(); ++i) {
            if (at[i] == segments_[i].marked.size() || std::memcmp(digest_at(i), least, Digest::kSizeBytes) != 0)
                continue;
            const std::uint32_t pack = index_format::decode(segments_[i].file->entry(at[i])).pack;
            is_there = is_there || (covers(pack) && stays(pack, segments_[i].marked[at[i]]));
            ++at[i];
        }
        count += is_there;
    }
}

}  // namespace lamina::store
