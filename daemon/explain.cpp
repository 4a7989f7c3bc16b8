#include "daemon/explain.h"

namespace lamina::daemon {

namespace {

std::string kind_of(store::FetchKind kind) {
    return std::string(store::fetch_kind_name(kind));
}

api::ExplainedFetch fetch_of(const store::Explanation::Fetched& sum) {
    return {kind_of(sum.kind), sum.source, sum.requests, sum.failures, sum.bytes, sum.first_byte_us, sum.transfer_us};
}

api::ExplainedLayer layer_of(const store::Explanation::Layer& from) {
    api::ExplainedLayer layer{.diff_id = from.diff_id.digest.text(),
                              .state = state_name(from.state),
                              .why = from.why,
                              .blob_bytes = from.blob_bytes,
                              .chunk_bytes = from.chunk_bytes,
                              .missing_bytes = from.missing_bytes,
                              .waited_bytes = from.waited_bytes,
                              .prefetched_bytes = from.prefetched_bytes,
                              .rest_bytes = from.rest_bytes,
                              .local_bytes = from.local_bytes,
                              .shared_bytes = from.shared_bytes,
                              .shares = {},
                              .fetched = {}};
    for (const auto& share : from.shares) layer.shares.push_back({share.image, share.bytes});
    for (const auto& sum : from.fetched) layer.fetched.push_back(fetch_of(sum));
    return layer;
}

api::ExplainedRequest request_of(const store::RangeRequest& from) {
    return {.layer = from.layer.digest.text(),
            .kind = kind_of(from.kind),
            .source = from.source,
            .blob_first = from.blob_first,
            .blob_end = from.blob_end,
            .sent_us = from.sent_us,
            .first_byte_us = from.first_byte_us,
            .end_us = from.end_us,
            .bytes = from.bytes,
            .failures = from.failures,
            .error = from.error};
}

api::ExplainedWait wait_of(const store::Explanation::Wait& from) {
    return {.layer = from.event.layer.digest.text(),
            .chunk = from.event.chunk.digest.text(),
            .size_bytes = from.size_bytes,
            .paths = from.paths,
            .begin_us = from.event.begin_us,
            .end_us = from.event.end_us,
            .request_us = from.event.request_us,
            .kind = kind_of(from.event.kind),
            .error = from.event.error};
}

api::ExplainedStart start_of(const store::Explanation::Start& from) {
    api::ExplainedStart start{.mount = from.mount_id,
                              .begun_us = from.begun_us,
                              .end_us = from.end_us,
                              .last_wait_us = from.last_wait_us,
                              .wait_us = from.wait_us,
                              .wait_count = from.wait_count,
                              .waited_bytes = from.waited_bytes,
                              .prefetched_bytes = from.prefetched_bytes,
                              .rest_bytes = from.rest_bytes,
                              .fetched_bytes = from.fetched_bytes,
                              .request_count = from.request_count,
                              .reads_known = from.are_reads_known,
                              .read_bytes = from.read_bytes,
                              .unread_bytes = from.unread_bytes,
                              .requests = {},
                              .waits = {},
                              .longest_waits = {}};
    for (const auto& request : from.requests) start.requests.push_back(request_of(request));
    for (const auto& wait : from.waits) start.waits.push_back(wait_of(wait));
    for (const auto& wait : from.longest) start.longest_waits.push_back(wait_of(wait));
    return start;
}

}  // namespace

std::string state_name(store::LayerState state) {
    switch (state) {
        case store::LayerState::verified:
            return "verified";
        case store::LayerState::complete:
            return "complete";
        case store::LayerState::lazy:
            return "lazy";
        case store::LayerState::quarantined:
            return "quarantined";
    }
    return "quarantined";
}

api::Explanation explanation_of(const store::Explanation& from) {
    api::Explanation explanation{.image = from.image,
                                 .id = from.config.digest.text(),
                                 .path = from.path,
                                 .size_bytes = from.size_bytes,
                                 .layers = {},
                                 .bundles = {},
                                 .start = {},
                                 .hints = from.hints};
    for (const auto& layer : from.layers) explanation.layers.push_back(layer_of(layer));
    for (const auto& sum : from.bundles) explanation.bundles.push_back(fetch_of(sum));
    if (from.start) explanation.start = start_of(*from.start);
    return explanation;
}

}  // namespace lamina::daemon
