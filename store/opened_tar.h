#pragma once

#include "store/blob_source.h"
#include "store/byte_stream.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>

namespace lamina::store {

/// A layer's tar, opened.
struct OpenedTar {
    std::unique_ptr<ByteSource> tar;
    std::function<std::uint64_t()> read_bytes;  ///< Of what lies in the source; empty: the tar's own bytes count.
};
using OpenTar = std::function<OpenedTar()>;

struct WantedLayer {
    std::size_t image;
    std::size_t layer;
    const SourceLayer& description;
};

/// One layer of a source, uncompressed and checked against what the source promises of its blob. `stop` ends a wait for
/// the source.
OpenedTar open_tar(ImageSource& source, const WantedLayer& wanted, const std::stop_token& stop);

}  // namespace lamina::store
