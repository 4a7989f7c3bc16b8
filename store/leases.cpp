#include "store/leases.h"

#include "store/error.h"

#include <algorithm>

namespace lamina::store {

Leases::Lease Leases::take() {
    const std::lock_guard lock(mutex_);
    return Lease(*this, held_.emplace(held_.end()));
}

Leases::Lease::~Lease() {
    if (!owner_) return;
    const std::lock_guard lock(owner_->mutex_);
    owner_->held_.erase(held_);
}

void Leases::Lease::keep_layer(const DiffId& layer) {
    const std::lock_guard lock(owner_->mutex_);
    held_->layers.insert(layer);
}

void Leases::Lease::keep_tree(const TreeDigest& tree) {
    const std::lock_guard lock(owner_->mutex_);
    held_->trees.insert(tree);
}

void Leases::Lease::keep_pack(std::uint32_t pack) {
    const std::lock_guard lock(owner_->mutex_);
    held_->packs.insert(pack);
}

std::optional<ChunkPlace> Leases::Lease::find(ChunkStore& chunks, const ChunkId& chunk) {
    const std::lock_guard lock(owner_->mutex_);
    const auto place = chunks.find(chunk);
    if (!place || owner_->hidden_.contains(place->pack)) return std::nullopt;
    held_->packs.insert(place->pack);
    return place;
}

Leases::Claim Leases::claim_layer(const DiffId& layer, std::stop_token stop) {
    std::unique_lock lock(mutex_);
    if (!claim_ended_.wait(lock, stop, [&] { return !claimed_.contains(layer); })) {
        throw Error(Errc::cancelled, "stopped while another job imports layer " + layer.digest.text());
    }
    claimed_.insert(layer);
    return Claim(*this, layer);
}

Leases::Claim::~Claim() {
    if (!owner_) return;
    {
        const std::lock_guard lock(owner_->mutex_);
        owner_->claimed_.erase(layer_);
    }
    owner_->claim_ended_.notify_all();
}

void Leases::hide(const std::vector<std::uint32_t>& packs) {
    const std::lock_guard lock(mutex_);
    hidden_.insert(packs.begin(), packs.end());
}

void Leases::show(const std::vector<std::uint32_t>& packs) {
    const std::lock_guard lock(mutex_);
    for (const std::uint32_t pack : packs) hidden_.erase(pack);
}

void Leases::follow(const std::vector<std::uint32_t>& packs, std::uint32_t successor) {
    for (Held& held : held_) {
        const auto is_held = [&](std::uint32_t pack) { return held.packs.contains(pack); };
        if (std::any_of(packs.begin(), packs.end(), is_held)) held.packs.insert(successor);
    }
}

Leases::Held Leases::all_held() const {
    Held all;
    for (const Held& held : held_) {
        all.layers.insert(held.layers.begin(), held.layers.end());
        all.trees.insert(held.trees.begin(), held.trees.end());
        all.packs.insert(held.packs.begin(), held.packs.end());
    }
    return all;
}

}  // namespace lamina::store
