// What completes a layer: all that is missing of it, in the background or for somebody who waits, and the comparison
// with its digests.
#include "store/lazy_check.h"
#include "store/lazy_fetcher_impl.h"
#include "store/rate_limit.h"

#include <algorithm>
#include <memory>

namespace lamina::store {

namespace {

constexpr std::uint64_t kLeastRestBytes = 2 << 20;  ///< Of one request for a layer's rest.

}  // namespace

void LazyFetcher::Impl::complete(const DiffId& layer, const Completion& completion, const std::stop_token& stop) {
    check_not_quarantined(layer);
    try {
        const auto opened = open(layer);
        if (!opened) return;
        fetch_rest(layer, *opened, completion, stop);
        conclude(layer, *opened, stop);
    } catch (const Error& error) {
        const bool is_done_by_another = error.code() == Errc::cancelled && !stop.stop_requested() && !is_lazy(layer);
        if (!is_done_by_another) throw;
    }
}

void LazyFetcher::Impl::fetch_rest(const DiffId& layer, const Open& open, const Completion& completion,
                                   const std::stop_token& stop) {
    try {
        if (completion.is_background) return fetch_in_background(layer, open, completion, stop);
        for (std::size_t part = 0; part < open.parts.size(); ++part) {
            const auto has_it = [&] { return has_come(open, part); };
            Need need{.place = {layer, part}};
            if (!has_it()) read_ahead(open, need, part + 1);
            wait_for(need, has_it, stop);
            if (!completion.progress) continue;
            const AccessPoints::Span& span = open.parts[part].span;
            completion.progress({"completing", layer.digest.text(), span.blob_end, open.layer.blob.size_bytes, 0, 0});
        }
    } catch (const Error& error) {
        if (!is_wrong(error)) throw;
        if (const auto lie = find_lie(core_, {layer, open.layer, places_of(layer, open.layer)}, stop))
            put_aside(layer, *lie);
        throw;
    }
}

void LazyFetcher::Impl::fetch_in_background(const DiffId& layer, const Open& open, const Completion& completion,
                                            const std::stop_token& stop) {
    RateLimit rate(completion.bytes_per_second);
    for (std::size_t first = 0; first < open.parts.size();) {
        std::uint64_t limit_bytes = 0;
        {
            const std::lock_guard lock(mutex_);
            limit_bytes = std::max(kLeastRestBytes, link_.request_bytes());
        }
        if (completion.bytes_per_second > 0) limit_bytes = std::min(limit_bytes, completion.bytes_per_second);
        std::uint64_t bytes = 0;
        std::size_t end = first;
        for (; end < open.parts.size(); ++end) {
            const std::uint64_t more_bytes = has_come(open, end) ? 0 : open.parts[end].blob_bytes;
            if (bytes > 0 && bytes + more_bytes > limit_bytes) break;
            bytes += more_bytes;
        }
        ask_for_rest(layer, open, {first, end});
        try {
            for (; first < end; ++first) {
                Need need{.place = {layer, first}, .kind = Kind::rest};
                wait_for(
                    need, [&] { return has_come(open, first); }, stop);
            }
        } catch (...) {  // Whatever it was: what was asked for is not wanted any more.
            stop_rest(layer);
            throw;
        }
        rate.take(bytes, stop);  // Paid afterwards: so a part that is larger than a second's worth comes at once.
        const std::uint64_t done_bytes = open.parts[end - 1].span.blob_end;
        if (completion.progress)
            completion.progress({"completing", layer.digest.text(), done_bytes, open.layer.blob.size_bytes, 0, 0});
    }
}

void LazyFetcher::Impl::ask_for_rest(const DiffId& layer, const Open& open, std::pair<std::size_t, std::size_t> parts) {
    std::vector<std::size_t> missing;
    for (std::size_t part = parts.first; part < parts.second; ++part) {
        if (!has_come(open, part)) missing.push_back(part);
    }
    const std::lock_guard lock(mutex_);
    for (const std::size_t part : missing) {
        if (queue_.knows(layer, part)) queue_.ask(layer, part, Kind::rest, true);
    }
}

void LazyFetcher::Impl::stop_rest(const DiffId& layer) {
    const std::lock_guard lock(mutex_);
    if (queue_.knows(layer, 0)) queue_.take_back(layer);
    if (rest_ && rest_->first == layer) rest_->second.request_stop();
    for (auto& [place, outcome] : awaited_) {  // Of what is not on its way nobody would tell.
        if (place.first != layer || !queue_.is_idle(place.first, place.second)) continue;
        outcome->is_known = true;
        outcome->error = Error(Errc::cancelled, "fetch: taken back");
    }
    std::erase_if(awaited_, [](const auto& entry) { return entry.second->is_known; });
    changed_.notify_all();
}

void LazyFetcher::Impl::conclude(const DiffId& layer, const Open& open, const std::stop_token& stop) {
    {
        std::unique_lock lock(mutex_);
        if (!changed_.wait(lock, stop, [&] { return !concluding_.contains(layer); }))
            throw Error(Errc::cancelled, "complete: cancelled");
        concluding_.insert(layer);
    }
    const auto give_back = [&](const void*) {
        const std::lock_guard lock(mutex_);
        concluding_.erase(layer);
        changed_.notify_all();
    };
    const std::unique_ptr<const void, decltype(give_back)> claim(&layer, give_back);
    check_not_quarantined(layer);
    if (!is_lazy(layer)) return;  // Another one has done it.
    const LayerToCheck check{layer, open.layer, places_of(layer, open.layer)};
    if (const auto wrong = check_lazy_layer(core_, check, stop)) put_aside(layer, *wrong);
    remove_file(core_.paths.lazy(layer));
    remove_file(core_.paths.blob(layer));
    sync_folder(core_.paths.layers());
    forget(layer);
}

void LazyFetcher::Impl::put_aside(const DiffId& layer, const std::string& why) {
    quarantine(core_, layer, why);
    check_not_quarantined(layer);
    throw Error(Errc::internal, "quarantine: did not last");
}

bool LazyFetcher::Impl::has_come(const Open& open, std::size_t part) const {
    const AccessPoints::Span& span = open.parts[part].span;
    return open.spool && open.spool->has(part == 0 ? 0 : span.blob_first, span.blob_end) && has_all(open.parts[part]);
}

}  // namespace lamina::store
