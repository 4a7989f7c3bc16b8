#include "store/opened_tar.h"

#include "store/layer_stream.h"

#include <span>
#include <utility>
#include <vector>

namespace lamina::store {

namespace {

constexpr std::size_t kCopyBytes = 256 << 10;

/// A compressed layer of which nothing is promised: read once for what LayerStream wants to hold it to.
LayerStream::Expected measure(ByteSource& blob) {
    Hasher hasher;
    std::vector<std::byte> buffer(kCopyBytes);
    std::uint64_t size_bytes = 0;
    while (const std::size_t got = blob.read(buffer)) {
        hasher.update(std::span(buffer).first(got));
        size_bytes += got;
    }
    return {.digest = {hasher.finish()}, .size_bytes = size_bytes};
}

}  // namespace

OpenedTar open_tar(ImageSource& source, const WantedLayer& wanted, const std::stop_token& stop) {
    const SourceLayer& description = wanted.description;
    const auto open = [&] { return source.open_layer_until(wanted.image, wanted.layer, stop); };
    if (!description.blob && description.compression == Compression::none) return {.tar = open(), .read_bytes = {}};
    const LayerStream::Expected expected = description.blob ? *description.blob : measure(*open());
    auto stream = LayerStream::open(open(), description.compression, expected, StreamLimits{});
    auto read_bytes = [stream = stream.get()] { return stream->blob_bytes_read(); };
    return {.tar = std::move(stream), .read_bytes = std::move(read_bytes)};
}

}  // namespace lamina::store
