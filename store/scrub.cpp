#include "store/scrub.h"

#include "store/error.h"
#include "store/pack_format.h"
#include "store/pack_reader.h"
#include "store/rate_limit.h"
#include "store/recipe.h"

#include <algorithm>
#include <ctime>
#include <map>
#include <set>
#include <span>
#include <unordered_set>
#include <utility>

// Packs are read in the order of their numbers, which only grow: what is written meanwhile is read in the same pass.
// The place is written down now and then, and whatever ends the pass, so that a pass over a large store gets through in
// many short idle times.

namespace lamina::store {

namespace {

constexpr std::uint64_t kRememberEveryBytes = 64ull << 20;
constexpr std::size_t kMaxProblems = 1000;

class Scrub {
public:
    Scrub(StoreCore& core, const UpkeepRequest& request, const std::stop_token& stop)
        : core_(core),
          request_(request),
          stop_(stop),
          rate_(request.bytes_per_second),
          files_(core.paths.packs()),
          state_(core.index->scrub_state()) {}

    ScrubResult run() {
        if (!state_.is_under_way()) {
            state_ = {.pack = 1, .began_at = std::time(nullptr), .ended_at = state_.ended_at};
            remember();
        }
        for (const PackRow& pack : core_.index->packs()) {
            if (pack.number < state_.pack) done_bytes_ += pack.file_bytes;
            total_bytes_ += pack.file_bytes;
        }
        try {
            while (const auto pack = next_pack()) read_pack(*pack);
        } catch (const Error&) {  // Stopped, or worse: the next one goes on from here.
            remember();
            throw;
        }
        state_.pack = 0;
        state_.offset_bytes = 0;
        state_.ended_at = std::time(nullptr);
        remember();
        name_images();
        return std::move(result_);
    }

private:
    std::optional<PackRow> next_pack() {
        for (const PackRow& pack : core_.index->packs()) {
            if (pack.number >= state_.pack) return pack;
        }
        return std::nullopt;
    }

    void read_pack(const PackRow& pack) {
        if (pack.number != state_.pack) state_.offset_bytes = 0;
        state_.pack = pack.number;
        std::vector<NewChunk> table;
        try {
            table = read_pack_table(core_.paths.packs(), pack.number);
        } catch (const Error& error) {
            found_bad(pack.number, error, {});
        }
        for (std::size_t begin = 0; begin < table.size();) {
            const ChunkPlace& frame = table[begin].place;
            std::size_t end = begin;
            while (end < table.size() && table[end].place.frame_offset_bytes == frame.frame_offset_bytes) ++end;
            if (frame.frame_offset_bytes >= state_.offset_bytes) {
                read_frame(std::span(table).subspan(begin, end - begin));
                state_.offset_bytes = frame.frame_offset_bytes + frame.frame_size_bytes;
            }
            begin = end;
        }
        done_bytes_ += pack.file_bytes;
        ++state_.pack;
        state_.offset_bytes = 0;
    }

    /// `chunks`: all of one frame.
    void read_frame(std::span<const NewChunk> chunks) {
        const ChunkPlace& place = chunks.front().place;
        rate_.take(place.frame_size_bytes, stop_);
        try {
            const auto frame = files_.read_frame(place);
            for (const NewChunk& chunk : chunks) {
                if (Digest::of(frame->bytes_at(chunk.id, chunk.place.offset_in_frame_bytes)) == chunk.id.digest)
                    continue;
                throw Error(Errc::corrupt, frame_name(place.pack, place.frame_offset_bytes) + ": chunk " +
                                               chunk.id.digest.hex() + " has other bytes than its digest names");
            }
        } catch (const Error& error) {
            found_bad(place.pack, error, chunks);
        }
        result_.read_bytes += place.frame_size_bytes;
        if (request_.progress) {
            request_.progress({"reading", "pack " + std::to_string(place.pack),
                               done_bytes_ + place.frame_offset_bytes + place.frame_size_bytes, total_bytes_});
        }
        since_remembered_ += place.frame_size_bytes;
        if (since_remembered_ >= kRememberEveryBytes) remember();
    }

    /// What cannot be read because it is gone is no finding.
    void found_bad(std::uint32_t pack, const Error& error, std::span<const NewChunk> chunks) {
        if (error.code() != Errc::corrupt && error.code() != Errc::not_found && error.code() != Errc::unavailable)
            throw;
        if (!core_.index->has_pack(pack)) return;
        ++state_.bad_frames;
        ++result_.bad_frames;
        for (const NewChunk& chunk : chunks) bad_.insert(chunk.id);
        if (result_.problems.size() < kMaxProblems) result_.problems.emplace_back(error.what());
        remember();
    }

    /// Which images need what is bad; verify names the files.
    void name_images() {
        if (bad_.empty()) return;
        std::set<DiffId> hit;
        for (const LayerRow& layer : core_.index->layers()) {
            try {
                const std::vector<ChunkId> chunks = Recipe::open(core_.paths.recipe(layer.diff_id))->chunks();
                const auto is_bad = [&](const ChunkId& chunk) { return bad_.contains(chunk); };
                if (std::any_of(chunks.begin(), chunks.end(), is_bad)) hit.insert(layer.diff_id);
            } catch (const Error&) {  // Collected meanwhile, or verify's business.
            }
        }
        for (const ImageRow& image : core_.index->images()) {
            const auto is_hit = [&](const DiffId& layer) { return hit.contains(layer); };
            if (!std::any_of(image.layers.begin(), image.layers.end(), is_hit)) continue;
            result_.problems.push_back("image " + display_name(image) +
                                       ": needs what is damaged; lamina verify --data names the files");
        }
    }

    void remember() {
        since_remembered_ = 0;
        core_.index->set_scrub_state(state_);
    }

    StoreCore& core_;
    const UpkeepRequest& request_;
    const std::stop_token& stop_;
    RateLimit rate_;
    PackFiles files_;
    ScrubState state_;
    ScrubResult result_;
    std::unordered_set<ChunkId> bad_;
    std::uint64_t since_remembered_ = 0;
    std::uint64_t done_bytes_ = 0;
    std::uint64_t total_bytes_ = 0;
};

}  // namespace

bool is_scrub_due(StoreCore& core, std::int64_t pause_seconds) {
    const ScrubState state = core.index->scrub_state();
    const std::int64_t since = std::time(nullptr) - state.ended_at;
    return state.is_under_way() || since >= pause_seconds || since < 0;  // Clocks may be set back.
}

ScrubResult scrub(StoreCore& core, const UpkeepRequest& request, const std::stop_token& stop) {
    return Scrub(core, request, stop).run();
}

}  // namespace lamina::store
