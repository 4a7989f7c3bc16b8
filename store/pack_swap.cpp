#include "store/pack_swap.h"

#include "store/error.h"

#include <algorithm>
#include <mutex>
#include <unordered_set>

// While chunks were copied, a job may have found others of a source that nothing needed then. While the job runs, its
// lease keeps that source. When it has ended, its layer is there, also when the job failed and no image has it: so the
// sources are judged by all layers and roots, read under the leases' lock, in the same step as the transaction, and by
// marks that have them all.

namespace lamina::store {

namespace {

constexpr int kPatientRounds = 10;

class Swap {
public:
    Swap(StoreCore& core, Liveness& liveness, const FinishedPack& pack)
        : core_(core), liveness_(liveness), pack_(pack) {
        for (const NewChunk& chunk : pack.chunks) copied_.insert(chunk.id);
    }

    std::vector<std::uint32_t> run(const std::vector<std::uint32_t>& sources) {
        const std::lock_guard publishing(core_.publishing);
        std::vector<std::uint32_t> removed;
        for (int round = 1; !try_commit(sources, round < kPatientRounds, removed); ++round) {
        }
        core_.chunks->replace_packs(&pack_, removed);
        core_.leases.show(sources);  // Those that are out cannot be found any more.
        return removed;
    }

private:
    bool is_copied(std::uint32_t source) const {
        const std::vector<NewChunk> table = read_pack_table(core_.paths.packs(), source);
        return std::all_of(table.begin(), table.end(), [&](const NewChunk& chunk) {
            return copied_.contains(chunk.id) || !liveness_.is_needed(chunk);
        });
    }
    std::vector<std::uint32_t> copied_of(std::vector<std::uint32_t> sources) const {
        std::erase_if(sources, [&](std::uint32_t source) { return !is_copied(source); });
        return sources;
    }

    bool try_commit(const std::vector<std::uint32_t>& sources, bool is_patient, std::vector<std::uint32_t>& removed) {
        liveness_.mark(liveness_.stored());
        const std::vector<std::uint32_t> copied = copied_of(sources);
        bool is_done = false;
        core_.leases.retire(copied, pack_.number,
                            [&](const Leases::Held& held, const std::vector<std::uint32_t>& free) {
                                removed = free;
                                const Roots now = liveness_.stored(held);
                                if (!liveness_.has_marked(now)) {
                                    if (is_patient) return false;
                                    liveness_.mark(now);  // Jobs keep coming: now they wait.
                                    removed = copied_of(free);
                                }
                                core_.index->replace_packs(
                                    {{pack_.number, pack_.file_bytes, pack_.raw_bytes, pack_.dense_bytes}}, removed);
                                is_done = true;
                                return true;
                            });
        return is_done;
    }

    StoreCore& core_;
    Liveness& liveness_;
    const FinishedPack& pack_;
    std::unordered_set<ChunkId> copied_;
};

}  // namespace

std::vector<std::uint32_t> swap_packs(StoreCore& core, Liveness& liveness, const FinishedPack& pack,
                                      const std::vector<std::uint32_t>& sources) {
    return Swap(core, liveness, pack).run(sources);
}

}  // namespace lamina::store
