#include "store/job_packs.h"

#include "store/error.h"
#include "store/file.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

// A chunk that another layer of the job has put into the open pack, or into the one that is just being committed, is
// known: the layer that relies on it commits later, because commits happen one after the other and each of them ends
// the open pack. So whatever a committed layer needs is in packs that are named by a committed row.
//
// A pack that is ended because it is full is committed without a layer. Nobody but this job's lease keeps it then; when
// the job fails, its chunks are there for the next try, or for gc.

namespace lamina::store {

namespace {

constexpr std::uint32_t kMostNumbersAtOnce = 16;

}  // namespace

class JobPacks::Lane : public ChunkSink {
public:
    explicit Lane(JobPacks& packs) : packs_(packs) {}

    ChunkId add(std::span<const std::byte> data) override {
        const ChunkId id{Digest::of(data)};
        for (;;) {
            const auto ended_packs = packs_.ended_packs_unless_known(id);
            if (!ended_packs || packs_.lease_.find(*packs_.core_.chunks, id)) return id;
            auto open = packs_.open_pack(*ended_packs);
            if (open && add_to(std::move(open), id, data)) break;  // Else a pack ended, which may have had the chunk.
        }
        packs_.end_if_full(pack_);
        return id;
    }

private:
    bool add_to(std::shared_ptr<PackBuilder> open, const ChunkId& id, std::span<const std::byte> data) {
        if (open != pack_) {
            pack_ = std::move(open);
            lane_ = &pack_->add_lane();
        }
        return pack_->add(*lane_, id, data);
    }

    JobPacks& packs_;
    std::shared_ptr<PackBuilder> pack_;
    PackBuilder::Lane* lane_ = nullptr;
};

/// Takes away what a failed commit had already moved into packs/ and layers/, unless its transaction had happened.
class JobPacks::Undo {
public:
    explicit Undo(StoreCore& core) : core_(core) {}
    ~Undo() {
        if (is_committed) return;
        try {
            if (pack && !core_.index->has_pack(*pack)) remove_file(pack_path(core_.paths.packs(), *pack));
            if (layer && !core_.index->find_layer(*layer)) remove_file(core_.paths.recipe(*layer));
        } catch (const Error&) {  // The first error is on its way; gc and the next open remove strays.
        }
    }
    Undo(const Undo&) = delete;
    Undo& operator=(const Undo&) = delete;

    std::optional<std::uint32_t> pack;
    std::optional<DiffId> layer;
    bool is_committed = false;

private:
    StoreCore& core_;
};

JobPacks::JobPacks(StoreCore& core, Leases::Lease& lease, std::string staging_folder, const Limits& limits)
    : core_(core),
      lease_(lease),
      staging_folder_(std::move(staging_folder)),
      limits_(limits),
      pool_(std::thread::hardware_concurrency(), kImportLevel) {}

std::unique_ptr<ChunkSink> JobPacks::lane() {
    return std::make_unique<Lane>(*this);
}

std::optional<std::uint64_t> JobPacks::ended_packs_unless_known(const ChunkId& id) {
    const std::lock_guard lock(mutex_);
    if ((open_ && open_->contains(id)) || (ending_ && ending_->contains(id))) return std::nullopt;
    return ended_packs_;
}

std::shared_ptr<PackBuilder> JobPacks::open_pack(std::uint64_t ended_packs) {
    const std::lock_guard lock(mutex_);
    if (ended_packs_ != ended_packs) return nullptr;
    if (open_) return open_;
    if (numbers_.empty()) {  // Each time twice as many: a transaction for each pack would cost a sync each.
        numbers_ = core_.index->allocate_packs(std::clamp(pack_count_, 1U, kMostNumbersAtOnce));
        std::ranges::reverse(numbers_);
    }
    lease_.keep_pack(numbers_.back());
    open_ = std::make_shared<PackBuilder>(
        PackBuilder::Options{
            .packs_folder = core_.paths.packs(), .staging_folder = staging_folder_, .pack_number = numbers_.back()},
        pool_);
    numbers_.pop_back();
    ++pack_count_;
    return open_;
}

void JobPacks::end_if_full(const std::shared_ptr<PackBuilder>& pack) {
    if (pack->raw_bytes() < limits_.raw_bytes && pack->chunk_count() < limits_.chunks) return;
    const std::lock_guard committing(commit_mutex_);
    {
        const std::lock_guard lock(mutex_);
        if (open_ != pack) return;  // Another thread has done it.
    }
    commit(nullptr);
}

void JobPacks::commit_layer(const LayerRow& layer, const std::string& recipe) {
    const std::lock_guard committing(commit_mutex_);
    const NewLayer added{layer, recipe};
    commit(&added);
}

void JobPacks::commit_chunks() {
    const std::lock_guard committing(commit_mutex_);
    commit(nullptr);
}

void JobPacks::commit(const NewLayer* layer) {
    if (failure_) std::rethrow_exception(failure_);
    std::shared_ptr<PackBuilder> pack;
    {
        const std::lock_guard lock(mutex_);
        pack = ending_ = std::exchange(open_, nullptr);
        ++ended_packs_;
    }
    try {
        publish(pack.get(), layer);
    } catch (...) {  // Kept for the others, and on its way to this one's caller.
        failure_ = std::current_exception();
        throw;
    }
    const std::lock_guard lock(mutex_);
    ending_ = nullptr;
}

void JobPacks::publish(PackBuilder* pack, const NewLayer* layer) {
    Undo undo(core_);
    std::optional<FinishedPack> finished;
    if (pack) {
        undo.pack = pack->number();
        finished = pack->finish();
    }
    if (layer) {
        undo.layer = layer->row.diff_id;
        rename_durably(layer->recipe, core_.paths.recipe(layer->row.diff_id));
    }
    const std::lock_guard publishing(core_.publishing);
    std::optional<PackRow> row;
    if (finished) row = PackRow{finished->number, finished->file_bytes, finished->raw_bytes};
    if (layer) {
        core_.index->add_layer(layer->row, row);
    } else if (row) {
        core_.index->replace_packs({*row}, {});
    }
    undo.is_committed = true;
    if (finished) add_segment(*finished, layer, undo);
}

/// Lets the pack's chunks be found. When that fails, on a full disk, the rows are taken back: nobody can have used the
/// layer, because its claim is ours and the pack was hidden from the moment that the chunk index might have named it.
void JobPacks::add_segment(const FinishedPack& pack, const NewLayer* layer, Undo& undo) {
    core_.leases.hide({pack.number});
    try {
        core_.chunks->add_segment(pack);
    } catch (const Error&) {
        Index::Victims victims{.packs = {pack.number}};
        if (layer) victims.layers.push_back(layer->row.diff_id);
        core_.index->remove(victims);
        undo.is_committed = false;
        throw;
    }
    core_.leases.show({pack.number});
}

}  // namespace lamina::store
