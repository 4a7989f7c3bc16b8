#include "store/chunk_arrivals.h"

#include "store/job_packs.h"
#include "store/store_core.h"

#include <algorithm>
#include <span>
#include <string>
#include <utility>

namespace lamina::store {

ChunkArrivals::~ChunkArrivals() {
    if (!worker_.joinable()) return;
    worker_.request_stop();
    worker_.join();
    end(std::exchange(waiting_, {}), Error(Errc::cancelled, "fetch: the store is being closed"));
}

std::vector<std::byte> ChunkArrivals::Arrival::find(const ChunkId& chunk) const {
    const auto piece = std::ranges::find(pieces, chunk, &Piece::chunk);
    if (piece == pieces.end()) return {};
    const auto found = std::span(bytes).subspan(piece->offset_bytes, piece->size_bytes);
    return {found.begin(), found.end()};
}

void ChunkArrivals::add(Shared arrival, const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait(lock, stop, [&] { return bytes_ < kMostBytes; }))
        throw Error(Errc::cancelled, "fetch: cancelled");
    bytes_ += arrival->bytes.size();
    for (const Piece& piece : arrival->pieces) chunks_.try_emplace(piece.chunk, arrival);
    waiting_.push_back(std::move(arrival));
    if (!worker_.joinable()) worker_ = std::jthread([this](const std::stop_token& ending) { work(ending); });
    changed_.notify_all();
}

std::vector<std::byte> ChunkArrivals::find(const ChunkId& chunk) const {
    Shared arrival;
    {
        const std::lock_guard lock(mutex_);
        const auto found = chunks_.find(chunk);
        if (found == chunks_.end()) return {};
        arrival = found->second;
    }
    return arrival->find(chunk);
}

void ChunkArrivals::work(const std::stop_token& stop) {
    while (true) {
        std::vector<Shared> arrivals;
        {
            std::unique_lock lock(mutex_);
            if (!changed_.wait(lock, stop, [&] { return !waiting_.empty(); })) return;
            if (stop.stop_requested()) return;
            arrivals = std::exchange(waiting_, {});
        }
        std::optional<Error> failure;
        try {
            store(arrivals);
        } catch (const Error& error) {
            failure = error;
        } catch (const std::exception& error) {  // A thread's entry.
            failure = Error(Errc::internal, std::string("fetch: ") + error.what());
        }
        end(arrivals, failure);
    }
}

void ChunkArrivals::store(const std::vector<Shared>& arrivals) {
    Leases::Lease lease = core_.leases.take();
    const JobFolder folder(core_);
    JobPacks packs(core_, lease, folder.path(), JobPacks::Limits{});
    const auto lane = packs.lane();
    for (const Shared& arrival : arrivals) {
        for (const Piece& piece : arrival->pieces) {
            lane->add(std::span(arrival->bytes).subspan(piece.offset_bytes, piece.size_bytes));
        }
    }
    packs.commit_chunks();
}

void ChunkArrivals::end(const std::vector<Shared>& arrivals, const std::optional<Error>& error) {
    {
        const std::lock_guard lock(mutex_);
        for (const Shared& arrival : arrivals) {
            bytes_ -= arrival->bytes.size();
            for (const Piece& piece : arrival->pieces) {
                const auto found = chunks_.find(piece.chunk);
                if (found != chunks_.end() && found->second == arrival) chunks_.erase(found);
            }
        }
        changed_.notify_all();
    }
    for (const Shared& arrival : arrivals) arrival->on_end(error);
}

}  // namespace lamina::store
