#pragma once

#include "store/index.h"
#include "store/job_packs.h"
#include "store/meter.h"
#include "store/opened_tar.h"
#include "store/store_core.h"

#include <atomic>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

namespace lamina::store {

struct ImageParts {
    std::vector<std::byte> manifest;
    std::string manifest_media_type;
    std::vector<std::byte> config;
    std::vector<DiffId> layers;  ///< Bottom first; each was had from the same job.
    std::optional<ImageName> name;
};

/// One import or commit: a lease, a folder in staging, and the order of durability (import_job.cpp). Thread-safe:
/// layers may be made side by side.
class ImportJob {
public:
    /// Borrows both.
    ImportJob(StoreCore& core, Meter& meter);

    /// The layer's row when it is there already, kept from now on.
    std::optional<LayerRow> known_layer(const DiffId& diff_id);
    struct NewLayer {
        std::optional<DiffId> promised;  ///< corrupt when the tar is another; nullopt: whatever it is.
        Meter::Part& part;               ///< Told how far reading is.
    };
    /// The layer's row, known or made; `open_tar` is called only when it is not known.
    LayerRow layer(const NewLayer& layer, const OpenTar& open_tar, const std::stop_token& stop);
    /// Builds the tree when no image had these layers, and makes the image.
    ImageRow image(const ImageParts& parts, const std::stop_token& stop);

private:
    LayerRow make_layer(const NewLayer& layer, const OpenTar& open_tar, const std::stop_token& stop);
    TreeRow tree(const std::optional<ChainId>& chain, const std::vector<DiffId>& layers, const std::stop_token& stop);
    std::string new_path(const char* suffix) { return folder_.path() + "/" + std::to_string(next_file_++) + suffix; }

    StoreCore& core_;
    Meter& meter_;
    Leases::Lease lease_;
    JobFolder folder_;
    JobPacks packs_;
    std::atomic<std::uint64_t> next_file_{1};
};

}  // namespace lamina::store
