#pragma once

#include "store/byte_stream.h"
#include "store/index.h"
#include "store/layer_importer.h"
#include "store/pack_writer.h"
#include "store/progress.h"
#include "store/store_core.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::store {

/// Tells how far a job is, about once per MiB. One thread. Borrows the function.
class Meter {
public:
    Meter(const ProgressFunction& function, std::uint64_t total_bytes)
        : function_(function), total_bytes_(total_bytes) {}
    void begin(const std::string& phase, const std::string& item);
    void advance(std::uint64_t bytes);      ///< Done of what was begun.
    void end_at(std::uint64_t done_bytes);  ///< All of it is done: so much of the total, read or not needed.
    std::uint64_t done_bytes() const noexcept { return base_bytes_; }

private:
    void report(std::uint64_t bytes);
    const ProgressFunction& function_;
    const std::uint64_t total_bytes_;
    std::string phase_;
    std::string item_;
    std::uint64_t base_bytes_ = 0;
    std::uint64_t reported_bytes_ = 0;
};

/// A layer's tar, opened.
struct OpenedTar {
    std::unique_ptr<ByteSource> tar;
    std::function<std::uint64_t()> read_bytes;  ///< For the meter; empty: the tar's own bytes count.
};
using OpenTar = std::function<OpenedTar()>;

struct ImageParts {
    std::vector<std::byte> manifest;
    std::string manifest_media_type;
    std::vector<std::byte> config;
    std::vector<DiffId> layers;  ///< Bottom first; each was had from the same job.
    std::optional<ImageName> name;
};

/// One import or commit: a lease, a folder in staging, and the order of durability (import_job.cpp). One thread.
class ImportJob {
public:
    ImportJob(StoreCore& core, const ProgressFunction& progress, std::uint64_t total_bytes, std::stop_token stop);
    Meter& meter() { return meter_; }

    /// The layer's row when it is there already, kept from now on.
    std::optional<LayerRow> known_layer(const DiffId& diff_id);
    /// The layer's row, known or made; `open_tar` is called only when it is not known. corrupt when the tar is not what
    /// `promised` says; nullopt: whatever it is.
    LayerRow layer(const std::optional<DiffId>& promised, const OpenTar& open_tar);
    /// Builds the tree when no image had these layers, and makes the image.
    ImageRow image(const ImageParts& parts);

private:
    class Undo;
    LayerRow make_layer(const std::optional<DiffId>& promised, const OpenTar& open_tar);
    LayerRow publish_layer(const ImportedLayer& layer, const std::string& recipe, PackWriter& writer, Undo& undo);
    void add_segment(const FinishedPack& pack, const DiffId& layer, Undo& undo);
    TreeRow tree(const std::optional<ChainId>& chain, const std::vector<DiffId>& layers);
    std::string new_path(const char* suffix) { return folder_.path() + "/" + std::to_string(next_file_++) + suffix; }

    StoreCore& core_;
    Leases::Lease lease_;
    JobFolder folder_;
    Meter meter_;
    std::stop_token stop_;
    std::uint64_t next_file_ = 1;
};

}  // namespace lamina::store
