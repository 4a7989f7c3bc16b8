#include "store/size_limit.h"

#include "store/error.h"
#include "store/reserve.h"
#include "store/usage.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

// A round takes away one image, and further ones as long as what each alone would free is less in sum than is too much,
// so that none goes without need; then gc tells what is free. The choice and the removal are one step under the locks
// under which images are mounted, pinned, named and leased, so that nothing comes between.

namespace lamina::store {

namespace {

class Limiter {
public:
    Limiter(StoreCore& core, const SizeLimitRequest& request, const std::function<void()>& collect,
            const std::stop_token& stop)
        : core_(core), request_(request), collect_(collect), stop_(stop) {}

    SizeLimitReport run() {
        measure();
        const std::uint64_t before_bytes = report_.store_bytes;
        if (is_over()) collect_and_measure();
        while (is_over() && remove_some()) collect_and_measure();
        report_.is_met = !is_over();
        report_.freed_bytes = before_bytes - std::min(before_bytes, report_.store_bytes);
        return report_;
    }

private:
    bool is_over() const { return report_.store_bytes > request_.max_bytes; }
    void measure() { report_.store_bytes = bytes_below(core_.paths.root); }
    void collect_and_measure() {
        collect_();
        measure();
    }
    bool remove_some();
    std::optional<ImageRow> oldest(const Leases::Held& held) const;
    std::int64_t first_kept(const std::vector<ImageRow>& images) const;
    void remove(const ImageRow& image);

    StoreCore& core_;
    const SizeLimitRequest& request_;
    const std::function<void()>& collect_;
    const std::stop_token& stop_;
    SizeLimitReport report_;
};

/// False: none may go.
bool Limiter::remove_some() {
    if (stop_.stop_requested()) throw Error(Errc::cancelled, "stopped");
    std::map<BlobDigest, std::uint64_t> unique_bytes;
    for (const DiskUsage::Image& image : measure_images(core_)) unique_bytes[image.config] = image.unique_bytes;
    std::uint64_t excess_bytes = report_.store_bytes - request_.max_bytes;
    bool is_first = true;
    const auto remove_one = [&](const Leases::Held& held, auto&&) {
        const auto image = oldest(held);
        if (!image) return false;
        const auto unique = unique_bytes.find(image->config);
        const std::uint64_t bytes = unique == unique_bytes.end() ? 0 : unique->second;
        if (!is_first && bytes >= excess_bytes) return false;
        remove(*image);
        excess_bytes -= std::min(excess_bytes, bytes);
        is_first = false;
        return true;
    };
    const std::lock_guard mounting(core_.mounting);
    while (core_.leases.with_all(remove_one)) {
    }
    return !is_first;
}

std::optional<ImageRow> Limiter::oldest(const Leases::Held& held) const {
    const std::vector<ImageRow> images = core_.index->images();
    std::set<std::string> mounted;
    for (const KeptMount& mount : kept_mounts(core_)) mounted.insert(mount.base.config_digest);
    const std::int64_t end = first_kept(images);
    const ImageRow* found = nullptr;
    for (const ImageRow& image : images) {
        if (image.use_order >= end || image.is_pinned || held.trees.contains(image.tree.digest)) continue;
        if (mounted.contains(image.config.digest.text())) continue;
        if (!found || image.use_order < found->use_order) found = &image;
    }
    return found ? std::optional(*found) : std::nullopt;
}

/// What was used from then on stays.
std::int64_t Limiter::first_kept(const std::vector<ImageRow>& images) const {
    std::int64_t last = 0;
    std::optional<std::int64_t> first;
    for (const ImageRow& image : images) {
        last = std::max(last, image.use_order);
        const bool is_kept = std::ranges::find(request_.keep, image.config) != request_.keep.end();
        if (is_kept) first = std::min(first.value_or(image.use_order), image.use_order);
    }
    return first.value_or(last);
}

void Limiter::remove(const ImageRow& image) {
    try {
        core_.index->remove_image(image.id);
    } catch (const Error& error) {
        if (error.code() != Errc::no_space || !give_up_reserve(core_.paths)) throw;
        core_.index->remove_image(image.id);
    }
    report_.removed.push_back(display_name(image));
}

}  // namespace

SizeLimitReport limit_size(StoreCore& core, const SizeLimitRequest& request, const std::function<void()>& collect,
                           const std::stop_token& stop) {
    return Limiter(core, request, collect, stop).run();
}

}  // namespace lamina::store
