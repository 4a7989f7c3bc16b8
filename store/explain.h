#pragma once

#include "store/fetch_log.h"
#include "store/lazy_fetcher.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <unordered_set>
#include <vector>

namespace lamina::store {

struct StoreCore;

/// Where an image's bytes came from, for whom they were fetched, and who waited for them: from what lies in the store
/// and what the fetch log still tells. Bytes of chunks are those of files, bytes that were fetched those of blobs.
struct Explanation {
    /// What was fetched for one purpose from one source.
    struct Fetched {
        FetchKind kind = FetchKind::waited;
        std::string source;
        std::uint64_t requests = 0;
        std::uint64_t failures = 0;  ///< Tries that failed, and requests that did.
        std::uint64_t bytes = 0;
        std::int64_t first_byte_us = 0;  ///< Until the first byte, on an average.
        std::int64_t transfer_us = 0;    ///< From the first byte to the last, of all of them.
    };
    struct Share {
        std::string image;
        std::uint64_t bytes = 0;
    };
    struct Layer {
        DiffId diff_id;
        LayerState state = LayerState::verified;
        std::string why;                ///< Why it is not lazy, or quarantined; empty: it is lazy.
        bool lacks_index = false;       ///< It would be lazy had somebody published an index.
        std::uint64_t blob_bytes = 0;   ///< 0: not known.
        std::uint64_t chunk_bytes = 0;  ///< Each chunk once. The sum of the next five.
        std::uint64_t missing_bytes = 0;
        std::uint64_t waited_bytes = 0;      ///< Came when somebody waited for them,
        std::uint64_t prefetched_bytes = 0;  ///< ahead of who reads,
        std::uint64_t rest_bytes = 0;        ///< when the layer was completed,
        std::uint64_t local_bytes =
            0;  ///< or by no request that is known: they were here, or came with the whole layer.
        std::uint64_t shared_bytes = 0;  ///< Other images have these too.
        std::vector<Share> shares;       ///< Which ones, the largest first; at most ten.
        std::vector<Fetched> fetched;
    };
    struct Wait {
        ChunkWait event;
        std::uint64_t size_bytes = 0;
        std::vector<std::string> paths;  ///< Files of the image that have the chunk, at most three.
    };
    /// The last time that the image was mounted while layers were lazy, as far as the log tells.
    struct Start {
        std::string mount_id;
        std::int64_t begun_us = 0;
        std::int64_t end_us = 0;        ///< From here on nobody waited, and nothing was read ahead, for a minute.
        std::int64_t last_wait_us = 0;  ///< When the last wait of all ended; 0: nobody waited.
        std::int64_t wait_us = 0;       ///< Sum of all waits.
        std::uint64_t wait_count = 0;
        // Of the chunks that came since then:
        std::uint64_t waited_bytes = 0;      ///< This mount waited for these,
        std::uint64_t prefetched_bytes = 0;  ///< these came before it could, or for others,
        std::uint64_t rest_bytes = 0;        ///< and these when layers were completed.
        std::uint64_t fetched_bytes = 0;     ///< Of blobs, in so many requests:
        std::uint64_t request_count = 0;
        bool are_reads_known = false;  ///< Then of the first two the mount's programs have read, and not read, so many:
        std::uint64_t read_bytes = 0;
        std::uint64_t unread_bytes = 0;
        std::vector<RangeRequest> requests;  ///< That were on their way until end_us; at most 2,000, like the next.
        std::vector<Wait> waits;
        std::vector<Wait> longest;  ///< Of all waits; at most ten.
    };

    std::string image;
    BlobDigest config;
    std::string path;              ///< Empty: all of the image.
    std::uint64_t size_bytes = 0;  ///< Of the file.
    std::vector<Layer> layers;     ///< Bottom first; of a file those that have chunks of it.
    std::vector<Fetched> bundles;  ///< Start bundles: chunks of any layer.
    std::optional<Start> start;
    std::vector<std::string> hints;  ///< What would help, a line each.
};

struct ExplainRequest {
    std::string image;     ///< As ImageReference, when no mount is meant.
    std::string mount_id;  ///< Its image, and its last start.
    std::string path;      ///< Only this file of the image; empty: all.
    /// What programs have read through the mount, by ChunksCame::digits_of(); nullopt: not known.
    std::optional<std::unordered_set<std::string>> read_chunks;
};

Explanation explain_bytes(StoreCore& core, const ExplainRequest& request, const std::stop_token& stop);

/// What would help, from what is explained. `traced` of the bytes that were waited for are in the image's start trace.
struct TracedBytes {
    std::uint64_t traced = 0;
    std::uint64_t waited = 0;
};
std::vector<std::string> hints_for(const Explanation& explanation, const TracedBytes& trace);

}  // namespace lamina::store
